"""The embedded default: a run without data searches on a phantom cohort, made and preprocessed like any other.

In: the space's phantom section, a folder. Out: a folder of shards.
"""

import shutil
from pathlib import Path
from typing import Final

from ichsearch.locations import is_uri
from ichsearch.phantom import write_cohort
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.sections import PhantomCohort
from ichsearch.shards.manifest import MANIFEST
from ichsearch.shards.preprocess import Progress, preprocess

SHARDS: Final = "shards"


def shards_location(
    data: str | Path | None, run: RunFolder, cohort: PhantomCohort, address: str | None, on_progress: Progress
) -> str | Path:
    """Where the slices of a run are that every node can reach: those that are named, else the run's phantom."""
    if data is not None:
        return data if is_uri(data) else Path(data).resolve()
    if run.mirror is None:
        return phantom_shards(run.phantom, cohort, address, on_progress).resolve()
    if run.phantom_shards is None:
        made = phantom_shards(run.phantom, cohort, address, on_progress)
        run.mirror.push(made.relative_to(run.root).as_posix())
    assert run.phantom_shards is not None, "its manifest is there"
    return run.phantom_shards


def phantom_shards(folder: Path, cohort: PhantomCohort, address: str | None, on_progress: Progress) -> Path:
    """Shards of the phantom cohort below `folder`; what is there and whole is kept."""
    shards, files, labels = folder / SHARDS, folder / "cohort", folder / "cohort" / "stage_2_train.csv"
    if (shards / MANIFEST).is_file():
        return shards
    if not labels.is_file():  # it is written last: without it the cohort is not whole
        shutil.rmtree(files, ignore_errors=True)
        write_cohort(
            files,
            cohort.patients,
            cohort.slices,
            cohort.seed,
            hard=cohort.hard,
            prevalence=cohort.prevalence,
            even_position=cohort.even_position,
            on_progress=lambda done, total: on_progress("phantom patients", done, total),
        )
    preprocess(files / "dicom", shards, labels=labels, address=address, on_progress=on_progress)
    return shards

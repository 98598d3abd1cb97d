"""Rules that see no image, fitted on a run's training patients: what a model must beat before its score means anything.

In: a run folder, its shards, the slices that its trials are judged on. Out: `baselines/<name>.parquet`, predictions in
the form that a trial leaves, and `baselines/baselines.json`: what each looks at, its scores, what it was fitted on.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.data.split import VALIDATION_FOLD, Split
from ichsearch.data.tasks import Task, task_columns, task_labels, task_rows
from ichsearch.errors import DataError
from ichsearch.files import read_json, write_json, written_aside
from ichsearch.labels import LABELS
from ichsearch.report.baseline_rules import RULES, features_of
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.statistics import (
    Intervals,
    Predictions,
    as_intervals,
    as_predictions,
    intervals,
    intervals_as_json,
    settings,
)
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.manifest import read_manifest
from ichsearch.train.metrics import FloatArray

VERSION: Final = 1
"""Raised when the same data would give other predictions."""


def fit_baselines(folder: RunFolder, shards: Path, task: Task, judged: Predictions) -> None:
    """Leave every baseline's predictions of the validation slices in the run folder, unless they are there already.

    Args:
        folder: the run.
        shards: its data.
        task: of its trials.
        judged: predictions of one of them; the metadata are joined to its slices by their ids.

    Raises:
        DataError: the shards are not the run's, or damaged.
    """
    manifest = read_manifest(shards)
    split = Split.model_validate(read_json(folder.split))
    if split.fingerprint != manifest.fingerprint:
        raise DataError(f"baselines need the data of the run, but {shards} holds others; name the run's with --data")
    origin = {"version": VERSION, "data": manifest.fingerprint, "split_seed": split.seed, "task": task, **settings()}
    if _known(folder).get("origin") == origin and all(folder.baseline(name).is_file() for name in RULES):
        return
    metadata = read_metadata(shards, manifest)
    labels = metadata[list(LABELS)].to_numpy(dtype=np.float32, na_value=np.nan)
    training = np.flatnonzero(task_rows(task, labels) & (split.fold_of(metadata) > VALIDATION_FOLD))
    asked = _rows_of(metadata, judged)
    features, truth = features_of(metadata), labels[:, task_columns(task)]
    entries: dict[str, Any] = {}
    for name, (rule, columns) in RULES.items():
        seen = features[list(columns)]
        probabilities = rule(seen.iloc[training], truth[training], seen.iloc[asked])
        frame = _frame(metadata.iloc[asked], task, truth[asked], probabilities)
        with written_aside(folder.baseline(name)) as aside:
            frame.to_parquet(aside, index=False)
        entries[name] = {"features": columns, "intervals": intervals_as_json(intervals(as_predictions(frame)))}
    fitted_on = {"slices": len(training), "patients": int(metadata["patient"].iloc[training].nunique())}
    write_json(_index(folder), {"origin": origin, "fitted_on": fitted_on, "baselines": entries})


def baseline_intervals(folder: RunFolder) -> dict[str, Intervals]:
    """The scores of each baseline that the run has, with their intervals, by its name."""
    entries = _known(folder).get("baselines", {})
    return {name: as_intervals(entry["intervals"]) for name, entry in entries.items()}


def _index(folder: RunFolder) -> Path:
    return folder.baselines / "baselines.json"


def _known(folder: RunFolder) -> dict[str, Any]:
    path = _index(folder)
    return dict(read_json(path)) if path.is_file() else {}


def _rows_of(metadata: pd.DataFrame, judged: Predictions) -> npt.NDArray[np.intp]:
    """Where the metadata tell of each judged slice."""
    rows = np.asarray(pd.Index(metadata["slice"]).get_indexer(judged.slices), np.intp)
    if (rows < 0).any():
        raise DataError(
            f"every validation slice must have metadata, but {int((rows < 0).sum())} have none; preprocess again"
        )
    return rows


def _frame(rows: pd.DataFrame, task: Task, truth: FloatArray, probabilities: FloatArray) -> pd.DataFrame:
    """Predictions in the form that a trial leaves."""
    frame = rows[["slice", "patient"]].reset_index(drop=True)
    for column, label in enumerate(task_labels(task)):
        frame[f"label_{label}"] = truth[:, column].astype(np.int8)
        frame[f"probability_{label}"] = probabilities[:, column].astype(np.float32)
    return frame

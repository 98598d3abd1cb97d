"""What a run's best trial is worth: its score beside the rule that sees no image.

In: a run folder and its shards. Out: `summary.json` and a few lines of text.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.split import Split
from ichsearch.errors import NoTrialFinishedError
from ichsearch.files import read_json, write_json
from ichsearch.labels import ANY, LABELS
from ichsearch.report.baselines import position_baseline
from ichsearch.report.bootstrap import Interval, auroc_difference
from ichsearch.report.leaderboard import read_leaderboard
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import FloatArray, score
from ichsearch.train.setup import Parts, parts_of

MIN_PATIENTS: Final = 8
"""With fewer patients the resamples are so alike that the interval is too narrow to be believed."""


class Summary(NamedTuple):
    """The best trial on the validation patients, and what slice position alone reaches there."""

    trial: str
    backbone: str
    auroc_any: float
    position_auroc_any: float
    difference: Interval
    slices: int
    patients: int


def summarise(folder: RunFolder, shards: Path) -> Summary:
    """Compare the best trial with the slice-position baseline on the validation fold, and keep it in `summary.json`."""
    table = read_leaderboard(folder)
    finished = table[table["rank"].notna()]
    if not len(finished):
        raise NoTrialFinishedError("a summary needs a finished trial, but the run has none; go on with it")
    best = finished.iloc[0]
    predictions = pd.read_parquet(folder.trial(best["trial"]) / "predictions.parquet")
    slices = open_slices(shards.resolve(), int(best["size"]))
    parts = parts_of(slices, Split.model_validate(read_json(folder.split)), min_brain=0.0)
    baseline = _position_probabilities(slices, parts)
    truth, column = slices.labels[parts.validation], LABELS.index(ANY)
    assert predictions["slice"].tolist() == slices.table["slice"].iloc[parts.validation].tolist()
    patients = predictions["patient"].to_numpy(np.object_)
    auroc = score(truth, baseline, LABELS, patients)[f"auroc_{ANY}"]
    probabilities = predictions[f"probability_{ANY}"].to_numpy(np.float64)
    difference = auroc_difference(truth[:, column], probabilities, baseline[:, column], patients)
    assert auroc is not None and difference is not None, "the split guarantees slices of both kinds"
    summary = Summary(
        trial=best["trial"],
        backbone=best["backbone"],
        auroc_any=float(best[f"auroc_{ANY}"]),
        position_auroc_any=auroc,
        difference=difference,
        slices=len(predictions),
        patients=predictions["patient"].nunique(),
    )
    reliable = summary.patients >= MIN_PATIENTS
    content = summary._asdict() | {"difference": summary.difference._asdict(), "interval_is_reliable": reliable}
    write_json(folder.root / "summary.json", content)
    return summary


def _position_probabilities(slices: SliceSet, parts: Parts) -> FloatArray:
    position = slices.relative_position
    return position_baseline(position[parts.train], slices.labels[parts.train], position[parts.validation])


def summary_text(summary: Summary) -> str:
    """What a person should take from the run, and what not."""
    low, high = summary.difference.low, summary.difference.high
    interval = f" (95 % {low:+.3f} to {high:+.3f}, patient bootstrap)"
    if summary.patients < MIN_PATIENTS:
        interval, verdict = "", f"shows nothing yet: an interval needs at least {MIN_PATIENTS} validation patients"
    elif low > 0:
        verdict = "beats a rule that sees no image"
    else:
        verdict = "is not shown to beat a rule that sees no image: more validation patients or better trials are needed"
    return (
        f"best trial {summary.trial} ({summary.backbone}): AUROC for any haemorrhage {summary.auroc_any:.3f} on "
        f"{summary.slices} validation slices of {summary.patients} patients\n"
        f"slice position alone: {summary.position_auroc_any:.3f} · "
        f"difference {summary.difference.value:+.3f}{interval}: it {verdict}\n"
        "chosen on these patients, so its score is optimistic; the test fold is untouched · not for clinical use"
    )

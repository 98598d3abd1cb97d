"""What a run's best trial is worth: its score beside the rule that sees no image.

In: a run folder and its shards. Out: `summary.json` and a few lines of text.
"""

import math
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.split import Split
from ichsearch.data.tasks import task_labels
from ichsearch.errors import NoTrialFinishedError
from ichsearch.files import read_json, write_json
from ichsearch.labels import ANY, LABELS
from ichsearch.report.baselines import position_baseline
from ichsearch.report.bootstrap import Interval, auroc_difference, auroc_interval
from ichsearch.report.leaderboard import read_leaderboard
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import FloatArray
from ichsearch.train.setup import Parts, parts_of

MIN_PATIENTS: Final = 8
"""With fewer patients the resamples are so alike that the interval is too narrow to be believed."""


class Summary(NamedTuple):
    """The best trial on the validation patients, and what slice position alone reaches there."""

    trial: str
    backbone: str
    metric: str
    score: float
    slices: int
    patients: int
    label: str = ""
    auroc: float = math.nan
    position_auroc: float = math.nan
    difference: Interval | None = None
    """These four: of the judged label; none where the validation slices show one kind only."""


def summarise(folder: RunFolder, shards: Path) -> Summary:
    """Compare the best trial with the slice-position baseline on the validation fold, and keep it in `summary.json`."""
    table = read_leaderboard(folder)
    finished = table[table["rank"].notna()]
    if not len(finished):
        raise NoTrialFinishedError("a summary needs a finished trial, but the run has none; go on with it")
    best = finished.iloc[0]
    predictions = pd.read_parquet(folder.trial(best["trial"]) / "predictions.parquet")
    slices = open_slices(shards.resolve(), int(best["size"]))
    parts = parts_of(slices, Split.model_validate(read_json(folder.split)), min_brain=0.0, task=best["task"])
    assert predictions["slice"].tolist() == slices.table["slice"].iloc[parts.validation].tolist()
    summary = Summary(
        trial=best["trial"],
        backbone=best["backbone"],
        metric=best["metric"],
        score=float(best["score"]),
        slices=len(predictions),
        patients=predictions["patient"].nunique(),
    )
    if label := _judged_label(best, predictions):
        summary = _compared(summary, label, predictions, slices, parts)._replace(auroc=float(best[f"auroc_{label}"]))
    content = {
        **{name: value for name, value in summary._asdict().items() if not _is_nan(value)},
        "difference": summary.difference and summary.difference._asdict(),
        "interval_is_reliable": summary.patients >= MIN_PATIENTS,
    }
    write_json(folder.root / "summary.json", content)
    return summary


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _compared(summary: Summary, label: str, predictions: pd.DataFrame, slices: SliceSet, parts: Parts) -> Summary:
    """The summary with what slice position alone reaches, and the difference."""
    column = LABELS.index(label)
    truth, baseline = slices.labels[parts.validation][:, column], _position_probabilities(slices, parts)[:, column]
    patients = predictions["patient"].to_numpy(np.object_)
    difference = auroc_difference(truth, predictions[f"probability_{label}"].to_numpy(np.float64), baseline, patients)
    position = auroc_interval(truth, baseline, patients)
    assert position is not None and difference is not None, "a label with a score has slices of both kinds"
    return summary._replace(label=label, position_auroc=position.value, difference=difference)


def _judged_label(best: "pd.Series[Any]", predictions: pd.DataFrame) -> str:
    """Any haemorrhage; of a task without it the label with most positive validation slices, whatever its score."""
    if ANY in task_labels(best["task"]):
        return ANY
    scored = [label for label in task_labels(best["task"]) if pd.notna(best[f"auroc_{label}"])]
    return max(scored, key=lambda label: int(predictions[f"label_{label}"].sum()), default="")


def _position_probabilities(slices: SliceSet, parts: Parts) -> FloatArray:
    position = slices.relative_position
    return position_baseline(position[parts.train], slices.labels[parts.train], position[parts.validation])


def summary_text(summary: Summary) -> str:
    """What a person should take from the run, and what not."""
    end = "chosen on these patients, so its score is optimistic; the test fold is untouched · not for clinical use"
    on = f"on {summary.slices} validation slices of {summary.patients} patients"
    head, score = f"best trial {summary.trial} ({summary.backbone})", f"{summary.metric} {summary.score:.3f}"
    if summary.difference is None:
        return f"{head}: {score} {on}\nno label of which they show both kinds: nothing to compare it with\n{end}"
    low, high = summary.difference.low, summary.difference.high
    interval = f" (95 % {low:+.3f} to {high:+.3f}, patient bootstrap)"
    if summary.patients < MIN_PATIENTS:
        interval, verdict = "", f"shows nothing yet: an interval needs at least {MIN_PATIENTS} validation patients"
    elif low > 0:
        verdict = "beats a rule that sees no image"
    else:
        verdict = "is not shown to beat a rule that sees no image: more validation patients or better trials are needed"
    what = "any haemorrhage" if summary.label == ANY else summary.label
    chosen_by = "" if summary.metric == f"auroc_{summary.label}" else f"{score}, "
    return (
        f"{head}: {chosen_by}AUROC for {what} {summary.auroc:.3f} {on}\n"
        f"slice position alone: {summary.position_auroc:.3f} · "
        f"difference {summary.difference.value:+.3f}{interval}: it {verdict}\n"
        f"{end}"
    )

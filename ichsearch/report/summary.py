"""What a run's best trial is worth: its score beside the rule that sees no image.

In: a run folder and its shards. Out: `summary.json` and a few lines of text.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.split import Split
from ichsearch.data.tasks import task_labels
from ichsearch.errors import NoTrialFinishedError
from ichsearch.files import read_json, write_json
from ichsearch.labels import ANY, LABELS
from ichsearch.report.baselines import position_baseline
from ichsearch.report.bootstrap import Interval, auroc_difference
from ichsearch.report.leaderboard import read_leaderboard
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import FloatArray
from ichsearch.train.setup import Parts, parts_of

MIN_PATIENTS: Final = 8
"""With fewer patients the resamples are so alike that the interval is too narrow to be believed."""


class Comparison(NamedTuple):
    """How well a trial tells one label, and how well slice position alone does."""

    label: str
    auroc: float
    position_auroc: float
    difference: Interval


class Summary(NamedTuple):
    """The best trial on the validation patients; `compared` is None where no label shows both kinds there."""

    trial: str
    backbone: str
    metric: str
    score: float
    slices: int
    patients: int
    compared: Comparison | None


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
        compared=_compared(label, predictions, slices, parts) if (label := _judged_label(best, predictions)) else None,
    )
    write_json(folder.root / "summary.json", _as_json(summary))
    return summary


def _as_json(summary: Summary) -> dict[str, Any]:
    compared = summary.compared
    return summary._asdict() | {
        "compared": compared and compared._asdict() | {"difference": compared.difference._asdict()},
        "interval_is_reliable": summary.patients >= MIN_PATIENTS,
    }


def _compared(label: str, predictions: pd.DataFrame, slices: SliceSet, parts: Parts) -> Comparison:
    column = LABELS.index(label)
    truth, baseline = slices.labels[parts.validation][:, column], _position_probabilities(slices, parts)[:, column]
    patients = predictions["patient"].to_numpy(np.object_)
    probabilities = predictions[f"probability_{label}"].to_numpy(np.float64)
    difference = auroc_difference(truth, probabilities, baseline, patients)
    assert difference is not None, "a label with a score has slices of both kinds"
    auroc = float(roc_auc_score(truth, probabilities))
    return Comparison(label, auroc, auroc - difference.value, difference)


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
    compared = summary.compared
    if compared is None:
        return f"{head}: {score} {on}\nno label of which they show both kinds: nothing to compare it with\n{end}"
    low, high = compared.difference.low, compared.difference.high
    interval = f" (95 % {low:+.3f} to {high:+.3f}, patient bootstrap)"
    if summary.patients < MIN_PATIENTS:
        interval, verdict = "", f"shows nothing yet: an interval needs at least {MIN_PATIENTS} validation patients"
    elif low > 0:
        verdict = "beats a rule that sees no image"
    else:
        verdict = "is not shown to beat a rule that sees no image: more validation patients or better trials are needed"
    what = "any haemorrhage" if compared.label == ANY else compared.label
    chosen_by = "" if summary.metric == f"auroc_{compared.label}" else f"{score}, "
    return (
        f"{head}: {chosen_by}AUROC for {what} {compared.auroc:.3f} {on}\n"
        f"slice position alone: {compared.position_auroc:.3f} · "
        f"difference {compared.difference.value:+.3f}{interval}: it {verdict}\n"
        f"{end}"
    )

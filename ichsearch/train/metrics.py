"""Scores of predicted probabilities, of slices and of patients.

In: truth in {0, 1} and probabilities, (N, L), the names of the L labels, and whose slice each is. Out: numbers by name.
A label of which only one class occurs has no score (None), never a made-up one.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.errors import DataError
from ichsearch.labels import ANY, LABELS, LOSS_WEIGHTS

Metric = Literal[
    "auroc_any",
    "average_precision_any",
    "sensitivity_at_90_any",
    "sensitivity_at_95_any",
    "patient_auroc_any",
    "patient_average_precision_any",
    "patient_sensitivity_at_90_any",
    "patient_sensitivity_at_95_any",
    "auroc_mean",
    "average_precision_mean",
    "patient_auroc_mean",
    "patient_average_precision_mean",
    "log_loss",
    "accuracy_multi",
]
"""What a search may rank by."""
Scores = dict[str, float | None]
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

LOWER_IS_BETTER: Final = frozenset({"log_loss"})
CLIP: Final = 1e-7
SPECIFICITIES_PERCENT: Final = (90, 95)
CALIBRATION_BINS: Final = 15
TOP_SLICES: Final = 3
"""A patient's score is the mean of so many of his highest slices: one slice alone may be a fluke."""


def better(metric: Metric, new: float, old: float | None) -> bool:
    """Whether `new` beats `old`; anything beats None."""
    if old is None:
        return True
    return new < old if metric in LOWER_IS_BETTER else new > old


def is_defined(metric: Metric, labels: Sequence[str]) -> bool:
    """Whether a model of these labels can be ranked by the metric: those of `any` need the label `any`."""
    return ANY in labels or not metric.endswith(f"_{ANY}")


def score(
    truth: FloatArray, probabilities: FloatArray, labels: Sequence[str], patients: npt.NDArray[np.object_]
) -> Scores:
    """All metrics by name.

    `log_loss`, `accuracy_multi`; for each label, of slices, `auroc_<label>`, `average_precision_<label>`,
    `sensitivity_at_90_<label>` and `_95_` (see `_sensitivity`), `calibration_error_<label>` (see `_calibration_error`);
    all but the last of patients too (`patient_auroc_<label>`, see `patient_level`). `auroc_mean`,
    `average_precision_mean` and those of patients are means over the labels that have a score.

    Args:
        truth: (N, L) in {0, 1}.
        probabilities: (N, L) in [0, 1].
        labels: the L labels' names, of `LABELS`.
        patients: (N,) whose slice each is.

    Raises:
        DataError: no slices, truth that is not 0 or 1, or a probability that is NaN or outside [0, 1].
    """
    _require_scorable(truth, probabilities)
    positive = truth == 1
    scores: Scores = {
        "log_loss": float(slice_losses(truth, probabilities, labels).mean()),
        "accuracy_multi": float(((probabilities > 0.5) == positive).mean()),
    }
    patient_positive, patient_scores = patient_level(positive, probabilities, patients)
    details: Scores = {}
    for column, label in enumerate(labels):
        of_slices = _label_scores(positive[:, column], probabilities[:, column], calibration=True)
        of_patients = _label_scores(patient_positive[:, column], patient_scores[:, column], calibration=False)
        details |= {f"{name}_{label}": value for name, value in of_slices.items()}
        details |= {f"patient_{name}_{label}": value for name, value in of_patients.items()}
    for name in ("auroc", "average_precision", "patient_auroc", "patient_average_precision"):
        scores[f"{name}_mean"] = _mean([details[f"{name}_{label}"] for label in labels])
    return scores | details


def _require_scorable(truth: FloatArray, probabilities: FloatArray) -> None:
    if not len(truth):
        raise DataError("a score needs slices, but got none; take a fold that has labelled slices")
    if unknown := int((~((truth == 0) | (truth == 1))).sum()):
        raise DataError(f"labels must be 0 or 1, but {unknown} of {truth.size} are not; leave out unlabelled slices")
    if wrong := int((~((probabilities >= 0) & (probabilities <= 1))).sum()):
        raise DataError(
            f"probabilities must lie in [0, 1], but {wrong} of {probabilities.size} do not (NaN included); "
            "a model that gives such numbers has diverged: lower its learning rate"
        )


def slice_losses(truth: FloatArray, probabilities: FloatArray, labels: Sequence[str]) -> FloatArray:
    """Loss of each slice, (N,) float64: the binary cross-entropies of its labels, `any` with weight 2, averaged.

    Their mean over slices is the challenge's metric. Probabilities are kept 1e-7 away from 0 and 1.
    """
    weight_of = dict(zip(LABELS, LOSS_WEIGHTS, strict=True))
    p = np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)
    losses: FloatArray = -np.log(np.where(truth == 1, p, 1 - p))
    return np.average(losses, axis=1, weights=[weight_of[label] for label in labels])


def patient_level(
    positive: BoolArray, probabilities: FloatArray, patients: npt.NDArray[np.object_]
) -> tuple[BoolArray, FloatArray]:
    """Truth and scores of patients, (P, L) bool and float64, in the order of their first slices.

    A patient is positive if any of his slices is; his score is the mean of his three highest slices (of all, if he has
    fewer).
    """
    codes, names = pd.factorize(patients)
    narrow = codes.astype(np.min_scalar_type(len(names)))  # numpy sorts 16 bits by radix, ten times as fast
    counts = np.bincount(codes)
    first = np.cumsum(counts) - counts
    truth = np.zeros((len(names), positive.shape[1]), np.bool_)
    scores = np.zeros(truth.shape)
    for column in range(positive.shape[1]):
        truth[codes[positive[:, column]], column] = True
        order = np.argsort(probabilities[:, column])[::-1]
        order = order[np.argsort(narrow[order], kind="stable")]  # patient after patient, each from his highest slice
        top = order[np.arange(len(order)) - first[codes[order]] < TOP_SLICES]
        sums = np.bincount(codes[top], weights=probabilities[top, column], minlength=len(names))
        scores[:, column] = sums / np.minimum(counts, TOP_SLICES)
    return truth, scores


class _Groups(NamedTuple):
    """How many are positive and negative at each distinct score, the highest first; all (D,)."""

    scores: FloatArray
    positives: IntArray
    negatives: IntArray


def _label_scores(positive: BoolArray, scores: FloatArray, *, calibration: bool) -> Scores:
    groups = _grouped(positive, scores)
    defined = bool(groups.positives.any() and groups.negatives.any())
    result: Scores = {
        "auroc": _auroc(groups) if defined else None,
        "average_precision": _average_precision(groups) if defined else None,
    }
    for percent in SPECIFICITIES_PERCENT:
        result[f"sensitivity_at_{percent}"] = _sensitivity(groups, percent) if defined else None
    if calibration:
        result["calibration_error"] = _calibration_error(groups) if defined else None
    return result


def _grouped(positive: BoolArray, scores: FloatArray) -> _Groups:
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positives = np.add.reduceat(positive[order].astype(np.int64), starts)
    return _Groups(ordered[starts], positives, np.diff(np.r_[starts, len(scores)]) - positives)


def _auroc(groups: _Groups) -> float:
    """The share of (positive, negative) pairs in which the positive one scores higher; equal scores count half."""
    positives, negatives = groups.positives.sum(), groups.negatives.sum()
    below = negatives - np.cumsum(groups.negatives)
    return float((groups.positives * (below + groups.negatives / 2)).sum() / (positives * negatives))


def _average_precision(groups: _Groups) -> float:
    """Precision averaged over the steps of recall, not interpolated (scikit-learn's definition)."""
    found = np.cumsum(groups.positives)
    precision = found / (found + np.cumsum(groups.negatives))
    return float((groups.positives * precision).sum() / found[-1])


def _sensitivity(groups: _Groups, specificity_percent: int) -> float:
    """The highest sensitivity of all thresholds with at least this specificity: of the ROC's vertices, none between.

    Counted in whole slices, so that a specificity of exactly 90 % is not lost to rounding.
    """
    alarms = np.cumsum(groups.negatives)
    allowed = 100 * alarms <= (100 - specificity_percent) * alarms[-1]
    found = np.cumsum(groups.positives)
    return float(found[allowed].max(initial=0) / found[-1])


def _calibration_error(groups: _Groups) -> float:
    """Expected calibration error over 15 bins of equal mass (numbers of slices, by rank).

    The mean over slices of |mean probability - prevalence| of their bin. Equal probabilities share a bin, that of their
    middle rank, so the order of slices does not matter. Bins of equal width would put a rare label into one bin.
    """
    counts = groups.positives + groups.negatives
    ends = np.cumsum(counts)
    twice_middle = 2 * ends - counts - 1
    bins = CALIBRATION_BINS * twice_middle // (2 * ends[-1])
    excess = np.bincount(bins, weights=groups.scores * counts - groups.positives)
    return float(np.abs(excess).sum() / ends[-1])


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None

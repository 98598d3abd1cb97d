"""Above which probability a slice counts as positive: chosen on the validation patients, and on nobody else.

In: a file of predictions of the validation slices. Out: operating points of each label.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ichsearch.deploy.exported_record import OperatingPoint, OperatingPoints
from ichsearch.report.statistics import read_predictions
from ichsearch.train.metrics import SPECIFICITIES_PERCENT, BoolArray, FloatArray

YOUDEN: Final = "youden"


def operating_points(validation: Path) -> OperatingPoints:
    """The thresholds that the validation predictions give.

    `specificity_90`: of those with at least this specificity the one of the highest sensitivity; `youden`: the one of
    the highest sum of both.

    Raises:
        DataError: the predictions cannot be read.
    """
    predictions = read_predictions(validation)
    return points_of(predictions.labels, predictions.positive, predictions.probabilities)


def points_of(labels: Sequence[str], positive: BoolArray, scores: FloatArray) -> OperatingPoints:
    """The same of (N, L) truth and probabilities, of slices or of patients."""
    return {label: _of_label(positive[:, column], scores[:, column]) for column, label in enumerate(labels)}


def _of_label(positive: BoolArray, scores: FloatArray) -> dict[str, OperatingPoint | None]:
    names = [f"specificity_{percent}" for percent in SPECIFICITIES_PERCENT]
    if positive.all() or not positive.any():
        return dict.fromkeys([*names, YOUDEN])
    thresholds, sensitivity, specificity = _curve(positive, scores)

    def point(at: int) -> OperatingPoint:
        return OperatingPoint(
            threshold=float(thresholds[at]), sensitivity=float(sensitivity[at]), specificity=float(specificity[at])
        )

    points: dict[str, OperatingPoint | None] = {YOUDEN: point(int(np.argmax(sensitivity + specificity)))}
    for name, percent in zip(names, SPECIFICITIES_PERCENT, strict=True):
        allowed = np.flatnonzero(specificity * 100 >= percent - 1e-9)
        points[name] = point(int(allowed[np.argmax(sensitivity[allowed])]))
    return points


def _curve(positive: BoolArray, scores: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """All thresholds from that which nothing reaches downwards, with their sensitivity and specificity.

    They lie halfway between two probabilities: one that a slice has could be missed where rounding differs.
    """
    order = np.argsort(scores)[::-1]
    ordered, found = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # equal scores are all above a threshold, or none
    alarms = last + 1 - found[last]
    edges = np.r_[ordered[last], 0]
    highest = max((1 + ordered[0]) / 2, np.nextafter(np.float32(ordered[0]), np.float32(2)))
    thresholds = np.r_[highest, (edges[:-1] + edges[1:]) / 2]
    return thresholds, np.r_[0, found[last]] / found[-1], 1 - np.r_[0, alarms] / (len(scores) - found[-1])

"""How sure a score is: resampling patients, because slices of one patient are not independent.

In: scores and labels of slices with their patients. Out: intervals.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ichsearch.train.metrics import FloatArray

RESAMPLES: Final = 2000
CHUNK: Final = 100


class Interval(NamedTuple):
    """A value with its 95 % interval; `resamples` counts those in which it was defined."""

    value: float
    low: float
    high: float
    resamples: int


def auroc_difference(
    truth: FloatArray, scores: FloatArray, baseline: FloatArray, patients: npt.NDArray[np.str_], seed: int = 0
) -> Interval:
    """AUROC of `scores` minus AUROC of `baseline` with its 95 % percentile interval over resampled patients.

    All (N,); both AUROCs see the same resample. Resamples with one class only define no AUROC and are left out.
    """
    ones = np.ones((1, len(truth)))
    value = weighted_auroc(truth, scores, ones)[0] - weighted_auroc(truth, baseline, ones)[0]
    _, of_patient = np.unique(patients, return_inverse=True)
    number = int(of_patient.max()) + 1
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=CHUNK)  # (CHUNK, patients)
        weights = drawn[:, of_patient].astype(np.float64)
        differences.append(weighted_auroc(truth, scores, weights) - weighted_auroc(truth, baseline, weights))
    defined = np.concatenate(differences)
    defined = defined[~np.isnan(defined)]
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high), len(defined))


def weighted_auroc(truth: FloatArray, scores: FloatArray, weights: FloatArray) -> FloatArray:
    """AUROC under each row of (R, N) weights, (R,); ties count half; NaN where a class has no weight."""
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * (truth[order] == 1), starts, axis=1)  # (R, distinct scores)
    negative = np.add.reduceat(ordered * (truth[order] == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    result: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return result

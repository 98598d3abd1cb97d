"""How sure a score is: resampling patients, because slices of one patient are not independent.

In: scores and labels of slices with their patients. Out: intervals.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from ichsearch.train.metrics import BoolArray, FloatArray, patient_level, slice_losses

RESAMPLES: Final = 2000
CHUNK: Final = 50
Patients = npt.NDArray[np.str_] | npt.NDArray[np.object_]
Statistic = Callable[[FloatArray], FloatArray]
"""Values (R,) of a score when patients have the weights (R, P); NaN where it is undefined."""


class Interval(NamedTuple):
    """A value with its 95 % percentile interval; `resamples` counts those of 2,000 in which it was defined."""

    value: float
    low: float
    high: float
    resamples: int


def auroc_interval(truth: FloatArray, scores: FloatArray, patients: Patients, seed: int = 0) -> Interval | None:
    """AUROC of slices, all (N,), over resampled patients; None if only one class occurs.

    Resamples with one class only define no AUROC and are left out.
    """
    of_patient, number = _numbered(patients)
    return _interval(weighted_auroc(truth == 1, scores, of_patient), number, seed)


def auroc_difference(
    truth: FloatArray, scores: FloatArray, baseline: FloatArray, patients: Patients, seed: int = 0
) -> Interval | None:
    """AUROC of `scores` minus AUROC of `baseline`, as `auroc_interval`; both see the same resamples."""
    of_patient, number = _numbered(patients)
    first, second = (weighted_auroc(truth == 1, values, of_patient) for values in (scores, baseline))
    return _interval(lambda weights: first(weights) - second(weights), number, seed)


def patient_auroc_interval(truth: FloatArray, scores: FloatArray, patients: Patients, seed: int = 0) -> Interval | None:
    """AUROC of patients (see `metrics.patient_level`) from slices' truth and scores, all (N,), as `auroc_interval`."""
    truths, tops = patient_level(truth[:, None] == 1, scores[:, None], np.asarray(patients, object))
    number = len(tops)
    return _interval(weighted_auroc(truths[:, 0], tops[:, 0], np.arange(number)), number, seed)


def log_loss_interval(
    truth: FloatArray, probabilities: FloatArray, labels: Sequence[str], patients: Patients, seed: int = 0
) -> Interval | None:
    """The weighted log loss of slices, (N, L), over resampled patients; defined whenever there are slices."""
    of_patient, number = _numbered(patients)
    losses = np.bincount(of_patient, weights=slice_losses(truth, probabilities, labels))
    slices = np.bincount(of_patient)
    return _interval(lambda weights: (weights @ losses) / (weights @ slices), number, seed)


def _numbered(patients: Patients) -> tuple[npt.NDArray[np.intp], int]:
    """The patient's number of each slice, in the order of their names, and how many patients there are."""
    codes, names = pd.factorize(np.asarray(patients, object), sort=True)
    return codes, len(names)


def _interval(statistic: Statistic, patients: int, seed: int) -> Interval | None:
    """The statistic with its interval.

    The draws depend on the seed and the number of patients alone, so scores of the same slices share their resamples.
    """
    value = float(statistic(np.ones((1, patients)))[0])
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.multinomial(patients, np.full(patients, 1 / patients), size=CHUNK)
        resampled.append(statistic(drawn.astype(np.float64)))
    defined = np.concatenate(resampled)
    defined = defined[~np.isnan(defined)]
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high), len(defined))


def weighted_auroc(positive: BoolArray, scores: FloatArray, of_patient: npt.NDArray[np.intp]) -> Statistic:
    """AUROC of slices, all (N,), under weights of their patients; ties count half; NaN where a class has no weight.

    Only where a score lies among those of the positives matters, so slices are first counted by patient and place:
    place 2k + 1 holds the k-th distinct positive score, place 2k what lies below it and above the one before.
    """
    distinct = np.unique(scores[positive])
    place = np.searchsorted(distinct, scores, "left") + np.searchsorted(distinct, scores, "right")
    shape = (2 * len(distinct) + 1, int(of_patient.max()) + 1)
    positives, negatives = (
        csr_array((np.ones(chosen.sum()), (place[chosen], of_patient[chosen])), shape=shape)
        for chosen in (positive, ~positive)
    )

    def statistic(weights: FloatArray) -> FloatArray:
        positive_weights, negative_weights = positives @ weights.T, negatives @ weights.T  # (places, R)
        below = np.cumsum(negative_weights, axis=0) - negative_weights / 2
        wins = (positive_weights * below).sum(axis=0)
        pairs = positive_weights.sum(axis=0) * negative_weights.sum(axis=0)
        values: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        return values

    return statistic

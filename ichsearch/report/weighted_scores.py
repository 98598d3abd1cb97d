"""Scores under weights of patients, for all resamples at once.

In: truth and scores of N slices (or patients), and whose they are. Out: statistics: functions of weights.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ichsearch.report.bootstrap import Statistic
from ichsearch.train.metrics import SPECIFICITIES_PERCENT, BoolArray, FloatArray

PatientNumbers = npt.NDArray[np.intp]
"""(N,) the number of the patient of each slice."""

RANKED: Final = ("auroc", "average_precision", *(f"sensitivity_at_{percent}" for percent in SPECIFICITIES_PERCENT))
"""The scores of `ranked_scores`, in their order."""


def weighted_means(values: FloatArray, of_patient: PatientNumbers) -> Statistic:
    """Means of M values of each slice, (N, M)."""
    patients = int(of_patient.max()) + 1
    sums = np.stack([np.bincount(of_patient, weights=column, minlength=patients) for column in values.T])
    slices = np.bincount(of_patient, minlength=patients)
    return lambda weights: (sums @ weights.T) / (weights @ slices)


def ranked_scores(positive: BoolArray, scores: FloatArray, of_patient: PatientNumbers) -> Statistic:
    """The scores `RANKED` of one label, as `train.metrics` defines them; NaN where a class has no weight.

    Only where a slice lies among the scores of the positives matters, so slices are first counted by patient and place:
    the k-th distinct positive score, the highest first, and the gap above it, where only negatives are.
    """
    distinct = np.unique(scores[positive])
    below = np.searchsorted(distinct, scores, "left")  # how many distinct positive scores lie below
    tied = np.searchsorted(distinct, scores, "right") > below
    place = len(distinct) - below - tied
    shape = (len(distinct) + 1, int(of_patient.max()) + 1)

    def counts(chosen: BoolArray) -> csr_array:
        return csr_array((np.ones(chosen.sum()), (place[chosen], of_patient[chosen])), shape=shape)

    positives, above, beside = counts(positive), counts(~positive & ~tied), counts(~positive & tied)

    def statistic(weights: FloatArray) -> FloatArray:
        found, over, equal = (matrix @ weights.T for matrix in (positives, above, beside))  # (places, R)
        return _from_places(found[:-1], over[:-1], equal[:-1], over.sum(axis=0) + equal.sum(axis=0))

    return statistic


def _from_places(found: FloatArray, over: FloatArray, equal: FloatArray, negatives: FloatArray) -> FloatArray:
    """`RANKED` of the weights of positives at each place (K, R), of negatives above and at it, and of all negatives."""
    alarms = np.cumsum(over + equal, axis=0)  # negatives at a threshold that still catches this place
    caught = np.cumsum(found, axis=0)
    positives = caught[-1] if len(caught) else np.zeros_like(negatives)
    defined = (positives > 0) & (negatives > 0)
    lost = (found * (alarms - equal / 2)).sum(axis=0)  # pairs whose negative one scores higher; ties count half
    precision = np.divide(caught, caught + alarms, out=np.zeros_like(caught), where=caught > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [1 - lost / (positives * negatives), (found * precision).sum(axis=0) / positives]
        for percent in SPECIFICITIES_PERCENT:
            allowed = 100 * alarms <= (100 - percent) * negatives
            values.append((found * allowed).sum(axis=0) / positives)
    return np.where(defined, np.stack(values), np.nan)

"""Curves of a label with bands over resampled patients: ROC, precision and recall, calibration.

In: truth and probabilities of slices with their patients. Out: points of curves, and between what they lie in 95 % of
the resamples. Scores are cut into 256 bins of equal mass first, so that slices are counted once, not in every resample.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.report.bootstrap import Patients
from ichsearch.train.metrics import BoolArray, FloatArray

RESAMPLES: Final = 1000
BINS: Final = 256
GRID: Final = 101
CALIBRATION_BINS: Final = 10


class Band(NamedTuple):
    """A curve over `x`, and its 95 % interval at each of these."""

    x: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray


class Calibration(NamedTuple):
    """Bins of slices of equal mass: their mean probability, the share of positives with its interval, their number."""

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    slices: npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelCurves:
    """The curves of one label.

    Attributes:
        positive: (N,) truth of slices.
        scores: (N,) probabilities.
        patients: (N,) whose they are.
    """

    positive: BoolArray
    scores: FloatArray
    patients: Patients
    seed: int = 0

    @property
    def defined(self) -> bool:
        """Whether slices of both kinds are there."""
        return bool(self.positive.any() and not self.positive.all())

    def roc(self) -> Band:
        """Sensitivity over 1 - specificity."""
        grid = np.linspace(0, 1, GRID)
        return _band(grid, [np.interp(grid, fpr, tpr) for tpr, fpr, _ in self._rates()])

    def precision_recall(self) -> Band:
        """Precision over recall, as a staircase: the precision of the first threshold that reaches a recall."""
        grid = np.linspace(0, 1, GRID)
        return _band(grid, [_staircase(grid, recall, precision) for recall, _, precision in self._rates()])

    def calibration(self) -> Calibration:
        """How often a label is there, over the probability that was predicted."""
        bins = _mass_bins(self.scores, CALIBRATION_BINS)
        number = int(bins.max()) + 1
        positives, slices = self._counts(bins, number, self.positive), self._counts(bins, number)
        with np.errstate(invalid="ignore"):
            shares = (self._weights @ positives.T) / (self._weights @ slices.T)  # (R, bins)
        low, high = np.nanpercentile(shares[1:], [2.5, 97.5], axis=0)
        count = slices.sum(axis=1).astype(np.int64)
        predicted = np.bincount(bins, weights=self.scores, minlength=number) / count
        return Calibration(predicted, shares[0], low, high, count)

    @cached_property
    def _codes(self) -> npt.NDArray[np.intp]:
        return pd.factorize(np.asarray(self.patients, object), sort=True)[0]

    @cached_property
    def _weights(self) -> FloatArray:
        """(1 + R, P): all patients once, then the resamples."""
        number = int(self._codes.max()) + 1
        rng = np.random.default_rng(self.seed)
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
        return np.concatenate([np.ones((1, number)), drawn])

    def _counts(self, bins: npt.NDArray[np.intp], number: int, chosen: BoolArray | None = None) -> FloatArray:
        """(bins, P) how many slices, or how many of the chosen ones, each patient has in each bin."""
        patients = int(self._codes.max()) + 1
        flat = bins * patients + self._codes
        counted = np.bincount(flat if chosen is None else flat[chosen], minlength=number * patients)
        return counted.reshape(number, patients).astype(np.float64)

    def _rates(self) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """Sensitivity, 1 - specificity and precision at each threshold, the highest first: of all, then resampled."""
        bins = _mass_bins(-self.scores, BINS)
        number = int(bins.max()) + 1
        found = np.cumsum(self._weights @ self._counts(bins, number, self.positive).T, axis=1)
        alarms = np.cumsum(self._weights @ self._counts(bins, number, ~self.positive).T, axis=1)
        both = (found[:, -1] > 0) & (alarms[:, -1] > 0)
        start = np.zeros((int(both.sum()), 1))
        found, alarms = (np.concatenate([start, counts[both]], axis=1) for counts in (found, alarms))
        with np.errstate(invalid="ignore"):
            precision = found / (found + alarms)
        precision[:, 0] = precision[:, 1]
        return list(zip(found / found[:, -1:], alarms / alarms[:, -1:], precision, strict=True))


def _band(grid: FloatArray, curves: list[FloatArray]) -> Band:
    """The first curve with the percentiles of the others."""
    low, high = np.percentile(np.stack(curves[1:] or curves), [2.5, 97.5], axis=0)
    return Band(grid, curves[0], low, high)


def _staircase(grid: FloatArray, recall: FloatArray, precision: FloatArray) -> FloatArray:
    """The precision of the first threshold that reaches a recall, and that finds anything at all."""
    known = np.nan_to_num(precision, nan=1.0)  # thresholds that no resampled slice reaches
    reached = np.searchsorted(recall, np.maximum(grid, np.finfo(np.float64).tiny), side="left")
    return known[np.minimum(reached, len(known) - 1)]


def _mass_bins(values: FloatArray, most: int) -> npt.NDArray[np.intp]:
    """(N,) a bin of each value, rising; about equally many slices in each, equal values in one."""
    edges = np.unique(np.quantile(values, np.arange(1, most) / most, method="inverted_cdf"))
    bins = np.searchsorted(edges, values, side="left")
    return np.unique(bins, return_inverse=True)[1].astype(np.intp)

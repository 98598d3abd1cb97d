"""Curves of a label with bands over resampled patients: ROC, precision over recall, calibration.

In: truth and probabilities of slices with their patients. Out: points of curves, and between what they lie in 95 % of
the resamples. Scores are cut into 256 bins of equal mass first, so that slices are counted once, not in every resample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ichsearch.report.bootstrap import Statistic, resample
from ichsearch.report.weighted_scores import PatientNumbers
from ichsearch.train.metrics import BoolArray, FloatArray

BINS: Final = 256
GRID: Final = np.linspace(0, 1, 101)
CALIBRATION_BINS: Final = 10

Kind = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
"""What a curve is over `GRID`, from sensitivities, shares of false alarms and precisions at falling thresholds."""


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


def roc(found: FloatArray, alarms: FloatArray, _precision: FloatArray) -> FloatArray:
    """Sensitivity over 1 - specificity."""
    return np.interp(GRID, alarms, found)


def precision_recall(found: FloatArray, _alarms: FloatArray, precision: FloatArray) -> FloatArray:
    """Precision over recall, as a staircase: of the first threshold that reaches a recall and finds anything."""
    reached = np.searchsorted(found, np.maximum(GRID, np.finfo(np.float64).tiny), side="left")
    return precision[np.minimum(reached, len(precision) - 1)]


@dataclass(frozen=True)
class LabelCurves:
    """The curves of one label.

    Attributes:
        positive: (N,) truth of slices.
        scores: (N,) probabilities.
        of_patient: (N,) the number of the patient of each slice, from 0.
    """

    positive: BoolArray
    scores: FloatArray
    of_patient: PatientNumbers

    @property
    def defined(self) -> bool:
        """Whether slices of both kinds are there."""
        return bool(self.positive.any() and not self.positive.all())

    @property
    def positive_patients(self) -> int:
        """How many patients have the label at all."""
        return len(np.unique(self.of_patient[self.positive]))

    @property
    def _patients(self) -> int:
        return int(self.of_patient.max()) + 1

    def line(self, kind: Kind) -> FloatArray:
        """The curve over `GRID`."""
        return self._lines(kind)(np.ones((1, self._patients)))[:, 0]

    def band(self, kind: Kind) -> Band:
        """The curve over `GRID` with its intervals."""
        return Band(GRID, *_intervals(self._lines(kind), self._patients))

    def calibration(self) -> Calibration:
        """How often a label is there, over the probability that was predicted."""
        bins = _mass_bins(self.scores, CALIBRATION_BINS)
        positives, slices = self._counts(bins, self.positive), self._counts(bins)

        def shares(weights: FloatArray) -> FloatArray:
            with np.errstate(invalid="ignore"):
                return (positives @ weights.T) / (slices @ weights.T)

        counts = slices.sum(axis=1).astype(np.int64)
        predicted = np.bincount(bins, weights=self.scores) / counts
        return Calibration(predicted, *_intervals(shares, self._patients), counts)

    def _lines(self, kind: Kind) -> Statistic:
        """The curve under weights of patients, (101, R)."""
        bins = _mass_bins(-self.scores, BINS)
        positives, negatives = self._counts(bins, self.positive), self._counts(bins, ~self.positive)

        def lines(weights: FloatArray) -> FloatArray:
            found, alarms = (np.cumsum(weights @ counts.T, axis=1) for counts in (positives, negatives))
            with np.errstate(invalid="ignore", divide="ignore"):
                rates = found / found[:, -1:], alarms / alarms[:, -1:], found / (found + alarms)
            return np.stack([kind(*_from_nothing(*row)) for row in zip(*rates, strict=True)], axis=1)

        return lines

    def _counts(self, bins: npt.NDArray[np.intp], chosen: BoolArray | None = None) -> FloatArray:
        """(bins, P) how many slices, or how many of the chosen ones, each patient has in each bin."""
        flat = bins * self._patients + self.of_patient
        shape = int(bins.max()) + 1, self._patients
        counted = np.bincount(flat if chosen is None else flat[chosen], minlength=shape[0] * shape[1])
        return counted.reshape(shape).astype(np.float64)


def _intervals(statistic: Statistic, patients: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Values of a curve at its points, and the ends of their intervals; NaN where one is undefined."""
    points = [score.interval or (np.nan,) * 3 for score in resample(statistic, patients)]
    value, low, high = np.array([point[:3] for point in points]).T
    return value, low, high


def _from_nothing(found: FloatArray, alarms: FloatArray, precision: FloatArray) -> tuple[FloatArray, ...]:
    """The rates with a threshold in front that no slice reaches; it has the precision of the next one."""
    return np.append(0, found), np.append(0, alarms), np.append(precision[0], precision)


def _mass_bins(values: FloatArray, most: int) -> npt.NDArray[np.intp]:
    """(N,) a bin of each value, rising; about equally many slices in each, equal values in one."""
    edges = np.unique(np.quantile(values, np.arange(1, most) / most, method="inverted_cdf"))
    bins = np.searchsorted(edges, values, side="left")
    return np.unique(bins, return_inverse=True)[1].astype(np.intp)

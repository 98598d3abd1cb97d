"""How sure a score is: resampling patients, because slices of one patient are not independent.

In: scores as functions of patients' weights. Out: their values in all resamples, and intervals.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from ichsearch.train.metrics import FloatArray

RESAMPLES: Final = 2000
SEED: Final = 0
CHUNK: Final = 50
MIN_PATIENTS: Final = 8
"""With fewer patients the resamples are so alike that an interval is too narrow to be believed."""

Statistic = Callable[[FloatArray], FloatArray]
"""Values (M, R) of M scores when patients have the weights (R, P); NaN where one is undefined."""


class Interval(NamedTuple):
    """A value with its 95 % interval; `resamples` counts those of 2,000 in which it was defined."""

    value: float
    low: float
    high: float
    resamples: int


class Resampled(NamedTuple):
    """A score on the patients as they are, and in each of the resamples, (R,); NaN where it is undefined."""

    value: float
    draws: FloatArray
    patients: int

    @property
    def interval(self) -> Interval | None:
        """The 95 % percentile interval over the resamples that define the score; None where the patients do not.

        Its percentiles lie further out than 2.5 and 97.5, the less so the more patients there are: plain ones are as
        narrow as a normal interval without Student's correction (the expanded interval of Hesterberg 2015).
        """
        if np.isnan(self.value):
            return None
        defined = self.draws[~np.isnan(self.draws)]
        low, high = np.percentile(defined, _ends_percent(self.patients)) if len(defined) else (self.value, self.value)
        return Interval(self.value, float(low), float(high), len(defined))

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference of two scores of the same patients, resample by resample."""
        return Resampled(self.value - other.value, self.draws - other.draws, self.patients)


def _ends_percent(patients: int) -> tuple[float, float]:
    """At which percentiles an interval ends; for ever more patients at 2.5 and 97.5."""
    if patients == 1:
        return 0.0, 100.0
    tail = 100 * float(norm.sf(student.ppf(0.975, patients - 1) * np.sqrt(patients / (patients - 1))))
    return tail, 100 - tail


def resample(statistic: Statistic, patients: int, seed: int = SEED) -> list[Resampled]:
    """The statistic's M scores, with as many patients drawn with repetition as there are.

    The draws depend on the seed and the number of patients alone: scores of the same patients share their resamples,
    and may be subtracted from one another.
    """
    weights = _weights(patients, seed, RESAMPLES)
    values = statistic(np.ones((1, patients)))[:, 0]
    chunks = [statistic(weights[start : start + CHUNK].astype(np.float64)) for start in range(0, RESAMPLES, CHUNK)]
    draws = np.concatenate(chunks, axis=1)
    return [Resampled(float(value), row, patients) for value, row in zip(values, draws, strict=True)]


@lru_cache(maxsize=2)
def _weights(patients: int, seed: int, resamples: int) -> FloatArray:
    """How often each patient is drawn, (resamples, patients)."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples)
    return drawn.astype(np.float32)

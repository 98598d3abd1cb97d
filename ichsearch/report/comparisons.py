"""Whether scores of the same patients differ: paired over resamples, corrected for how many pairs there are.

In: scores over the same resamples. Out: p-values.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import t as student

from ichsearch.report.bootstrap import Resampled
from ichsearch.train.metrics import FloatArray

SIGNIFICANT: Final = 0.05
"""Family-wise error of a tie group, and of the claim that some trial beats a baseline."""
EQUAL: Final = 1e-9
"""Differences and errors below are rounding."""


def pairwise_p(scores: Sequence[Resampled], patients: int) -> FloatArray:
    """Two-sided p of the difference of every pair, (K, K): Student's t with the standard error over the resamples.

    Counting resamples could not give a p below 1 / 2,000, of which correcting for some hundred pairs leaves nothing.
    1 for all where there is one patient, or fewer than two resamples define all scores.
    """
    draws = np.stack([score.draws for score in scores])
    draws = draws[:, ~np.isnan(draws).any(axis=0)]
    if patients < 2 or draws.shape[1] < 2:
        return np.ones((len(scores), len(scores)))
    covariance = np.atleast_2d(np.cov(draws))
    variance = np.diag(covariance)
    error = np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0))
    values = np.array([score.value for score in scores])
    difference = np.abs(values[:, None] - values)
    t = np.divide(difference, error, out=np.full_like(error, np.inf), where=error >= EQUAL)
    return np.where(difference < EQUAL, 1.0, 2 * student.sf(t, patients - 1))


def holm(p: FloatArray) -> FloatArray:
    """Holm's correction of a symmetric matrix of p-values, (K, K), for all its pairs.

    For all, not for those with the best alone: the best was chosen by looking. Of twenty equal trials the luckiest one
    seems better than some other in one run of four if only its nineteen comparisons are counted.
    """
    rows, columns = np.triu_indices(len(p), 1)
    order = np.argsort(p[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    left = len(order) - np.arange(len(order))
    corrected = np.ones_like(p)
    corrected[rows, columns] = corrected[columns, rows] = np.maximum.accumulate(np.minimum(1, left * p[rows, columns]))
    return corrected


def is_above_zero(gain: Resampled, patients: int, trials: int = 1) -> bool:
    """Whether a gain is shown to be one: one-sided, at 95 % for all of so many trials together (Bonferroni).

    For all, because whoever reads it looks at the best: of forty trials worth no more than a rule, the luckiest one
    seems to beat it in one run of six.
    """
    defined = gain.draws[~np.isnan(gain.draws)]
    if patients < 2 or len(defined) < 2:
        return False
    error = float(np.std(defined, ddof=1))
    if error < EQUAL:
        return gain.value >= EQUAL
    return bool(student.sf(gain.value / error, patients - 1) < SIGNIFICANT / trials)

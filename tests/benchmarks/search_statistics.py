"""Means of regrets over tasks and seeds, and paired differences between two searchers.

In: regrets of shape (tasks, seeds). Out: means with their standard error, differences with 95 % intervals. Both hold
for these tasks: the mean over them of each one's mean over seeds, whose error comes from the seeds alone. Beside the
difference stands a wider interval for tasks like these, from the spread of the tasks' own mean differences.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

FloatArray = NDArray[np.float64]

LEVEL: Final = 0.95


Bounds = tuple[float, float]
"""Where a figure lies with 95 % confidence."""


class Difference(NamedTuple):
    """A searcher's regret less another's at the same tasks and seeds; below 0 the first is better."""

    mean: float
    these_tasks: Bounds | None
    """From the seeds, the tasks being given; None of one seed."""
    such_tasks: Bounds | None
    """From the tasks, taken as a sample of all like them; None of one task."""
    tasks_won: int
    tasks_lost: int


def mean_and_error(regrets: FloatArray) -> tuple[float, float | None]:
    """The mean, and its standard error from the spread over seeds within each task; (T, S)."""
    error, _ = _seed_error(regrets)
    return float(regrets.mean()), error


def difference(regrets: FloatArray, others: FloatArray) -> Difference:
    """Paired by task and seed; both (T, S)."""
    paired = regrets - others
    of_tasks = paired.mean(axis=1)
    mean, tasks = float(paired.mean()), len(of_tasks)
    task_error = float(of_tasks.std(ddof=1)) / np.sqrt(tasks) if tasks > 1 else None
    return Difference(
        mean,
        _bounds(mean, *_seed_error(paired)),
        _bounds(mean, task_error, tasks - 1),
        int((of_tasks < 0).sum()),
        int((of_tasks > 0).sum()),
    )


def _seed_error(values: FloatArray) -> tuple[float | None, float]:
    """Standard error of the mean of a stratified sample, and its degrees of freedom by Satterthwaite; (T, S)."""
    tasks, seeds = values.shape
    if seeds < 2:
        return None, 0
    variances = values.var(axis=1, ddof=1) / seeds / tasks**2
    if not variances.any():
        return 0.0, tasks * (seeds - 1)
    return float(np.sqrt(variances.sum())), float(variances.sum() ** 2 / (variances**2).sum() * (seeds - 1))


def _bounds(mean: float, error: float | None, freedom: float) -> Bounds | None:
    if error is None:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    return mean - half, mean + half

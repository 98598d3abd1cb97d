"""A table of learning curves as the world of a search: what a trial would have cost, and what it would have shown.

In: an npz file with `tasks` (T), `valid_loss` (T, N, E), `unit` (T, N, D) and `names` (D). Out: its tasks, a ledger
that counts the epochs a searcher trains, and the normalised regret of what the searcher has seen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Task(NamedTuple):
    """The curves of N configurations, and where these lie in the unit cube."""

    curves: FloatArray
    """(N, E) validation loss after each epoch, NaN from the epoch of a divergence on."""
    unit: FloatArray
    """(N, D) hyperparameters scaled to [0, 1]."""
    names: tuple[str, ...]
    """(D) of the hyperparameters."""

    @property
    def epochs(self) -> int:
        """E: of a trial of full length, and the points of one full budget."""
        return len(self.curves[0])


class Exhausted(Exception):  # noqa: N818 -- the end of every run, and no error
    """The budget is spent: a contestant lets it pass."""


class Ledger:
    """Trains by looking up, counts every epoch as one point, and remembers the best loss seen at each point."""

    def __init__(self, task: Task, points: int) -> None:
        self.task = task
        self.points = points
        self.paid = 0
        self._best = np.full(points + 1, np.inf)

    def nearest(self, unit_point: Sequence[float] | FloatArray) -> int:
        """The configuration whose hyperparameters lie nearest by Euclid's distance."""
        return int(((self.task.unit - np.asarray(unit_point)) ** 2).sum(axis=1).argmin())

    def train(self, index: int, first_epoch: int, last_epoch: int) -> FloatArray:
        """Pay for the epochs from `first_epoch` up to and without `last_epoch`, counted from 0, and see their losses.

        Raises:
            Exhausted: the budget ends within them; the losses paid for count as seen.
        """
        if not 0 <= first_epoch < last_epoch <= self.task.epochs:
            raise ValueError(
                f"0 <= first_epoch < last_epoch <= {self.task.epochs} must hold, "
                f"but got first_epoch={first_epoch}, last_epoch={last_epoch}"
            )
        losses = self.task.curves[index, first_epoch:last_epoch]
        seen = losses[: self.points - self.paid]
        best = np.fmin.accumulate(np.concatenate(([self._best[self.paid]], seen)))
        self._best[self.paid : self.paid + len(best)] = best
        self.paid += len(seen)
        if len(seen) < len(losses) or self.paid == self.points:
            raise Exhausted
        return losses.copy()

    def best(self, points: int) -> float:
        """The lowest loss seen when `points` epochs had been paid for; infinite if none was finite.

        A searcher that gave up early keeps what it had.
        """
        return float(self._best[min(points, self.paid)])


Contestant = Callable[[Ledger, int], None]
"""Searches with a ledger and a seed until `Exhausted` is raised."""


def load_tasks(path: Path) -> dict[str, Task]:
    """The tasks of a table by name, in its order; T, N, E and D are the file's."""
    with np.load(path, allow_pickle=False) as table:
        names = tuple(map(str, table["names"]))
        curves, unit = table["valid_loss"].astype(np.float64), table["unit"].astype(np.float64)
        return {str(name): Task(curves[t], unit[t], names) for t, name in enumerate(table["tasks"])}


def normalised_regret(task: Task, best_seen: float) -> float:
    """0 for the best final loss of the task or a lower one on the way, 1 for the median final loss or a higher one.

    A diverged final loss counts as infinite in the median, which is then that of all configurations.
    """
    final = np.nan_to_num(task.curves[:, -1], nan=np.inf)
    best, median = final.min(), np.median(final)
    return float((np.clip(best_seen, best, median) - best) / (median - best))

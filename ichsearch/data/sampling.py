"""Which slices an epoch shows, and in which order.

In: the labels of a part, a seed and an epoch. Out: places in the part; the same for the same arguments.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ichsearch.data.tasks import Task
from ichsearch.labels import ANY, LABELS, SUBTYPES

Sampler = Literal["shuffled", "balanced"]
"""Every slice once; or drawn with replacement so that rare classes are seen as often as frequent ones."""


class Share(NamedTuple):
    """One of several shares of whatever is in a row, which differ by one thing at most."""

    number: int = 0
    of: int = 1

    def part(self, length: int) -> slice:
        """Where the share lies among `length` things."""
        return slice(length * self.number // self.of, length * (self.number + 1) // self.of)


WHOLE: Final = Share()


def seed_of(seed: int, *place: int) -> np.random.SeedSequence:
    """What the randomness at `place` (an epoch; an epoch and a step) of a trial starts from."""
    return np.random.SeedSequence(seed % 2**64, spawn_key=place)


def epoch_order(
    labels: npt.NDArray[np.float32], task: Task, sampler: Sampler, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """(N,) places in a part of N slices with (N, 6) labels, in random order."""
    if sampler == "shuffled":
        return rng.permutation(len(labels))
    chances = rarest_subtype_chances(labels) if task == "positives" else any_chances(labels)
    return rng.choice(len(labels), size=len(labels), p=chances)


def any_chances(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N,) chances of being drawn that make haemorrhage and none equally likely; they sum to 1."""
    bleeds = (labels[:, LABELS.index(ANY)] == 1).astype(np.int64)
    weights = 1 / np.bincount(bleeds, minlength=2).clip(min=1)[bleeds]
    return np.asarray(weights / weights.sum(), np.float64)


def rarest_subtype_chances(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N,) chances inverse to the frequency of the rarest subtype a slice has; they sum to 1.

    A slice that bleeds without a subtype counts as one of the most frequent.
    """
    subtypes = labels[:, [LABELS.index(name) for name in SUBTYPES]] == 1
    counts = subtypes.sum(axis=0)
    rarest = np.where(subtypes, counts, max(1, counts.max())).min(axis=1)
    weights = 1 / rarest
    return np.asarray(weights / weights.sum(), np.float64)

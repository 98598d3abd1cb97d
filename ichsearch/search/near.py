"""Which configurations are the same, or as good as the same, as one that was tried.

In: configurations. Out: whether a new one lies beside an old one, or is one.
"""

from collections import defaultdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from optuna.distributions import CategoricalDistribution

from ichsearch.search.drawing import Configuration, cells

Kind = tuple[object, ...]
FEW: Final = 10
"""So many values of a number are tried one by one, like choices."""


class Neighbourhood:
    """The configurations that were tried.

    A new one must keep the distance that as many evenly spread ones would have: half the side of a cube that holds one
    of them. The more there are, the nearer it may come. A model alone asks for what it knows already.
    """

    def __init__(self) -> None:
        self._same: set[frozenset[tuple[str, Any]]] = set()
        self._tried: dict[Kind, list[list[float]]] = defaultdict(list)
        self._arrays: dict[Kind, npt.NDArray[np.float64]] = {}

    def add(self, made: Configuration) -> None:
        """Know a configuration; it counts once, however many rungs it has visited."""
        if self.has(made):
            return
        kind, numbers = _parts(made)
        self._same.add(frozenset(made.drawn.items()))
        self._tried[kind].append(numbers)
        self._arrays.pop(kind, None)

    def has(self, made: Configuration) -> bool:
        """Whether just this configuration was tried."""
        return frozenset(made.drawn.items()) in self._same

    def is_near(self, made: Configuration, share: float = 1.0) -> bool:
        """Whether one with the same choices lies within `share` of that distance, by all its numbers."""
        kind, numbers = _parts(made)
        if kind not in self._tried:
            return False
        if kind not in self._arrays:
            self._arrays[kind] = np.asarray(self._tried[kind])
        tried = self._arrays[kind]
        radius = share * 0.5 * len(tried) ** (-1 / len(numbers)) if numbers else 0.0
        return bool((np.abs(tried - np.asarray(numbers)) <= radius).all(axis=1).any())


def _parts(made: Configuration) -> tuple[Kind, list[float]]:
    """The choices with the names of all parameters, and the numbers as shares of their ranges.

    Numbers of which there are few are choices: two of them are never near.
    """
    kind: list[object] = []
    numbers: list[float] = []
    for name in sorted(made.params):
        distribution = made.distributions[name]
        if isinstance(distribution, CategoricalDistribution) or 0 < cells(distribution) <= FEW:
            kind.append((name, made.params[name]))
        else:
            kind.append(name)
            numbers.append(made.shares[name])
    return tuple(kind), numbers

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
SHARE: Final = 0.01
"""Of a space that is near to those tried, all in all: enough to keep a model from asking for what it knows. A share of
1 leaves it next to nothing round the best of two axes: 13 % of the configurations were the model's, now 67 %.
"""


class Neighbourhood:
    """The configurations that were tried, each with a cube round it; the more there are, the smaller these are."""

    def __init__(self) -> None:
        self._same: set[frozenset[tuple[str, Any]]] = set()
        self._tried: dict[Kind, list[list[float]]] = defaultdict(list)
        self._arrays: dict[Kind, npt.NDArray[np.float64]] = {}

    def add(self, made: Configuration) -> None:
        """Know a configuration."""
        kind, numbers = _parts(made)
        self._same.add(frozenset(made.drawn.items()))
        self._tried[kind].append(numbers)
        self._arrays.pop(kind, None)

    def has(self, made: Configuration) -> bool:
        """Whether just this configuration was tried."""
        return frozenset(made.drawn.items()) in self._same

    def is_near(self, made: Configuration) -> bool:
        """Whether one with the same choices has all its numbers near those of `made`."""
        kind, numbers = _parts(made)
        if kind not in self._tried:
            return False
        if kind not in self._arrays:
            self._arrays[kind] = np.asarray(self._tried[kind])
        tried = self._arrays[kind]
        radius = 0.5 * (SHARE / len(tried)) ** (1 / len(numbers)) if numbers else 0.0
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

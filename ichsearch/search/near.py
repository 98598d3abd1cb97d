"""Which configurations are the same, or as good as the same, as one that was tried.

In: configurations. Out: whether a new one lies beside an old one.
"""

from collections import defaultdict
from typing import Final

import numpy as np
from optuna.distributions import CategoricalDistribution

from ichsearch.search.drawing import Configuration, cells

FEW: Final = 10
"""So many values of a number are tried one by one, like choices."""


class Neighbourhood:
    """The configurations that were tried.

    A new one must keep the distance that as many evenly spread ones would have: half the side of a cube that holds one
    of them. The more there are, the nearer it may come. A model alone asks for what it knows already.
    """

    def __init__(self) -> None:
        self._tried: dict[tuple[object, ...], list[list[float]]] = defaultdict(list)

    def add(self, made: Configuration) -> None:
        """Know a configuration."""
        kind, numbers = _parts(made)
        self._tried[kind].append(numbers)

    def has(self, made: Configuration) -> bool:
        """Whether one with the same choices has all its numbers near those of `made`."""
        kind, numbers = _parts(made)
        if kind not in self._tried:
            return False
        tried = self._tried[kind]
        radius = 0.5 * len(tried) ** (-1 / len(numbers)) if numbers else 0.0
        apart = np.abs(np.asarray(tried) - np.asarray(numbers))
        return bool((apart <= radius).all(axis=1).any())


def _parts(made: Configuration) -> tuple[tuple[object, ...], list[float]]:
    """The choices with the names of all parameters, and the numbers as shares of their ranges.

    Numbers of which there are few are choices: two of them are never near.
    """
    kind: list[object] = []
    numbers: list[float] = []
    for name in sorted(made.params):
        distribution = made.distributions[name]
        if isinstance(distribution, CategoricalDistribution) or 0 < cells(distribution) <= FEW:
            kind.append((name, repr(made.params[name])))
        else:
            kind.append(name)
            numbers.append(made.shares[name])
    return tuple(kind), numbers

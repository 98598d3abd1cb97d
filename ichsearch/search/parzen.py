"""A tree-structured Parzen estimator: new configurations like the best ones and unlike the others.

In: configurations in the order of their loss. Out: a configuration. Source: Bergstra et al. 2011, in the multivariate
form of BOHB (Falkner et al. 2018): one bandwidth for all axes, from the number of points and of axes. Where a parameter
exists only under a condition, configurations without it say nothing about it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.special import expit, ndtr, ndtri

from ichsearch.search.drawing import Configuration, Draw, alike, at_share, cells, drawn_by

FloatArray = npt.NDArray[np.float64]

CANDIDATES: Final = 24
GOOD_SHARE: Final = 0.1
MOST_GOOD: Final = 25
"""These three as in Optuna and hyperopt."""
WIDEST: Final = 0.2
"""Bandwidth of a single point as a share of a range; more points narrow it by Scott's rule."""


def better_ones(
    draw: Draw,
    ranked: Sequence[Configuration],
    others: Sequence[Configuration],
    failures: "Failures",
    random: np.random.Generator,
) -> Iterator[Configuration]:
    """Configurations that are likely among the good ones, without end.

    Args:
        draw: the space's.
        ranked: configurations with a loss, the best first.
        others: those that failed, or that still run: nothing like them is wanted.
        failures: what will hardly run is hardly good.
        random: decides all.
    """
    number_good = min(math.ceil(GOOD_SHARE * len(ranked)), MOST_GOOD)
    good, bad = Mixture(ranked[:number_good]), Mixture([*ranked[number_good:], *others])
    while True:
        made = [good.draw(draw, random) for _ in range(CANDIDATES)]
        runs = np.log1p(-failures.chances(made))
        yield made[int(np.argmax(good.log_densities(made) - bad.log_densities(made) + runs))]


class Failures:
    """How likely a configuration cannot be run, from those that failed and those that ran."""

    def __init__(self, failed: Sequence[Configuration], ran: Sequence[Configuration]) -> None:
        self._failed, self._ran = Mixture(failed), Mixture(ran)
        self._log_odds = math.log(len(failed) / max(len(ran), 1)) if failed else -math.inf

    def chances(self, made: Sequence[Configuration]) -> FloatArray:
        """Of each configuration, (M,), in [0, 1); 0 as long as nothing failed."""
        if self._log_odds == -math.inf:
            return np.zeros(len(made))
        odds = self._log_odds + self._failed.log_densities(made) - self._ran.log_densities(made)
        chances: FloatArray = np.minimum(expit(odds), 1 - 1e-9)
        return chances


class Mixture:
    """A density over configurations: a kernel round each that is given, and one that is flat."""

    def __init__(self, centres: Sequence[Configuration]) -> None:
        self._centres = centres
        self._known_shares: dict[str, tuple[BaseDistribution, FloatArray]] = {}
        axes = max((len(centre.params) for centre in centres), default=1)
        count = max(len(centres), 1)
        self._width = max(WIDEST * count ** (-1 / (axes + 4)), 1 / min(100, count + 2))

    def draw(self, draw: Draw, random: np.random.Generator) -> Configuration:
        """A configuration from the density."""
        kernel = int(random.integers(len(self._centres) + 1))
        centre = self._centres[kernel] if kernel < len(self._centres) else None

        def choose(name: str, distribution: BaseDistribution) -> Any:
            if centre is None or not alike(centre.distributions.get(name), distribution):
                return at_share(distribution, random.random())
            if isinstance(distribution, CategoricalDistribution):
                if random.random() < self._same(distribution):
                    return centre.params[name]
                return at_share(distribution, random.random())
            return at_share(distribution, self._near(centre.shares[name], random))

        return drawn_by(draw, choose)

    def log_densities(self, made: Sequence[Configuration]) -> FloatArray:
        """Logarithm of the density at configurations, (M,), up to what only their own parameters decide."""
        total = np.zeros((len(made), len(self._centres) + 1))
        for name in dict.fromkeys(name for configuration in made for name in configuration.params):
            rows = [row for row, configuration in enumerate(made) if name in configuration.params]
            distribution = made[rows[0]].distributions[name]
            shares = np.array([made[row].shares[name] for row in rows])
            total[rows, :-1] += self._log_kernels(name, distribution, shares)
        highest = total.max(axis=1)
        result: FloatArray = highest + np.log(np.exp(total - highest[:, None]).mean(axis=1))
        return result

    def _log_kernels(self, name: str, distribution: BaseDistribution, shares: FloatArray) -> FloatArray:
        """How likely each centre makes each share, against a flat density, (M, N); 0 where a centre knows nothing."""
        centres = self._shares(name, distribution)
        if isinstance(distribution, CategoricalDistribution):
            same, number = self._same(distribution), len(distribution.choices)
            other = (1 - same) / number
            kernels = np.log(number * np.where(shares[:, None] == centres, same + other, other))
        else:
            mass = ndtr((1 - centres) / self._width) - ndtr(-centres / self._width)
            kernels = -0.5 * ((shares[:, None] - centres) / self._width) ** 2
            kernels -= np.log(self._width * math.sqrt(2 * math.pi) * mass)
        return np.where(np.isnan(centres), 0.0, kernels)

    def _shares(self, name: str, distribution: BaseDistribution) -> FloatArray:
        """Where the centres' values lie, (N,); NaN of one that has none."""
        if name not in self._known_shares or not alike(self._known_shares[name][0], distribution):
            own = [alike(centre.distributions.get(name), distribution) for centre in self._centres]
            shares = [c.shares[name] if is_own else np.nan for c, is_own in zip(self._centres, own, strict=True)]
            self._known_shares[name] = distribution, np.array(shares)
        return self._known_shares[name][1]

    def _same(self, distribution: CategoricalDistribution) -> float:
        """How surely a kernel keeps its centre's choice; else it takes any."""
        count = max(len(self._centres), 1)
        return count / (count + cells(distribution))

    def _near(self, centre: float, random: np.random.Generator) -> float:
        """A share near another: a normal distribution cut at the ends."""
        low, high = ndtr(-centre / self._width), ndtr((1 - centre) / self._width)
        moved = centre + self._width * ndtri(low + (high - low) * random.random())
        return float(min(max(moved, 0.0), np.nextafter(1.0, 0.0)))

"""New configurations: the sampler's, a share of evenly spread ones, and never one that was tried already.

In: a space's `draw`, and the trials that ended. Out: configurations. Source: BOHB (Falkner et al. 2018): a model of the
highest rung with enough results, and a third of configurations that it has no say in; here these are points of a
scrambled Sobol sequence instead of independent ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy.stats import qmc

from ichsearch.search.drawing import Configuration, Draw, chosen_by, drawn_by
from ichsearch.search.history import History, known
from ichsearch.search.near import Neighbourhood
from ichsearch.search.parzen import propose_better

Sampler = Literal["tpe", "random", "qmc"]
FEWEST_RESULTS: Final = 10
"""The model of a rung needs this many finished trials: Optuna's own number of start-up trials."""
MODEL_ATTEMPTS: Final = 10
SPREAD_ATTEMPTS: Final = 200
"""If so many evenly spread points give nothing new, the space is as good as exhausted."""


@dataclass(frozen=True)
class Proposal:
    """A new configuration, and which evenly spread point it came from, if it did."""

    configuration: Configuration
    point: int | None


class Proposer:
    """Proposes configurations; it knows what the history knows: the same history, the same proposal."""

    def __init__(
        self,
        draw: Draw,
        names: Sequence[str],
        history: History,
        *,
        sampler: Sampler,
        seed: int,
        random_share: float,
        allowed: Callable[[Configuration], bool] = lambda configuration: True,
        first: Sequence[dict[str, Any]] = (),
        grid: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        self._draw, self._names, self._history = draw, list(names), history
        self._sampler, self._seed, self._random_share = sampler, seed, random_share
        self._allowed, self._first = allowed, list(first)
        self._grid = None if grid is None else list(grid)
        self._known, self._seen = Neighbourhood(), 0

    def propose(self, number: int) -> Proposal | None:
        """The configuration of trial `number`; None when everything that the space can propose has been tried."""
        if self._grid is not None:
            return self._listed(self._grid)
        if self._first and (listed := self._listed(self._first)) is not None:
            return listed
        random = np.random.default_rng([self._seed, number])
        if self._sampler == "tpe" and random.random() >= self._random_share and (ranked := self._ranked()):
            for _ in range(MODEL_ATTEMPTS):
                if self._is_new(made := propose_better(self._draw, *ranked, random)):
                    return Proposal(made, None)
        return self._independent(random) if self._sampler == "random" else self._spread()

    def _listed(self, wanted: Sequence[dict[str, Any]]) -> Proposal | None:
        """The first configuration of a list that was not tried; what it leaves open comes from a spread point."""
        for place, values in enumerate(wanted):
            point = next(self._points(place))
            made = drawn_by(self._draw, chosen_by(dict(zip(self._names, point, strict=True)), values))
            if self._is_new(made):
                return Proposal(made, None)
        return None

    def _ranked(self) -> tuple[list[Configuration], list[Configuration]] | None:
        """Of the highest rung with enough results: configurations, best first, and those without hope."""
        for epochs in sorted({entry.epochs for entry in self._history.entries.values()}, reverse=True):
            finished = self._history.finished(epochs)
            if len(finished) >= FEWEST_RESULTS:
                others = [*self._history.failed(), *self._history.running(epochs)]
                return [known(entry) for entry in finished], [known(entry) for entry in others]
        return None

    def _spread(self) -> Proposal | None:
        start = max((entry.point + 1 for entry in self._history.roots() if entry.point is not None), default=0)
        for place, point in enumerate(self._points(start), start=start):
            made = drawn_by(self._draw, chosen_by(dict(zip(self._names, point, strict=True))))
            if self._is_new(made):
                return Proposal(made, place)
        return None

    def _points(self, first: int) -> Iterator[list[float]]:
        """Points of a scrambled Sobol sequence, (parameters,) in [0, 1)."""
        sequence = qmc.Sobol(len(self._names), rng=np.random.default_rng(self._seed))
        if first:
            sequence.fast_forward(first)
        for _ in range(SPREAD_ATTEMPTS):
            yield sequence.random(1)[0].tolist()

    def _independent(self, random: np.random.Generator) -> Proposal | None:
        for _ in range(SPREAD_ATTEMPTS):
            point = dict(zip(self._names, random.random(len(self._names)).tolist(), strict=True))
            if self._is_new(made := drawn_by(self._draw, chosen_by(point))):
                return Proposal(made, None)
        return None

    def _is_new(self, made: Configuration) -> bool:
        entries = list(self._history.entries.values())
        for entry in entries[self._seen :]:
            if entry.configuration is not None:
                self._known.add(entry.configuration)
        self._seen = len(entries)
        return self._allowed(made) and not self._known.has(made)

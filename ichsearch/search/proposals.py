"""New configurations: the sampler's, a share of evenly spread ones, and never one that was tried already.

In: a space's `draw`, and the trials that ended. Out: configurations. Source: BOHB (Falkner et al. 2018): a model of the
highest rung with enough results, and a third of configurations that it has no say in; here these are points of a
scrambled Sobol sequence instead of independent ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import numpy as np
from scipy.stats import qmc

from ichsearch.search.drawing import Configuration, Draw, Drawn, chosen_by, drawn_by, has_values
from ichsearch.search.history import History, known
from ichsearch.search.near import Neighbourhood
from ichsearch.search.parzen import Failures, FloatArray, better_ones

Sampler = Literal["tpe", "random", "qmc"]
FEWEST_RESULTS: Final = 10
"""The model of a rung needs so many trials that ended: Optuna's own number of start-up trials."""
MODEL_ATTEMPTS: Final = 20
"""A model that insists for half of them may then come nearer and nearer to what was tried."""
SPREAD_ATTEMPTS: Final = 256
"""So many points are looked at for one away from all that was tried."""


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
        first: Sequence[Drawn] = (),
        grid: Iterable[Drawn] | None = None,
        combinations: Callable[[], Iterable[Drawn]] = tuple,
    ) -> None:
        self._draw, self._names, self._history = draw, list(names), history
        self._sampler, self._seed, self._random_share = sampler, seed, random_share
        self._allowed, self._combinations = allowed, combinations
        self._is_grid = grid is not None
        self._listed = self._completed(first if grid is None else grid)
        self._next_listed = next(self._listed, None)
        self._tried, self._seen = Neighbourhood(), 0

    def propose(self, number: int) -> Proposal | None:
        """The configuration of trial `number`; None when everything that the space can propose has been tried."""
        if (listed := self.listed()) is not None or self._is_grid:
            return listed
        return self._sampled(number) or self._left_over(number)

    def listed(self) -> Proposal | None:
        """The next of those that the space asks for: of a grid, or of its first trials."""
        self._look()
        while self._next_listed is not None and self._tried.has(self._next_listed):
            self._next_listed = next(self._listed, None)
        return None if self._next_listed is None else Proposal(self._next_listed, None)

    def _look(self) -> None:
        """Know what has started since."""
        for entry in islice(self._history.entries.values(), self._seen, None):
            if self._history.rung_of(entry) is not None:
                self._tried.add(known(entry))
        self._seen = len(self._history.entries)

    def _sampled(self, number: int) -> Proposal | None:
        random = np.random.default_rng([self._seed, number])
        if self._sampler == "tpe":
            return self._modelled(random) if random.random() >= self._random_share else self._spread(random)
        if self._sampler == "random":
            return self._away((None, point) for point in random.random((SPREAD_ATTEMPTS, len(self._names))))
        return self._spread(random)

    def _modelled(self, random: np.random.Generator) -> Proposal | None:
        if (ranked := self._ranked()) is not None:
            better = better_ones(self._draw, *ranked, self._failures(), random)
            for attempt, made in enumerate(islice(better, MODEL_ATTEMPTS)):
                distance = min(1.0, 2 - 2 * attempt / MODEL_ATTEMPTS)
                if self._allowed(made) and not self._tried.is_near(made, distance):
                    return Proposal(made, None)
        return self._spread(random)

    def _spread(self, random: np.random.Generator) -> Proposal | None:
        """A point of the sequence; with a model, the rarer the more likely it fails."""
        start = max((entry.point + 1 for entry in self._history.roots() if entry.point is not None), default=0)
        points = enumerate(self._points(start), start=start)
        if self._sampler != "tpe":
            return self._away(points)
        failures = self._failures()
        return self._away(points, lambda made: random.random() < failures.chances([made])[0])

    def _away(
        self,
        points: Iterable[tuple[int | None, FloatArray]],
        is_left_out: Callable[[Configuration], bool] = lambda made: False,
    ) -> Proposal | None:
        """A point away from all that was tried; in a space that is full of these, one that is none of them."""
        beside: Proposal | None = None
        for place, point in points:
            made = drawn_by(self._draw, chosen_by(self._named(point)))
            if not self._allowed(made):
                continue
            if not self._tried.is_near(made) and not is_left_out(made):
                return Proposal(made, place)
            if beside is None and not self._tried.has(made):
                beside = Proposal(made, place)
        return beside

    def _left_over(self, number: int) -> Proposal | None:
        """What points miss in a space of which little is left, or little is allowed."""
        completed = self._completed(self._combinations(), number)
        return next((Proposal(made, None) for made in completed if not self._tried.has(made)), None)

    def _completed(self, wanted: Iterable[Drawn], first_point: int = 0) -> Iterator[Configuration]:
        """Configurations of which some values are given; what these leave open comes from the points, in turn."""
        points = [self._named(point) for point in self._points(first_point)]
        for place, values in enumerate(wanted):
            turned = (points[(place + index) % len(points)] for index in range(len(points)))
            candidates = (drawn_by(self._draw, chosen_by(point, values)) for point in turned)
            yield from islice(
                (made for made in candidates if has_values(made.drawn, values) and self._allowed(made)), 1
            )

    def _points(self, first: int) -> FloatArray:
        """Points of a scrambled Sobol sequence, (points, parameters) in [0, 1)."""
        sequence = qmc.Sobol(len(self._names), rng=np.random.default_rng(self._seed))
        if first:
            sequence.fast_forward(first)
        points: FloatArray = sequence.random(SPREAD_ATTEMPTS)
        return points

    def _named(self, point: FloatArray) -> dict[str, float]:
        return dict(zip(self._names, point.tolist(), strict=True))

    def _failures(self) -> Failures:
        ran = [entry for entry in self._history.roots() if entry.state == "finished" and entry.configuration]
        return Failures([known(entry) for entry in self._history.failed()], [known(entry) for entry in ran])

    def _ranked(self) -> tuple[list[Configuration], list[Configuration]] | None:
        """Of the highest rung with enough results: configurations, best first, and those without hope."""
        for epochs in self._history.visited():
            finished = self._history.finished(epochs)
            ended = sum(entry.state != "running" for entry in self._history.at(epochs))
            if finished and ended >= FEWEST_RESULTS:
                others = [*self._history.failed(), *self._history.running(epochs)]
                return [known(entry) for entry in finished], [known(entry) for entry in others]
        return None

"""Drawing a configuration without a sampler: from a point of the unit cube, or from values that are known.

In: a space's `draw`, and where its values come from. Out: parameters as the journal names them, with distributions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Drawn = dict[str, Any]


class Suggests(Protocol):
    """What a space asks for the values of its parameters: an Optuna trial, or a `ChosenTrial`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number of the range."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number of the range."""


Draw = Callable[[Suggests], Drawn]
Choose = Callable[[str, BaseDistribution], Any]


@dataclass(frozen=True)
class Configuration:
    """What a space drew: the values by the names of its parameters, and as a journal keeps them."""

    drawn: Drawn
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]

    @cached_property
    def shares(self) -> dict[str, float]:
        """Where each value lies in its distribution, in [0, 1]."""
        return {name: share_of(self.distributions[name], value) for name, value in self.params.items()}


@dataclass
class ChosenTrial:
    """A trial whose values `choose` gives, one suggestion at a time."""

    choose: Choose
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self._suggest(name, CategoricalDistribution(choices))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        """A number of the range."""
        return self._suggest(name, FloatDistribution(low, high, step=step, log=log))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """A whole number of the range."""
        return self._suggest(name, IntDistribution(low, high, step=step, log=log))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        value = self.choose(name, distribution)
        self.params[name], self.distributions[name] = value, distribution
        return value


def drawn_by(draw: Draw, choose: Choose) -> Configuration:
    """The configuration whose values `choose` gives."""
    trial = ChosenTrial(choose)
    return Configuration(draw(trial), trial.params, trial.distributions)


def parameter_of(name: str) -> str:
    """The parameter behind a journal's name: `batch_size` of `batch_size[backbone=densenet121]`."""
    return name.partition("[")[0].removesuffix("_factor")


def replayed(draw: Draw, values: Mapping[str, Any]) -> Configuration | None:
    """The configuration that has just these values; None if the space cannot propose it."""

    def choose(name: str, distribution: BaseDistribution) -> Any:
        value = values[parameter_of(name)]
        if not distribution._contains(distribution.to_internal_repr(value)):
            raise ValueError(f"{name} = {value!r} is outside {distribution}")
        return value

    try:
        made = drawn_by(draw, choose)
    except (KeyError, ValueError, TypeError):
        return None
    return made if all(values.get(name) == value for name, value in made.drawn.items()) else None


def chosen_by(point: Mapping[str, float], fixed: Mapping[str, Any] | None = None) -> Choose:
    """Values from a point of the unit cube, a coordinate a parameter; those in `fixed` as they stand there."""
    known = fixed or {}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        parameter = parameter_of(name)
        return known[parameter] if parameter in known else at_share(distribution, point[parameter])

    return choose


def cells(distribution: BaseDistribution) -> int:
    """How many values a distribution has; 0 for one of real numbers."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, FloatDistribution) and distribution.step:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    if isinstance(distribution, IntDistribution):
        return int((distribution.high - distribution.low) // distribution.step) + 1
    return 0


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """The value at `share`, in [0, 1), of a distribution: each value of a finite one has its part of the interval."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution) and distribution.log:
        return min(math.floor((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** share + 0.5), high)
    if number := cells(distribution):
        assert distribution.step is not None, "of the finite ones only whole numbers on a log scale have none"
        return low + int(share * number) * distribution.step
    return low * (high / low) ** share if distribution.log else low + (high - low) * share


def share_of(distribution: BaseDistribution, value: Any) -> float:
    """Where a value lies in its distribution, in [0, 1]; the middle of its part of a finite one."""
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution) and distribution.log:
        low, high = low - 0.5, high + 0.5
    elif number := cells(distribution):
        assert distribution.step is not None, "as above"
        low, high, value = -0.5, number - 0.5, round((value - low) / distribution.step)
    share: float = math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low)
    return share

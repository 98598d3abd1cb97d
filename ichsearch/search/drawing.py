"""Drawing a configuration without a sampler: from a point of the unit cube, or from values that are known.

In: a space's `draw`, and where its values come from. Out: parameters as the journal names them, with distributions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
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
        return self._suggest(name, _choice(*choices))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        """A number of the range."""
        return self._suggest(name, _float(low, high, step, log))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        """A whole number of the range."""
        return self._suggest(name, _int(low, high, step, log))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        value = self.choose(name, distribution)
        self.params[name], self.distributions[name] = value, distribution
        return value


@lru_cache(maxsize=None, typed=True)
def _choice(*choices: Any) -> CategoricalDistribution:
    """One object for all configurations of a space: thousands are told apart by identity in no time."""
    return CategoricalDistribution(choices)


@cache
def _float(low: float, high: float, step: float | None, log: bool) -> FloatDistribution:
    return FloatDistribution(low, high, step=step, log=log)


@cache
def _int(low: int, high: int, step: int, log: bool) -> IntDistribution:
    return IntDistribution(low, high, step=step, log=log)


def alike(one: BaseDistribution | None, other: BaseDistribution) -> bool:
    """Whether two distributions are the same; Optuna's own comparison is slow."""
    return one is other or one == other


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
        if (value := own_value(distribution, values[parameter_of(name)])) is None:
            raise ValueError(f"{name} = {values[parameter_of(name)]!r} is outside {distribution}")
        return value

    try:
        made = drawn_by(draw, choose)
    except (KeyError, ValueError):
        return None
    return made if has_values(made.drawn, {name: values.get(name) for name in made.drawn}) else None


def chosen_by(point: Mapping[str, float], wanted: Mapping[str, Any] | None = None) -> Choose:
    """Values from a point of the unit cube, a coordinate a parameter; wanted ones wherever they can be had."""
    known = wanted or {}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        parameter = parameter_of(name)
        value = own_value(distribution, known[parameter]) if parameter in known else None
        return at_share(distribution, point[parameter]) if value is None else value

    return choose


def has_values(drawn: Drawn, wanted: Mapping[str, Any]) -> bool:
    """Whether these values are among those drawn, numbers to the precision of a step's rounding."""
    return all(name in drawn and _as_good_as(drawn[name], value) for name, value in wanted.items())


def _as_good_as(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


def own_value(distribution: BaseDistribution, value: Any) -> Any:
    """A value as the distribution itself would give it: 0 for a configuration's 0.0; None if it has none like it."""
    try:
        internal = distribution.to_internal_repr(value)
    except (ValueError, TypeError):
        return None
    if not distribution._contains(internal):
        return None
    if isinstance(distribution, FloatDistribution) and distribution.step:
        return at_share(distribution, share_of(distribution, value))
    return distribution.to_external_repr(internal)


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
        value: float = math.floor((low - 0.5) * ((high + 0.5) / (low - 0.5)) ** share + 0.5)
    elif number := cells(distribution):
        assert distribution.step is not None, "of the finite ones only whole numbers on a log scale have none"
        value = low + int(share * number) * distribution.step
    else:
        value = low * (high / low) ** share if distribution.log else low + (high - low) * share
    return min(max(value, low), high)


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

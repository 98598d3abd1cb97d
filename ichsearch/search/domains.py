"""What a parameter may be drawn from: a constant, a choice, a range of numbers, factors round the LR finder's rate.

In: the values of a space file. Out: domains that draw themselves from an Optuna trial, and list their values.
"""

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, model_validator

from ichsearch.search.drawing import Suggests

Scalar = bool | int | float | str


def is_scalar(value: Any) -> Any:
    """The value, if it is a number, text, true or false.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Scalar):
        raise ValueError(f"a value must be a number, text, true or false, but got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:80]


def _is_values(values: Any) -> Any:
    if isinstance(values, list) and not values:
        raise ValueError("a list of values must not be empty; write one value or several")
    return [is_scalar(value) for value in values] if isinstance(values, list) else is_scalar(values)


Value = Annotated[Scalar, PlainValidator(is_scalar)]
Values = Annotated[Scalar | list[Scalar], PlainValidator(_is_values)]


def as_list(values: Any) -> list[Any]:
    """One value or several, as several."""
    return values if isinstance(values, list) else [values]


def same(one: Scalar, other: Scalar) -> bool:
    """Whether two values are the same: 16 and 16.0 are, 0.3 and the third step of 0.1 are, 1 and true are not."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other and isinstance(one, bool) == isinstance(other, bool)


class _Domain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def draw(self, trial: Suggests, name: str) -> Scalar:
        """A value proposed by the sampler, which knows it as `name`."""
        raise NotImplementedError

    def bounds(self) -> list[Any]:
        """Values that bound all others: if these are allowed, all are."""
        raise NotImplementedError

    def count(self) -> int | None:
        """How many values there are; None for a continuous range."""
        raise NotImplementedError

    def values(self) -> Iterator[Scalar]:
        """All values of a domain that has a count."""
        raise NotImplementedError

    def contains(self, value: Scalar) -> bool:
        """Whether the sampler could propose the value."""
        return any(same(value, own) for own in self.values())

    def asked_as(self, name: str) -> str:
        """What the sampler calls the parameter `name`."""
        return name


class Constant(_Domain):
    """One value, never varied."""

    value: Value

    def draw(self, trial: Suggests, name: str) -> Scalar:  # noqa: ARG002 - all domains draw alike
        """The value; nothing is asked of the sampler."""
        return self.value

    def bounds(self) -> list[Any]:
        """The value."""
        return [self.value]

    def count(self) -> int:
        """One."""
        return 1

    def values(self) -> Iterator[Scalar]:
        """The value."""
        yield self.value


class Choice(_Domain):
    """One of several values without order."""

    choice: list[Value] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.choice)) < len(self.choice):
            raise ValueError(f"the values of a choice must differ, but got {self.choice}")
        return self

    def draw(self, trial: Suggests, name: str) -> Scalar:
        """A value proposed by the sampler."""
        value: Scalar = trial.suggest_categorical(name, self.choice)
        return value

    def bounds(self) -> list[Any]:
        """All values."""
        return list(self.choice)

    def count(self) -> int:
        """How many values there are."""
        return len(self.choice)

    def values(self) -> Iterator[Scalar]:
        """All values."""
        yield from self.choice


class IntRange(_Domain):
    """Whole numbers from low to high, both included."""

    int_: Annotated[tuple[int, int], Field(strict=False)] = Field(alias="int")
    step: Annotated[int, Field(ge=1)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(*self.int_, self.step, log=self.log)
        return self

    def draw(self, trial: Suggests, name: str) -> int:
        """A value proposed by the sampler."""
        return trial.suggest_int(name, *self.int_, step=self.step or 1, log=self.log)

    def bounds(self) -> list[Any]:
        """Lowest and highest value."""
        return list(self.int_)

    def _range(self) -> range:
        return range(self.int_[0], self.int_[1] + 1, self.step or 1)

    def count(self) -> int:
        """How many values there are."""
        return len(self._range())

    def values(self) -> Iterator[Scalar]:
        """All values, rising."""
        yield from self._range()

    def contains(self, value: Scalar) -> bool:
        """Whether the sampler could propose the value."""
        return isinstance(value, int) and not isinstance(value, bool) and value in self._range()


class FloatRange(_Domain):
    """Numbers from low to high, both included."""

    float_: Annotated[tuple[float, float], Field(strict=False)] = Field(alias="float")
    step: Annotated[float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(*self.float_, self.step, log=self.log)
        return self

    def draw(self, trial: Suggests, name: str) -> float:
        """A value proposed by the sampler."""
        return trial.suggest_float(name, *self.float_, step=self.step, log=self.log)

    def bounds(self) -> list[Any]:
        """Lowest and highest value."""
        return list(self.float_)

    def count(self) -> int | None:
        """How many values there are; None for a continuous range."""
        return None if self.step is None else round((self.float_[1] - self.float_[0]) / self.step) + 1

    def values(self) -> Iterator[Scalar]:
        """All values, rising, as the sampler computes them."""
        assert self.step is not None, "a continuous range has no list of values"
        for index in range(self.count() or 0):
            yield min(self.float_[0] + index * self.step, self.float_[1])

    def contains(self, value: Scalar) -> bool:
        """Whether the sampler could propose the value."""
        if isinstance(value, bool | str) or not self.float_[0] <= value <= self.float_[1]:
            return False
        return self.step is None or _is_whole((value - self.float_[0]) / self.step)


def _is_whole(number: float) -> bool:
    """To the precision that Optuna grants."""
    return abs(number - round(number)) < 1e-8


def _check_range(low: float, high: float, step: float | None, *, log: bool) -> None:
    if low >= high:
        raise ValueError(f"low < high must hold, but got [{low}, {high}]; a constant is written without a range")
    if log and low <= 0:
        raise ValueError(f"a log range must be above 0, but starts at {low}; raise low")
    if log and step is not None:
        raise ValueError(f"a range has log or step, not both, but got log: true and step: {step}; remove one")
    if step is not None and (rest := (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step))):
        raise ValueError(
            f"the steps of a range must end at high, but steps of {step} from {low} miss {high}; "
            f"write high as {Decimal(str(high)) - rest}, or another step"
        )


class FactorChoice(_Domain):
    """Some factors."""

    choice: list[float] = Field(min_length=1)


class Factor(_Domain):
    """A factor round the LR finder's suggestion: one prior serves all backbones.

    One number is a constant; two are a range, drawn on a log scale; a choice lists its values.
    """

    factor: float | Annotated[tuple[float, float], Field(strict=False)] | FactorChoice

    @model_validator(mode="before")
    @classmethod
    def _one_of_three(cls, value: Any) -> Any:
        factor = value.get("factor") if isinstance(value, Mapping) else None
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not (number or isinstance(factor, list | tuple | FactorChoice | Mapping)):
            raise ValueError(
                f"a factor must be a number, a range [low, high] or {{choice: [...]}}, but got {_shown(factor)}"
            )
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.factor, tuple):
            _check_range(*self.factor, None, log=True)
        return self

    def draw(self, trial: Suggests, name: str) -> float:
        """A factor proposed by the sampler."""
        if isinstance(self.factor, tuple):
            return trial.suggest_float(self.asked_as(name), *self.factor, log=True)
        if isinstance(self.factor, FactorChoice):
            return float(trial.suggest_categorical(self.asked_as(name), self.factor.choice))
        return self.factor

    def bounds(self) -> list[Any]:
        """Lowest and highest factor, or all of a choice."""
        if isinstance(self.factor, tuple):
            return list(self.factor)
        return list(self.values())

    def count(self) -> int | None:
        """How many values there are; None for a range."""
        return None if isinstance(self.factor, tuple) else len(self.bounds())

    def values(self) -> Iterator[Scalar]:
        """All factors of a choice, or the constant one."""
        assert not isinstance(self.factor, tuple), "a range has no list of values"
        yield from self.factor.choice if isinstance(self.factor, FactorChoice) else [self.factor]

    def contains(self, value: Scalar) -> bool:
        """Whether the sampler could propose the factor."""
        if isinstance(self.factor, tuple):
            return not isinstance(value, bool | str) and self.factor[0] <= value <= self.factor[1]
        return super().contains(value)

    def asked_as(self, name: str) -> str:
        """What the sampler calls the parameter `name`."""
        return f"{name}_factor"


class Removed(_Domain):
    """Not drawn: a trial's default counts."""

    remove: Literal[True]


KINDS: Final = {
    "choice": Choice, "int": IntRange, "float": FloatRange, "factor": Factor, "value": Constant, "remove": Removed,
}  # fmt: skip
NO_DOMAIN: Final = "a parameter must be a constant, or have one of choice, int, float, factor"


def _kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return next((kind for kind in KINDS if kind in value), None)
    return next((kind for kind, domain in KINDS.items() if isinstance(value, domain)), None)


DrawnDomain = (
    Annotated[Constant, Tag("value")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[IntRange, Tag("int")]
    | Annotated[FloatRange, Tag("float")]
    | Annotated[Factor, Tag("factor")]
)
Domain = Annotated[DrawnDomain, Discriminator(_kind, custom_error_type="domain", custom_error_message=NO_DOMAIN)]
DomainOrRemoved = Annotated[
    DrawnDomain | Annotated[Removed, Tag("remove")],
    Discriminator(
        _kind,
        custom_error_type="domain",
        custom_error_message="a case must have one of choice, int, float, factor, value, remove",
    ),
]

"""What a parameter of a space may be: a constant, a choice, a range of numbers, a factor; and on what that depends.

In: the values of a space file. Out: domains that draw themselves from an Optuna trial.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

import optuna
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Scalar = bool | int | float | str


class _Domain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Domain):
    """One value, never varied."""

    value: Scalar

    def draw(self, trial: optuna.Trial, name: str) -> Scalar:  # noqa: ARG002 - all domains draw alike
        """The value; nothing is asked of the sampler."""
        return self.value

    def extremes(self) -> list[Scalar]:
        """Values that bound all others: if these are allowed, all are."""
        return [self.value]


class Choice(_Domain):
    """One of several values without order."""

    choice: Annotated[list[Scalar], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(map(repr, self.choice))) < len(self.choice):
            raise ValueError(f"the values of a choice must differ, but got {self.choice}")
        return self

    def draw(self, trial: optuna.Trial, name: str) -> Scalar:
        """A value proposed by the sampler."""
        value = trial.suggest_categorical(name, self.choice)
        assert value is not None, "a choice holds no null"
        return value

    def extremes(self) -> list[Scalar]:
        """All values."""
        return list(self.choice)


class _Range(_Domain):
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.extremes()
        if low >= high:
            raise ValueError(f"low < high must hold, but got [{low}, {high}]; a constant is written without a range")
        if self.log and low <= 0:
            raise ValueError(f"a log range must be above 0, but starts at {low}")
        if self.log and getattr(self, "step", None) is not None:
            raise ValueError("a range has log or step, not both; remove one")
        return self

    def extremes(self) -> list[Any]:
        """Lowest and highest value."""
        raise NotImplementedError


class IntRange(_Range):
    """Whole numbers from low to high, both included."""

    int_: tuple[int, int] = Field(alias="int")
    step: Annotated[int, Field(ge=1)] | None = None

    def draw(self, trial: optuna.Trial, name: str) -> int:
        """A value proposed by the sampler."""
        return trial.suggest_int(name, *self.int_, step=self.step or 1, log=self.log)

    def extremes(self) -> list[Any]:
        """Lowest and highest value."""
        return list(self.int_)


class FloatRange(_Range):
    """Numbers from low to high, both included."""

    float_: tuple[float, float] = Field(alias="float")
    step: Annotated[float, Field(gt=0)] | None = None

    def draw(self, trial: optuna.Trial, name: str) -> float:
        """A value proposed by the sampler."""
        return trial.suggest_float(name, *self.float_, step=self.step, log=self.log)

    def extremes(self) -> list[Any]:
        """Lowest and highest value."""
        return list(self.float_)


class Factor(_Range):
    """A factor round the LR finder's suggestion, drawn on a log scale: one prior serves all backbones."""

    factor: tuple[float, float]
    log: Literal[True] = True

    def draw(self, trial: optuna.Trial, name: str) -> float:
        """A factor proposed by the sampler."""
        return trial.suggest_float(f"{name}_factor", *self.factor, log=True)

    def extremes(self) -> list[Any]:
        """Lowest and highest factor."""
        return list(self.factor)


NO_DOMAIN: Final = "a parameter must be a constant, or have one of choice, int, float, factor"
KINDS: Final = {"choice": Choice, "int": IntRange, "float": FloatRange, "factor": Factor, "value": Constant}


def _kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return next((kind for kind in KINDS if kind in value), None)
    return next((kind for kind, domain in KINDS.items() if isinstance(value, domain)), None)


Domain = Annotated[
    Annotated[Constant, Tag("value")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[IntRange, Tag("int")]
    | Annotated[FloatRange, Tag("float")]
    | Annotated[Factor, Tag("factor")],
    Discriminator(
        _kind,
        custom_error_type="domain",
        custom_error_message=NO_DOMAIN,
    ),
]


class Case(_Domain):
    """Another domain for when other parameters have certain values."""

    condition: dict[str, Scalar | list[Scalar]] = Field(min_length=1)
    domain: Domain

    def holds(self, drawn: Mapping[str, Scalar]) -> bool:
        """Whether all parameters of the condition have one of their values."""
        return all(drawn[name] in as_list(values) for name, values in self.condition.items())

    @property
    def label(self) -> str:
        """Tells this case's parameter from the plain one: `backbone=densenet121`."""
        parts = (f"{name}={'|'.join(map(str, as_list(values)))}" for name, values in self.condition.items())
        return ",".join(parts)


class Parameter(_Domain):
    """A domain, with other ones under conditions; the first that holds counts."""

    domain: Domain
    when: list[Case] = []

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        """`3` and `{choice: [1, 2], when: [{if: {a: b}, choice: [3]}]}` as they stand in a file."""
        if isinstance(value, Mapping) and "domain" in value:
            return value
        if not isinstance(value, Mapping):
            if not isinstance(value, Scalar):
                raise ValueError(f"{NO_DOMAIN}, but got {value!r}; several values are written {{choice: [...]}}")
            return {"domain": {"value": value}}
        rest = {key: item for key, item in value.items() if key != "when"}
        cases = value.get("when", [])
        if not isinstance(cases, list) or not all(isinstance(case, Mapping) and "if" in case for case in cases):
            raise ValueError("when must be a list of cases, each with `if` and a domain")
        return {
            "domain": rest,
            "when": [
                {"condition": case["if"], "domain": {key: item for key, item in case.items() if key != "if"}}
                for case in cases
            ],
        }

    def draw(self, trial: optuna.Trial, name: str, drawn: Mapping[str, Scalar]) -> Scalar:
        """A value, given those of the parameters that this one depends on."""
        for case in self.when:
            if case.holds(drawn):
                return case.domain.draw(trial, f"{name}[{case.label}]")
        return self.domain.draw(trial, name)

    def domains(self) -> list[Any]:
        """All domains that may draw this parameter."""
        return [self.domain, *(case.domain for case in self.when)]

    def domain_for(self, drawn: Mapping[str, Scalar]) -> Any:
        """The domain that draws this parameter, given the others."""
        return next((case.domain for case in self.when if case.holds(drawn)), self.domain)


def as_list(values: Any) -> list[Any]:
    """One value or several, as several."""
    return values if isinstance(values, list) else [values]

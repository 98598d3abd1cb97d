"""The parameters of a space: what each is drawn from, on what that depends, and in which order they are drawn.

In: the `parameters` of a space file. Out: parameters, complete with the defaults of a trial, that draw one another.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ichsearch.data.tasks import Task
from ichsearch.search.domains import (
    NO_DOMAIN,
    Choice,
    Constant,
    Domain,
    DomainOrRemoved,
    Factor,
    Removed,
    Scalar,
    Values,
    as_list,
    same,
)
from ichsearch.search.drawing import Suggests
from ichsearch.search.rules import Location, SpaceRuleError, nearest
from ichsearch.train.config import TrialConfig

SEARCHED: Final = (
    "backbone", "batch_size", "size", "channels", "head", "augment", "augmentations", "min_brain", "imbalance",
    "label_smoothing", "weight_decay", "clip_norm", "precision", "lr_schedule", "rise", "start_divisor", "end_divisor",
    "lr_spread", "frozen_epochs", "lr",
)  # fmt: skip
REQUIRED: Final = ("backbone", "batch_size", "size", "lr")
FACTORS: Final = (0.01, 99.0)
"""With the LR finder's plausible suggestions, 1e-5 to 1, these stay within what a trial takes."""
FINITE: Final = ("backbone", "batch_size", "size", "channels", "head")
"""Parameters that the LR finder runs for each value of: they cannot be ranges."""
TASK: Final = "task"
"""A constant of the run that conditions may be on."""


class Effect(NamedTuple):
    """That a parameter counts only where another one has certain values."""

    of: str
    holds: Callable[[Scalar], bool]
    words: str


_FINE_TUNE: Final = Effect("lr_schedule", lambda value: value == "fine_tune", "lr_schedule is fine_tune")
_ONE_CYCLE: Final = Effect("lr_schedule", lambda value: value == "one_cycle", "lr_schedule is one_cycle")
EFFECTS: Final = {
    "lr_spread": _FINE_TUNE,
    "frozen_epochs": _FINE_TUNE,
    "rise": _ONE_CYCLE,
    "start_divisor": _ONE_CYCLE,
    "end_divisor": _ONE_CYCLE,
    "augmentations": Effect("augment", lambda value: value != 0, "augment is above 0"),
}
"""Where these count; elsewhere they are not drawn, so that the sampler learns nothing from what does nothing."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Case(_Frozen):
    """Another domain for when other parameters have certain values."""

    condition: dict[str, Values] = Field(min_length=1)
    domain: DomainOrRemoved

    def holds(self, drawn: Mapping[str, Scalar]) -> bool:
        """Whether all parameters of the condition have one of their values."""
        return all(
            name in drawn and any(same(drawn[name], value) for value in as_list(values))
            for name, values in self.condition.items()
        )

    @property
    def label(self) -> str:
        """Tells this case's parameter from the plain one: `backbone=densenet121`."""
        parts = (f"{name}={'|'.join(map(str, as_list(values)))}" for name, values in self.condition.items())
        return ",".join(parts)


class Parameter(_Frozen):
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
                shown = "null" if value is None else repr(value)[:80]
                raise ValueError(f"{NO_DOMAIN}, but got {shown}; several values are written {{choice: [...]}}")
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

    def chosen(self, drawn: Mapping[str, Scalar]) -> tuple[Any, str]:
        """The domain that counts, given the parameters that it depends on, and its case's label, if any."""
        return next(((case.domain, f"[{case.label}]") for case in self.when if case.holds(drawn)), (self.domain, ""))

    def named_domains(self, name: str) -> list[tuple[Any, str]]:
        """All domains that may draw this parameter, and what the sampler calls it there."""
        labelled = [(self.domain, ""), *((case.domain, f"[{case.label}]") for case in self.when)]
        return [
            (domain, domain.asked_as(name + label)) for domain, label in labelled if not isinstance(domain, Removed)
        ]

    def domains(self) -> list[Any]:
        """All domains that may draw this parameter."""
        return [domain for domain, _ in self.named_domains("")]


Parameters = Mapping[str, Parameter]


def default_of(name: str) -> Any:
    """A trial's default; for a required parameter there is none."""
    return TrialConfig.model_fields[name].default


def draw_order(parameters: Parameters) -> list[str]:
    """What others depend on before what depends on it."""
    return sorted(parameters, key=lambda name: 2 if name in EFFECTS else bool(parameters[name].when))


def domain_for(parameters: Parameters, name: str, drawn: Mapping[str, Scalar]) -> tuple[Any, str] | None:
    """The domain that draws a parameter, given the ones before it, and its case; None if it is not drawn."""
    effect = EFFECTS.get(name)
    if effect is not None and (effect.of in drawn or domain_for(parameters, effect.of, drawn) is None):
        value = drawn.get(effect.of, default_of(effect.of))
        if not effect.holds(value):
            return None
    domain, label = parameters[name].chosen(drawn)
    return None if isinstance(domain, Removed) else (domain, label)


def draw(parameters: Parameters, trial: Suggests, task: Task) -> dict[str, Scalar]:
    """The values of all parameters that count, as the trial's sampler proposes them."""
    drawn: dict[str, Scalar] = {TASK: task}
    for name in draw_order(parameters):
        if (found := domain_for(parameters, name, drawn)) is not None:
            domain, label = found
            drawn[name] = domain.draw(trial, name + label)
    del drawn[TASK]
    return drawn


def checked(parameters: dict[str, Parameter]) -> dict[str, Parameter]:
    """The parameters, with a trial's defaults for those that the file leaves out.

    Raises:
        SpaceRuleError: a rule is broken, and where.
    """
    for name in parameters:
        if name not in SEARCHED:
            raise SpaceRuleError(("parameters", name), f"unknown parameter {name!r}; {_hint(name)}")
    for name in REQUIRED:
        if name not in parameters:
            raise SpaceRuleError(("parameters",), f"a space must say {name}, but does not; add it (a constant will do)")
    given = dict(parameters)
    for name, parameter in given.items():
        _check_domain(name, parameter.domain, ("parameters", name))
        for index, case in enumerate(parameter.when):
            _check_domain(name, case.domain, ("parameters", name, "when", index))
    full = given | {name: Parameter.model_validate(default_of(name)) for name in SEARCHED if name not in given}
    for name, parameter in given.items():
        _check_conditions(full, name, parameter)
        if not may_count(full, name):
            raise SpaceRuleError(
                ("parameters", name), f"{name} counts only where {EFFECTS[name].words}, which never is; remove it"
            )
    return {name: parameter for name, parameter in full.items() if may_count(full, name)}


def _hint(name: str) -> str:
    return "it is called lr_schedule" if name == "schedule" else nearest(name, SEARCHED)


def may_count(parameters: Parameters, name: str) -> bool:
    """Whether any configuration of the space depends on a parameter."""
    if name not in EFFECTS:
        return True
    controller = parameters[EFFECTS[name].of]
    values = [value for domain in controller.domains() for value in domain.bounds()]
    removed = any(isinstance(case.domain, Removed) for case in controller.when)
    return any(EFFECTS[name].holds(value) for value in [*values, *([default_of(EFFECTS[name].of)] if removed else [])])


def _check_domain(name: str, domain: Any, where: Location) -> None:
    if isinstance(domain, Removed):
        if name in REQUIRED:
            raise SpaceRuleError(
                where, f"{name} has no default, so it cannot be removed, but got remove: true; give a value"
            )
        return
    if isinstance(domain, Factor):
        if name != "lr":
            raise SpaceRuleError(
                where, f"factor is for lr, round the LR finder's suggestion, but stands at {name}; use float"
            )
        if strange := [value for value in domain.bounds() if not FACTORS[0] <= value <= FACTORS[1]]:
            raise SpaceRuleError(where, f"a factor must lie within {list(FACTORS)}, but got {strange[0]}; choose one")
        return
    if name in FINITE and not isinstance(domain, (Choice, Constant)):
        raise SpaceRuleError(
            where, f"{name} must be a constant or a choice, because the LR finder runs once per value of it"
        )
    for value in domain.bounds():
        try:
            value_type(name).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise SpaceRuleError(where, f"{problem}, but got {value!r}; give another value") from None


def value_type(name: str) -> TypeAdapter[Any]:
    """What a trial takes as value of a parameter."""
    info = TrialConfig.model_fields[name]
    annotation: Any = info.annotation
    return TypeAdapter(Annotated[annotation, info])


def _check_conditions(parameters: Parameters, name: str, parameter: Parameter) -> None:
    for index, case in enumerate(parameter.when):
        where: Location = ("parameters", name, "when", index, "if")
        if case.condition in [earlier.condition for earlier in parameter.when[:index]]:
            raise SpaceRuleError(where, "the first case that holds counts, but this one has the `if` of an earlier one")
        for other, values in case.condition.items():
            if other == name:
                raise SpaceRuleError((*where, other), f"a condition must be on another parameter, but {name} is itself")
            if other != TASK and other not in parameters:
                raise SpaceRuleError(
                    (*where, other), f"unknown parameter {other!r}; {nearest(other, (*SEARCHED, TASK))}"
                )
            if other != TASK and (parameters[other].when or other in EFFECTS):
                raise SpaceRuleError(
                    (*where, other),
                    f"a condition must be on a parameter without conditions, but {other} has some; "
                    "say what those depend on instead",
                )
            for value in as_list(values):
                check_occurs(parameters, other, value, (*where, other))


def check_occurs(parameters: Parameters, name: str, value: Scalar, where: Location) -> None:
    """Refuse a value that a parameter, or the task, can never be met at.

    Raises:
        SpaceRuleError: none of its domains has the value, or it is one point of a continuous range.
    """
    if name == TASK:
        if value not in get_args(Task):
            raise SpaceRuleError(where, f"{TASK} must be one of {', '.join(get_args(Task))}, but got {value!r}")
        return
    domains = parameters[name].domains()
    if any(domain.count() is not None and domain.contains(value) for domain in domains):
        return
    if any(domain.count() is None for domain in domains):
        raise SpaceRuleError(
            where, f"{name} is drawn from a continuous range, of which no single value such as {value!r} is met; "
            "give it a step or a choice"
        )  # fmt: skip
    known = [value for domain in domains for value in domain.bounds()]
    raise SpaceRuleError(where, f"{value!r} is no value of {name}; known: {', '.join(map(str, known[:12]))}")

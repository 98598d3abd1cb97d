"""A space: which configurations are searched, how long, by what they are judged, and with what resources.

In: the content of a space file. Out: a validated `Space` that turns Optuna trials into configurations.
"""

import difflib
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Final, Literal, Self, get_args

import optuna
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ichsearch.data.channels import CHANNELS
from ichsearch.data.tasks import Task, task_labels
from ichsearch.errors import ConfigError
from ichsearch.model.backbones import check_backbone
from ichsearch.model.weights import Policy
from ichsearch.phantom.design import Prevalence
from ichsearch.search.domains import Choice, Constant, Factor, Parameter, Scalar, as_list
from ichsearch.search.durations import Duration
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.lr_finder import FEWEST_STEPS, SEARCH_STEPS
from ichsearch.train.metrics import Metric, is_defined

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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(_Section):
    """What one trial takes of a node."""

    cpus_per_trial: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    gpus_per_trial: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"


class LrFinder(_Section):
    """How the LR finder's stage runs."""

    steps: int = Field(SEARCH_STEPS, ge=FEWEST_STEPS, le=1000, description="training steps of one range test")


class PhantomCohort(_Section):
    """The synthetic cohort that a run without `--data` is made on."""

    patients: int = Field(60, ge=5, le=10_000)
    slices: int = Field(16, ge=1, le=256, description="slices a patient")
    seed: int = 0
    hard: bool = Field(False, description="subtle haemorrhages, and what misleads")
    prevalence: Prevalence = "half"
    even_position: bool = Field(False, description="a slice's position tells nothing of its label")


class Space(_Section):
    """A space file, validated."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    task: Task = "multilabel"
    metric: Metric = "auroc_any"
    trials: int = Field(20, ge=1, le=100_000)
    epochs: int = Field(6, ge=1, le=1000, description="length of every trial")
    time_s: Duration | None = Field(None, alias="time", description="wall clock of the run: 90s, 20m, 8h, 1d, seconds")
    device_hours: Annotated[float, Field(gt=0, le=1e7)] | None = Field(None, description="summed over all trials")
    trial_limit_s: Duration | None = Field(None, alias="trial_limit", description="a longer trial is ended")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    split_seed: int = Field(0, ge=0, le=2**31 - 1)
    sampler: Literal["tpe", "random"] = "tpe"
    pretrained: Policy = "auto"
    weights_folder: str | None = None
    max_retries: int = Field(1, ge=0, le=10, description="how often a crashed trial is run again")
    resources: Resources = Resources()
    lr_finder: LrFinder = LrFinder()
    phantom: PhantomCohort = PhantomCohort()
    parameters: dict[str, Parameter]

    @model_validator(mode="after")
    def _parameters_make_sense(self) -> Self:
        for name in self.parameters:
            if name not in SEARCHED:
                near = difflib.get_close_matches(name, SEARCHED, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SEARCHED)}"
                if name in type(self).model_fields:
                    hint = "it belongs beside `parameters`, not below it"
                raise _rule(["parameters", name], f"unknown parameter {name!r}; {hint}")
        for name in REQUIRED:
            if name not in self.parameters:
                raise _rule(["parameters"], f"a space must say {name}, but does not; add it (a constant will do)")
        for name, parameter in self.parameters.items():
            for domain in parameter.domains():
                _check_domain(name, domain)
            self._check_conditions(name, parameter)
        self._check_backbones()
        self._check_whole()
        return self

    def _check_whole(self) -> None:
        """Rules of a trial that bind a parameter to the run."""
        labels = task_labels(self.task)
        if not is_defined(self.metric, labels):
            fitting = ", ".join(metric for metric in get_args(Metric) if is_defined(metric, labels))
            raise _rule(
                ["metric"],
                f"the metric must be defined for task {self.task}, but {self.metric} is not; say one of {fitting}",
            )
        if "fine_tune" not in self._values("lr_schedule"):
            return
        if self.pretrained == "no":
            raise _rule(
                ["parameters", "lr_schedule"],
                "fine_tune freezes a pretrained body, but pretrained is no; say auto or require",
            )
        frozen = max(self._values("frozen_epochs"))
        if frozen >= self.epochs:
            raise _rule(
                ["epochs"],
                f"fine_tune needs more epochs than frozen ones, but has {self.epochs} and {frozen}; raise epochs",
            )

    def _values(self, name: str) -> list[Any]:
        """The values that bound a parameter; a trial's default if the space leaves it alone."""
        if name not in self.parameters:
            return [TrialConfig.model_fields[name].default]
        return [value for domain in self.parameters[name].domains() for value in domain.extremes()]

    def _check_backbones(self) -> None:
        for backbone in self.backbones():
            try:
                self._check_backbone(backbone)
            except ConfigError as error:
                raise _rule(["parameters", "backbone"], str(error)) from None

    def _check_backbone(self, backbone: str) -> None:
        """Raises `ConfigError` if the backbone cannot see an input, or bear a head, that the space can propose."""
        channels = {CHANNELS[name] for name in self._values("channels")}
        for size, number, head in product(self.sizes(), channels, self._values("head")):
            check_backbone(backbone, size, channels=number, head=head)

    def _check_conditions(self, name: str, parameter: Parameter) -> None:
        for case in parameter.when:
            for other, values in case.condition.items():
                where = ["parameters", name, "when"]
                if other not in self.parameters or self.parameters[other].when or other == name:
                    raise _rule(where, f"a condition must be on a parameter without `when`, but {other} is none")
                possible = self.parameters[other].domain.extremes()
                strange = [value for value in as_list(values) if value not in possible]
                if isinstance(self.parameters[other].domain, (Choice, Constant)) and strange:
                    raise _rule(
                        where, f"a condition must be on a value of {other} ({possible}), but {strange[0]!r} is none"
                    )

    def draw(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """The value of every parameter, as the trial's sampler proposes it; `lr` may be a factor."""
        drawn: dict[str, Scalar] = {}
        for name, parameter in sorted(self.parameters.items(), key=lambda item: bool(item[1].when)):
            drawn[name] = parameter.draw(trial, name, drawn)
        return drawn

    def lr_is_factor(self, drawn: dict[str, Scalar]) -> bool:
        """Whether the drawn `lr` must be multiplied by the LR finder's suggestion."""
        return isinstance(self.parameters["lr"].domain_for(drawn), Factor)

    def input_configs(self) -> list[InputConfig]:
        """Every (backbone, batch size, input) that the space can propose, once each; none if no LR is a factor."""
        if not self.lr_may_be_factor():
            return []
        free = [name for name in FINITE if name in self.parameters and not self.parameters[name].when]
        tied = [name for name in FINITE if name in self.parameters and self.parameters[name].when]
        configs: dict[InputConfig, None] = {}
        for values in product(*(self.parameters[name].domain.extremes() for name in free)):
            drawn = dict(zip(free, values, strict=True))
            for more in product(*(self._possible(name, drawn) for name in tied)):
                full = drawn | dict(zip(tied, more, strict=True))
                configs[self.input_config(full)] = None
        return list(configs)

    def input_config(self, drawn: Mapping[str, Scalar]) -> InputConfig:
        """What the LR finder is asked for drawn parameters; its slices are all that any trial may train on."""
        seen = {name: drawn[name] for name in FINITE if name in drawn}
        least_brain = min(self._values("min_brain"))
        return InputConfig.model_validate({**seen, "min_brain": least_brain, "task": self.task, "seed": self.seed})

    def _possible(self, name: str, drawn: dict[str, Scalar]) -> list[Scalar]:
        parameter = self.parameters[name]
        unknown = any(other not in drawn for case in parameter.when for other in case.condition)
        domains = parameter.domains() if unknown else [parameter.domain_for(drawn)]
        return [value for domain in domains for value in domain.extremes()]

    def lr_may_be_factor(self) -> bool:
        """Whether the run needs the LR finder at all."""
        return any(isinstance(domain, Factor) for domain in self.parameters["lr"].domains())

    def sizes(self) -> list[int]:
        """Every image size that the space can propose."""
        return sorted({int(value) for value in self._values("size")})

    def channels(self) -> list[str]:
        """Every kind of channels that the space can propose."""
        return self._values("channels")

    def backbones(self) -> list[str]:
        """Every backbone that the space can propose, in the file's order."""
        return list(dict.fromkeys(str(value) for value in self._values("backbone")))


def _check_domain(name: str, domain: Any) -> None:
    where = ["parameters", name]
    if isinstance(domain, Factor):
        if name != "lr":
            raise _rule(where, f"factor is for lr, round the LR finder's suggestion, but stands at {name}; use float")
        if not FACTORS[0] <= domain.factor[0] < domain.factor[1] <= FACTORS[1]:
            raise _rule(where, f"a factor must lie within {list(FACTORS)}, but got {list(domain.factor)}")
        return
    if name in FINITE and not isinstance(domain, (Choice, Constant)):
        raise _rule(where, f"{name} must be a constant or a choice, because the LR finder runs once per value of it")
    for value in domain.extremes():
        try:
            _field(name).validate_python(value, strict=isinstance(value, bool))
        except ValidationError as error:
            raise _rule(where, f"{error.errors()[0]['msg']}, but got {value!r}") from None


class SpaceRuleError(ValueError):
    """A rule of the grammar that spans more than one field; `where` is the path of the offending key."""

    def __init__(self, where: list[str], message: str) -> None:
        self.where = where
        super().__init__(message)


def _rule(where: list[str], message: str) -> SpaceRuleError:
    return SpaceRuleError(where, message)


def _field(name: str) -> TypeAdapter[Any]:
    info = TrialConfig.model_fields[name]
    annotation: Any = info.annotation
    return TypeAdapter(Annotated[annotation, info])

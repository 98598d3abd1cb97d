"""A space: which configurations are searched, how, how long, by what they are judged, and with what resources.

In: the content of a space file. Out: a validated `Space` that turns Optuna trials into configurations.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ichsearch.data.split import LEAKY, Unit
from ichsearch.data.tasks import Task, task_labels
from ichsearch.model.weights import Policy
from ichsearch.search.combinations import MOST_LISTED, allowed, combinations, size_of, why_not
from ichsearch.search.domains import Factor, Scalar, as_list
from ichsearch.search.drawing import Suggests
from ichsearch.search.durations import Duration
from ichsearch.search.parameters import (
    EFFECTS,
    FINITE,
    TASK,
    Parameter,
    check_occurs,
    checked,
    default_of,
    domain_for,
    draw,
)
from ichsearch.search.promotion import rungs_of
from ichsearch.search.rules import Location, SpaceRuleError, nearest
from ichsearch.search.sections import (
    Confirm,
    Constraints,
    FirstTrial,
    Keep,
    LrFinder,
    PhantomCohort,
    Promotion,
    Resources,
    Section,
)
from ichsearch.train.config import InputConfig
from ichsearch.train.metrics import Metric, is_defined


class Space(Section):
    """A space file, validated; its backbones are looked at by `backbone_choice.settled`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="also the default run folder's")
    task: Task = Field("multilabel", description="any haemorrhage, all six labels, or the subtype of positive slices")
    metric: Metric = Field("auroc_any", description="what trials are ranked by, on the validation patients")
    strategy: Literal["promote", "full", "grid"] = Field(
        "promote", description="short trials first, the best go on; all at full length; every combination once"
    )
    sampler: Literal["tpe", "random", "qmc"] = Field("tpe", description="how configurations are proposed")
    schedule: Literal["per_rung", "whole"] = Field(
        "per_rung", description="a complete one-cycle in every trial, or one of full length that promotions go on with"
    )
    trials: int = Field(20, ge=1, le=100_000, description="trials of the run, promotions included")
    epochs: int = Field(6, ge=1, le=1000, description="of a trial of full length")
    time_s: Duration | None = Field(None, alias="time", description="wall clock of the run: 90s, 20m, 8h, 1d, seconds")
    device_hours: Annotated[float, Field(gt=0, le=1e7)] | None = Field(None, description="summed over all trials")
    trial_limit_s: Duration | None = Field(
        None,
        alias="trial_limit",
        description="a longer trial is ended; default: 20 times what its like took, 2 h at least",
    )
    promotion: Promotion = Promotion()
    keep: Keep = Keep()
    seed: int = Field(0, ge=0, le=2**31 - 1)
    split: Unit = Field("patient", description="what the folds deal; slice leaks, and is for paper files alone")
    split_seed: int = Field(0, ge=0, le=2**31 - 1, description="of the patients' folds")
    pretrained: Policy = Field("auto", description="start weights: needed, taken if they can be had, none")
    weights_folder: str | None = Field(None, description="of <backbone>.safetensors or .pth, or one file")
    max_retries: int = Field(1, ge=0, le=10, description="how often a crashed trial is run again")
    resources: Resources = Resources()
    lr_finder: LrFinder = LrFinder()
    phantom: PhantomCohort = PhantomCohort()
    constraints: Constraints = Constraints()
    confirm: Confirm | None = Field(None, description="confirm the best trials when the run has ended; null: do not")
    first_trials: list[FirstTrial] = Field([], description="configurations tried first; what they leave out is drawn")
    parameters: dict[str, Parameter]

    _wildcards: dict[str, list[str]] = PrivateAttr(default_factory=dict)
    _left_out: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """By what it says: where its backbones' names come from makes no difference."""
        return isinstance(other, Space) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        """Equal spaces have one name."""
        return hash(self.name)

    @field_validator("parameters")
    @classmethod
    def _complete(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        for name in parameters:
            if name in KEYS and name != "schedule":  # of that name the learning rate had one, too
                raise SpaceRuleError(
                    ("parameters", name), f"{name!r} is no parameter; it belongs beside `parameters`, not below it"
                )
        return checked(parameters)

    @model_validator(mode="after")
    def _run_makes_sense(self) -> Self:
        labels = task_labels(self.task)
        if not is_defined(self.metric, labels):
            fitting = ", ".join(metric for metric in get_args(Metric) if is_defined(metric, labels))
            raise SpaceRuleError(
                ("metric",),
                f"the metric must be defined for task {self.task}, but {self.metric} is not; say one of {fitting}",
            )
        if self.split == "slice" and self.confirm:
            raise SpaceRuleError(
                ("confirm",), "a fold of new patients confirms a run, but split slice has none; remove confirm"
            )
        self._check_rungs()
        self._check_shares()
        self._check_entries()
        if self.strategy == "grid":
            self._check_grid()
        return self

    def _check_rungs(self) -> None:
        if self.schedule == "whole" and self.promotion.child == "restart":
            raise SpaceRuleError(
                ("promotion", "child"),
                "with schedule whole a child goes on with its parent's cycle, but child is restart; say continue, "
                "or schedule: per_rung",
            )
        if self.strategy == "grid" and self.first_trials:
            raise SpaceRuleError(
                ("first_trials",), "strategy grid tries every combination in order; remove first_trials, or say full"
            )
        first = self.promotion.first_epochs
        if first != "auto" and first > self.epochs:
            raise SpaceRuleError(
                ("promotion", "first_epochs"),
                f"the first rung must be at most as long as a trial, but has {first} of {self.epochs} epochs; lower it",
            )
        if not (frozen := self._frozen_epochs()):
            return
        if self.pretrained == "no":
            raise SpaceRuleError(
                ("parameters", "lr_schedule"),
                "fine_tune freezes a pretrained body, but pretrained is no; say auto or require",
            )
        if frozen >= self.epochs:
            raise SpaceRuleError(
                ("epochs",),
                f"fine_tune needs more epochs than frozen ones, but has {self.epochs} and {frozen}; raise epochs",
            )
        if self.strategy == "promote" and self.schedule == "per_rung" and first != "auto" and frozen >= first:
            raise SpaceRuleError(
                ("promotion", "first_epochs"),
                f"fine_tune needs more epochs than frozen ones, but the first rung may have {first} and {frozen}; "
                "raise first_epochs, or say auto",
            )

    def _check_shares(self) -> None:
        gpus, least = self.resources.gpus_per_trial, min(self.values_of("batch_size"))
        if gpus != "auto" and gpus > 1 and least < 2 * gpus:
            raise SpaceRuleError(
                ("resources", "gpus_per_trial"),
                f"each GPU of a trial needs two slices of a batch, but {gpus:g} GPUs share batches of {least}; "
                "lower gpus_per_trial or raise batch_size",
            )

    def _frozen_epochs(self) -> int:
        """The most epochs that `fine_tune` may freeze a body for; 0 if no trial fine-tunes."""
        fine_tune = "fine_tune" in self.values_of("lr_schedule")
        return max(self.values_of("frozen_epochs")) if fine_tune else 0

    def _check_entries(self) -> None:
        """What `forbidden` and `first_trials` say must be possible."""
        for index, entry in enumerate(self.constraints.forbidden):
            for name, values in entry.items():
                where: Location = ("constraints", "forbidden", index, name)
                self._check_known(name, where)
                for value in as_list(values):
                    check_occurs(self.parameters, name, value, where)
        for index, first in enumerate(self.first_trials):
            self._check_first(first, ("first_trials", index))

    def _check_known(self, name: str, where: Location) -> None:
        if name in EFFECTS and name not in self.parameters:
            raise SpaceRuleError(where, f"{name} counts only where {EFFECTS[name].words}, which never is; remove it")
        if name not in self.parameters:
            raise SpaceRuleError(where, f"unknown parameter {name!r}; {nearest(name, self.parameters)}")

    def _check_first(self, first: Mapping[str, Scalar], where: Location) -> None:
        for name, value in first.items():
            self._check_known(name, (*where, name))
            domains = self.parameters[name].domains()
            if not any(domain.contains(value) for domain in domains):
                is_factor = any(isinstance(domain, Factor) for domain in domains)
                hint = "; it is a factor round the LR finder's rate" if is_factor else ""
                known = ", ".join(str(bound) for domain in domains for bound in domain.bounds()[:12])
                raise SpaceRuleError(
                    (*where, name), f"the space cannot propose {name} {value!r}; its values or bounds: {known}{hint}"
                )
        names = {*FINITE, *first, *(name for entry in self.constraints.forbidden for name in entry)}
        possible = combinations(self.parameters, names, self.task, given=first)
        if all(self.allows(drawn) for drawn in islice(possible, MOST_LISTED)):
            raise SpaceRuleError(
                where, f"no configuration of the space has {dict(first)} at once; mind `when` and constraints"
            )

    def _check_grid(self) -> None:
        for name, parameter in self.parameters.items():
            if any(domain.count() is None for domain in parameter.domains()):
                remedy = "write {factor: {choice: [...]}}" if name == "lr" else "give it a step or a choice"
                raise SpaceRuleError(
                    ("parameters", name), f"strategy grid needs finite parameters, but {name} is continuous; {remedy}"
                )

        number = size_of(self.parameters, Constraints(), self.task).combinations
        if number > MOST_LISTED:
            raise SpaceRuleError(
                ("strategy",),
                f"a grid has at most {MOST_LISTED:,} combinations, but this one has {number:,}; narrow the parameters",
            )

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are judged, rising: first, first · eta, first · eta² … and full length.

        With fewer trials than rungs the lowest are left out, so that one trial can reach the full length.
        """
        if self.strategy != "promote":
            return (self.epochs,)
        first = self.promotion.first_epochs
        least = first if first != "auto" else 1 + (self._frozen_epochs() if self.schedule == "per_rung" else 0)
        return rungs_of(self.epochs, self.promotion.eta, least)[-self.trials :]

    def draw(self, trial: Suggests) -> dict[str, Scalar]:
        """The value of every parameter that counts, as the trial's sampler proposes it; `lr` may be a factor."""
        return draw(self.parameters, trial, self.task)

    def allows(self, drawn: Mapping[str, Scalar]) -> str | None:
        """None, or which constraint forbids what was drawn."""
        return why_not(self.parameters, self.constraints, self.task, drawn)

    def grid(self) -> list[dict[str, Scalar]]:
        """Every configuration that is allowed, in the order of the file: what strategy grid tries."""
        return list(allowed(self.parameters, self.constraints, self.task, self.parameters))

    def lr_is_factor(self, drawn: Mapping[str, Scalar]) -> bool:
        """Whether the drawn `lr` must be multiplied by the LR finder's suggestion."""
        found = domain_for(self.parameters, "lr", {TASK: self.task, **drawn})
        assert found is not None, "lr cannot be removed"
        return isinstance(found[0], Factor)

    def lr_may_be_factor(self) -> bool:
        """Whether the run needs the LR finder at all."""
        return any(isinstance(domain, Factor) for domain in self.parameters["lr"].domains())

    def inputs(self) -> list[InputConfig]:
        """Every (backbone, batch size, input) that the space can propose and allows, once each."""
        found = allowed(self.parameters, self.constraints, self.task, FINITE)
        return list(dict.fromkeys(self.input_config(drawn) for drawn in found))

    def input_configs(self) -> list[InputConfig]:
        """What the LR finder must be run for: all inputs; none if no learning rate is a factor."""
        return self.inputs() if self.lr_may_be_factor() else []

    def input_config(self, drawn: Mapping[str, Scalar]) -> InputConfig:
        """What the LR finder is asked for drawn parameters; its slices are all that any trial may train on."""
        seen = {name: drawn[name] for name in FINITE if name in drawn}
        least_brain = min(self.values_of("min_brain"))
        return InputConfig.model_validate({**seen, "min_brain": least_brain, "task": self.task, "seed": self.seed})

    def values_of(self, name: str) -> list[Any]:
        """The values that bound a parameter; a trial's default where it does not count, or a case removes it."""
        if name not in self.parameters:
            return [default_of(name)]
        parameter = self.parameters[name]
        values = [value for domain in parameter.domains() for value in domain.bounds()]
        removed = len(parameter.domains()) <= len(parameter.when)
        return [*values, default_of(name)] if removed else values

    def varied(self) -> list[str]:
        """The parameters that have more than one value."""
        return [name for name, parameter in self.parameters.items() if parameter.when or parameter.domain.count() != 1]

    def sizes(self) -> list[int]:
        """Every image size that the space can propose, rising."""
        return sorted({config.size for config in self.inputs()})

    def channels(self) -> list[str]:
        """Every kind of channels that the space can propose."""
        return list(dict.fromkeys(config.channels for config in self.inputs()))

    def backbones(self) -> list[str]:
        """Every backbone that the space can propose, in the file's order."""
        proposed = {config.backbone for config in self.inputs()}
        return [name for name in dict.fromkeys(self.values_of("backbone")) if name in proposed]

    @property
    def told_metric(self) -> str:
        """What trials are ranked by, as it is told."""
        return f"{LEAKY} {self.metric}" if self.split == "slice" else self.metric

    def noted(self, wildcards: dict[str, list[str]], left_out: dict[str, str]) -> Self:
        """The space, knowing where its backbones' names come from."""
        self._wildcards.update(wildcards)
        self._left_out.update(left_out)
        return self

    @property
    def resolved_wildcards(self) -> dict[str, list[str]]:
        """The backbones that each pattern of the file stood for when it was read."""
        return self._wildcards

    @property
    def left_out(self) -> dict[str, str]:
        """Backbones that the file names, or its patterns match, but that no trial can have, and why."""
        return self._left_out


KEYS: Final = [field.alias or name for name, field in Space.model_fields.items()]
"""What stands at the top of a space file."""

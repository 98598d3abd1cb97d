"""The sections of a space file that are no parameters.

In: the mappings of a space file. Out: frozen, validated sections.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ichsearch.phantom.design import Prevalence
from ichsearch.search.domains import Value, Values
from ichsearch.train.lr_finder import FEWEST_STEPS, SEARCH_STEPS


class Section(BaseModel):
    """Unknown keys, infinite numbers, and text or truth values for numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _share_or_whole(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        fewer = int(gpus)
        raise ValueError(f"above 1 it must be a whole number of GPUs, but is {gpus:g}; say {fewer} or {fewer + 1}")
    return gpus


class Resources(Section):
    """What one trial takes of a node."""

    cpus_per_trial: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field("auto", description="CPU cores")
    gpus_per_trial: Annotated[float, Field(ge=0, le=64), AfterValidator(_share_or_whole)] | Literal["auto"] = Field(
        "auto", description="share of a GPU, or several, of one node, that train a trial together"
    )


class LrFinder(Section):
    """How the LR finder's stage runs."""

    steps: int = Field(SEARCH_STEPS, ge=FEWEST_STEPS, le=1000, description="training steps of one range test")


class PhantomCohort(Section):
    """The synthetic cohort that a run without `--data` is made on."""

    patients: int = Field(60, ge=5, le=10_000)
    slices: int = Field(16, ge=1, le=256, description="slices a patient")
    seed: int = Field(0, ge=0, le=2**31 - 1)
    hard: bool = Field(False, description="subtle haemorrhages, and what misleads")
    prevalence: Prevalence = "half"
    even_position: bool = Field(False, description="a slice's position tells nothing of its label")


class Promotion(Section):
    """How configurations climb from short trials to those of full length."""

    eta: int = Field(4, ge=2, le=10, description="the best 1/eta of a rung go on to one eta times as long")
    first_epochs: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        "auto", description="no rung is shorter"
    )
    child: Literal["continue", "restart"] = Field(
        "continue", description="whether a promoted trial starts from its parent's weights or anew"
    )
    random_share: float = Field(1 / 3, ge=0, le=1, description="share of configurations that no model proposes")


class Keep(Section):
    """Which checkpoints outlive their trials."""

    best: int = Field(5, ge=1, le=100_000, description="of how many trials, the best of the run, weights are kept")
    disk_gb: Annotated[float, Field(gt=0)] | None = Field(None, description="cap on all of them; null: none")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Confirm(Section):
    """How the best trials are confirmed: trained anew from fresh seeds, and scored on the test fold."""

    top: int = Field(3, ge=1, le=1000, description="how many configurations, the best of the run")
    seeds: int = Field(3, ge=1, le=100, description="fresh seeds, from each of which a trial's whole chain is replayed")
    folds: bool = Field(False, description="also with each of the other folds held out, for out-of-fold predictions")


class Constraints(Section):
    """What no configuration may be."""

    max_parameters: Annotated[int, BeforeValidator(_whole), Field(ge=1)] | None = Field(
        None, description="largest number of parameters of a backbone with its head"
    )
    forbidden: list[Annotated[dict[str, Values], Field(min_length=1)]] = Field(
        [], description="configurations are left out that have one of the values of every key of an entry"
    )


FirstTrial = Annotated[dict[str, Value], Field(min_length=1)]
"""Values of some parameters; the others are drawn."""

"""The configuration of one trial, and how a trial can fail.

In: values drawn by the search or given by hand. Out: a validated `TrialConfig`.
"""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ichsearch.data.augment import Augmentation, Kind
from ichsearch.data.batches import Recipe
from ichsearch.data.channels import Channels
from ichsearch.data.sampling import Sampler
from ichsearch.data.tasks import Task, task_labels
from ichsearch.model.heads import Head
from ichsearch.train.metrics import Metric, is_defined

MIN_LR: Final = 1e-7
PAPERS_AUGMENTATIONS: Final = "flip+rotation+blur"


def _known_kinds(value: str) -> str:
    if unknown := sorted(set(value.split("+")) - set(get_args(Kind))):
        raise ValueError(
            f"augmentations must be of {', '.join(get_args(Kind))}, joined by +, but {unknown[0]!r} is none"
        )
    return value


Augmentations = Annotated[str, AfterValidator(_known_kinds)]
Imbalance = Literal["none", "loss", "sampler"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
LrSchedule = Literal["one_cycle", "fine_tune"]


class InputConfig(BaseModel):
    """What a backbone sees and what it is asked: enough to find a learning rate for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    batch_size: int = Field(ge=2, le=4096, description="slices a step")
    size: int = Field(ge=16, le=1024, description="pixels of an input's side")
    task: Task = "multilabel"
    channels: Channels = "windows"
    head: Head = "linear"
    augment: float = Field(0.0, ge=0, le=1, description="strength of all augmentations")
    augmentations: Augmentations = Field(PAPERS_AUGMENTATIONS, description="their kinds, joined by +")
    min_brain: float = Field(0.02, ge=0, lt=1, description="training slices need this share of brain pixels")
    imbalance: Imbalance = "none"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0, le=1, description="decoupled, not on norms and biases")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: not clipped")
    precision: Precision = "auto"
    seed: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model has an output for, in order."""
        return task_labels(self.task)

    @property
    def recipe(self) -> Recipe:
        """How slices become batches to train on."""
        drawn = {"strength": self.augment, "kinds": self.augmentations.split("+")}
        sampler: Sampler = "balanced" if self.imbalance == "sampler" else "shuffled"
        return Recipe(
            batch_size=self.batch_size,
            channels=self.channels,
            task=self.task,
            augmentation=Augmentation.model_validate(drawn),
            sampler=sampler,
            seed=self.seed,
        )


class TrialConfig(InputConfig):
    """Everything that decides a trial's result on given data.

    A trial may be a child: it goes on from where its parent, the same configuration after fewer epochs, has come to.
    """

    epochs: int = Field(ge=1, le=1000, description="all epochs of the trial and of those before it")
    epochs_before: int = Field(0, ge=0, description="of these, the ones that its parent has trained")
    cycle_epochs: int | None = Field(
        None, ge=1, le=1000, description="length of the cycle that it trains a piece of; None: its own epochs are one"
    )
    lr: float = Field(ge=MIN_LR, le=100, description="highest learning rate of the cycle")
    metric: Metric = "auroc_any"
    lr_schedule: LrSchedule = "one_cycle"
    rise: float = Field(0.25, gt=0, lt=1, description="one_cycle: share of the steps in which the rate rises")
    start_divisor: float = Field(25.0, ge=1, description="one_cycle: lr over the first rate")
    end_divisor: float = Field(1e5, ge=1, description="one_cycle: lr over the last rate")
    lr_spread: float = Field(100.0, ge=1, description="fine_tune: the head's rate over that of the earliest layers")
    frozen_epochs: int = Field(1, ge=1, description="fine_tune: epochs in which a pretrained body is frozen")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not is_defined(self.metric, self.labels):
            raise ValueError(f"the metric must be defined for task {self.task}, but {self.metric} is not")
        if self.epochs_before >= self.epochs:
            raise ValueError(
                f"epochs must be more than epochs_before, which they include, but they are {self.epochs} and "
                f"{self.epochs_before}; raise epochs"
            )
        if self.cycle_epochs is not None and self.cycle_epochs < self.epochs:
            raise ValueError(
                f"cycle_epochs must be at least epochs, but they are {self.cycle_epochs} and {self.epochs}; "
                "lower epochs"
            )
        whole = self.cycle_epochs or self.epochs
        if self.lr_schedule == "fine_tune" and self.frozen_epochs >= whole:
            raise ValueError(
                f"fine_tune needs more epochs than frozen ones, but has {whole} and {self.frozen_epochs}; "
                "raise epochs or lower frozen_epochs"
            )
        return self

    @property
    def cycle(self) -> range:
        """The epochs of the cycle that the trial trains all or a piece of; they count from 0 where its chain began."""
        return range(self.cycle_epochs) if self.cycle_epochs else range(self.epochs_before, self.epochs)


class TrialFailedError(Exception):
    """A trial that cannot give a score; `reason` is what the search learns from and the leaderboard shows."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class TrialStoppedError(Exception):
    """A trial that was asked to stop where it is: its checkpoint is written, and it can go on elsewhere."""

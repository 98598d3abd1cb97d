"""The configuration of one trial, and how a trial can fail.

In: values drawn by the search or given by hand. Out: a validated `TrialConfig`.
"""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from ichsearch.data.channels import Channels
from ichsearch.train.metrics import Metric

MIN_LR: Final = 1e-7


class InputConfig(BaseModel):
    """What a backbone sees: enough to find a learning rate for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    batch_size: int = Field(ge=2, le=4096, description="slices a step")
    size: int = Field(ge=16, le=1024, description="pixels of an input's side")
    channels: Channels = "windows"
    augment: float = Field(0.0, ge=0, le=1, description="strength of flip, rotation and blur")
    min_brain: float = Field(0.02, ge=0, lt=1, description="training slices need this share of brain pixels")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decoupled, not on norms and biases")
    seed: int = 0


class TrialConfig(InputConfig):
    """Everything that decides a trial's result on given data."""

    epochs: int = Field(ge=1, le=1000)
    lr: float = Field(ge=MIN_LR, le=100, description="highest learning rate of the one-cycle")
    metric: Metric = "auroc_any"


class TrialFailedError(Exception):
    """A trial that cannot give a score; `reason` is what the search learns from and the leaderboard shows."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)

"""What a trial and the LR finder have in common: rows, the model, the optimizer, the loss and the batches.

In: an `InputConfig`, a `SliceSet`, a `Split`. Out: the parts of a training loop on one device.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import CHANNELS
from ichsearch.data.split import VALIDATION_FOLD, Split
from ichsearch.data.tasks import Task, task_rows
from ichsearch.errors import DataError
from ichsearch.model.backbones import create_model, to_device
from ichsearch.train.config import InputConfig, TrialFailedError
from ichsearch.train.loss import make_loss
from ichsearch.train.memory import MicroBatch, probed_size
from ichsearch.train.optimizer import make_optimizer
from ichsearch.train.parallel import ALONE, Ranks
from ichsearch.train.steps import Stepper, arithmetic


@dataclass(frozen=True)
class Parts:
    """Row numbers of the slices to train and to validate on."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def parts_of(slices: SliceSet, split: Split, min_brain: float, task: Task = "multilabel") -> Parts:
    """The task's slices of the training folds with enough brain, and *all* its slices of the validation fold.

    The filter must not choose the slices it is judged on, or trials with different `min_brain` could not be compared.
    """
    folds = split.fold_of(slices.table)
    wanted = task_rows(task, slices.labels)
    brain = slices.table["brain_share"].to_numpy() >= min_brain
    parts = Parts(
        train=np.flatnonzero(wanted & brain & (folds > VALIDATION_FOLD)),
        validation=np.flatnonzero(wanted & (folds == VALIDATION_FOLD)),
    )
    patients = slices.table["patient"].to_numpy()
    crossed = set(patients[parts.train]) & set(patients[parts.validation])
    assert split.leaks or not crossed, "a patient on both sides of the split"
    if not len(parts.train):
        raise DataError(
            f"training needs slices, but none of task {task} has a brain share of {min_brain}; lower min_brain"
        )
    return parts


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(config: InputConfig, weights: Path | None, device: torch.device) -> nn.Module:
    """The configuration's model; random weights depend on its seed alone."""
    torch.manual_seed(config.seed)
    model = create_model(
        config.backbone,
        channels=CHANNELS[config.channels],
        classes=len(config.labels),
        size=config.size,
        head=config.head,
        weights=weights,
    )
    return to_device(model, device)


@dataclass(frozen=True)
class Training:
    """A model ready to be trained."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    stepper: Stepper
    batches: Batches


def make_training(
    config: InputConfig,
    slices: SliceSet,
    rows: npt.NDArray[np.int64],
    weights: Path | None,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Training:
    """All that training on the slices in `rows` needs; of several ranks each gets its share of every batch.

    Raises:
        TrialFailedError: `batch_larger_than_data`: what was asked for is not what would be trained.
    """
    if config.batch_size > len(rows):
        raise TrialFailedError("batch_larger_than_data", f"{config.batch_size} slices of {len(rows)} to train on")
    model = make_model(config, weights, device)
    optimizer = make_optimizer(model, config.weight_decay)
    batches = Batches(slices, rows, config.recipe, device, ranks.share)
    loss = make_loss(
        config.labels, batches.labels, balanced=config.imbalance == "loss", smoothing=config.label_smoothing
    )
    stepper = Stepper(
        model,
        optimizer,
        loss,
        micro=MicroBatch(-(config.batch_size // -ranks.size), ranks),
        kind=arithmetic(config.precision, device),
        clip_norm=config.clip_norm,
        ranks=ranks,
    )
    if device.type == "cuda":
        stepper.micro.size = ranks.least(_fitting_size(config, model, stepper, device))
    return Training(model, optimizer, stepper, batches)


def _fitting_size(config: InputConfig, model: nn.Module, stepper: Stepper, device: torch.device) -> int:
    """What of a batch fits into the GPU at once, tried on random images; the model's weights stay as they are."""
    kind = arithmetic(config.precision, device)
    key = config.model_dump(include={"backbone", "head", "channels", "size", "task"}) | {
        "precision": kind,
        "device": torch.cuda.get_device_name(device),
        "free_gib": torch.cuda.mem_get_info(device)[0] // 2**30,  # others may be at work on it
    }
    shape = (CHANNELS[config.channels], config.size, config.size)

    def attempt(slices: int) -> None:
        stepper.rehearse(torch.rand(slices, *shape, device=device), len(config.labels))

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    try:
        return probed_size(key, stepper.micro.size, attempt)
    finally:
        for name, value in model.named_buffers():
            value.copy_(buffers[name])

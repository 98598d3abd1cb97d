"""What a trial and the LR finder have in common: the model, the optimizer, the loss and the batches.

In: an `InputConfig`, a `SliceSet`, a `Split`. Out: the parts of a training loop on one device.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ichsearch.data.batches import WINDOWS, Batches, Recipe
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import VALIDATION_FOLD, Split
from ichsearch.errors import DataError
from ichsearch.labels import LABELS, LOSS_WEIGHTS
from ichsearch.model.backbones import create_model, to_device
from ichsearch.train.config import InputConfig

BETAS: Final = (0.95, 0.99)
EPS: Final = 1e-5


@dataclass(frozen=True)
class Parts:
    """Row numbers of the slices to train and to validate on."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


def parts_of(slices: SliceSet, split: Split, min_brain: float) -> Parts:
    """Labelled slices of the training folds with enough brain, and *all* labelled slices of the validation fold.

    The filter must not choose the slices it is judged on, or trials with different `min_brain` could not be compared.
    """
    folds = split.fold_of(slices.table)
    labelled = ~np.isnan(slices.labels[:, 0])
    brain = slices.table["brain_share"].to_numpy() >= min_brain
    parts = Parts(
        train=np.flatnonzero(labelled & brain & (folds > VALIDATION_FOLD)),
        validation=np.flatnonzero(labelled & (folds == VALIDATION_FOLD)),
    )
    patients = slices.table["patient"].to_numpy()
    assert not set(patients[parts.train]) & set(patients[parts.validation]), "a patient on both sides of the split"
    if not len(parts.train):
        raise DataError(f"training needs slices, but none has a brain share of {min_brain}; lower min_brain")
    return parts


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(config: InputConfig, weights: Path | None, device: torch.device) -> nn.Module:
    """The configuration's backbone; random weights depend on its seed alone."""
    torch.manual_seed(config.seed)
    channels = len(WINDOWS[config.channels])
    model = create_model(config.backbone, channels=channels, classes=len(LABELS), size=config.size, weights=weights)
    return to_device(model, device)


def make_optimizer(model: nn.Module, config: InputConfig) -> torch.optim.AdamW:
    """AdamW with decoupled decay on weights, none on norms and biases (fastai's choice of betas and eps)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=BETAS, eps=EPS, fused=True)


def make_batches(slices: SliceSet, rows: npt.NDArray[np.int64], config: InputConfig, device: torch.device) -> Batches:
    """Batches of the rows as the configuration wants them."""
    return Batches(slices, rows, Recipe(config.batch_size, config.channels, config.augment, config.seed), device)


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 arithmetic on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def weighted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The weighted log loss of (B, 6) logits, differentiable; the same mean as `metrics.weighted_log_loss`."""
    weights = torch.tensor(LOSS_WEIGHTS, device=logits.device)
    losses = binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").mean(dim=0)
    return (losses * weights).sum() / weights.sum()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, lr: float) -> Tensor:
    """One step at learning rate `lr`; returns the loss before it, a scalar still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    with autocast(inputs.device):
        logits = model(inputs)
    loss = weighted_loss(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()

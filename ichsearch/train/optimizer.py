"""AdamW with a learning rate for each layer group.

In: a model. Out: an optimizer whose parameter groups know their layer group; decay is decoupled, and none falls on
norms and biases (fastai's choice, as are betas and eps).
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from ichsearch.model.groups import layer_groups

MOMENTUM: Final = 0.9
SQUARED_MOMENTUM: Final = 0.99
EPS: Final = 1e-5
LAYER_GROUP: Final = "layer_group"


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all parameters, frozen ones too: they are passed over while they have no gradient."""
    groups = [
        {"params": chosen, "weight_decay": decay, LAYER_GROUP: number}
        for number, parameters in enumerate(layer_groups(model))
        for decay, chosen in (
            (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
            (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
        )
        if chosen
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(MOMENTUM, SQUARED_MOMENTUM), eps=EPS, fused=True)


def set_step(optimizer: torch.optim.Optimizer, lrs: Sequence[float], momentum: float = MOMENTUM) -> None:
    """Set the learning rate of each layer group, and Adam's first beta, which is its momentum."""
    for group in optimizer.param_groups:
        group["lr"] = lrs[group[LAYER_GROUP]]
        group["betas"] = (momentum, group["betas"][1])

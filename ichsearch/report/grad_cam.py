"""Grad-CAM: which part of an image spoke for a label.

In: a model, its inputs, a label's output. Out: heat of each pixel in [0, 1]. Source: Selvaraju et al., ICCV 2017.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ichsearch.data.channels import CHANNELS
from ichsearch.model.heads import feature_form
from ichsearch.train.config import InputConfig

LEAST_SIDE: Final = 4
"""Maps of fewer pixels a side point at nothing: a shallower layer is taken then."""


def has_maps(config: InputConfig) -> bool:
    """Whether a backbone makes maps of the image, channels first as Grad-CAM reads them; tokens are none."""
    form = feature_form(config.backbone, CHANNELS[config.channels], config.size)
    return form is not None and not form.channels_last


def grad_cam(model: nn.Module, inputs: Tensor, output: int) -> tuple[Tensor, int]:
    """The heat of each pixel, (B, S, S) in [0, 1], for logit `output`, and the side of the maps that it comes from.

    The deepest maps with at least `LEAST_SIDE` pixels a side, or else the first, are weighted by the mean gradient of
    the logit; what speaks against the label is left out. An image in which nothing speaks for it has no heat.

    Args:
        model: a backbone with feature maps (see `has_maps`), on the device of `inputs`.
        inputs: (B, C, S, S), as in training.
        output: which of the logits.
    """
    model.eval()
    with torch.enable_grad(), _recorded(model) as maps:
        logits: Tensor = model(inputs.requires_grad_())
        deepest = next((one for one in reversed(maps) if min(one.shape[2:]) >= LEAST_SIDE), maps[0])
        (gradients,) = torch.autograd.grad(logits[:, output].sum(), deepest)
    heat = (gradients.mean(dim=(2, 3), keepdim=True) * deepest).sum(dim=1, keepdim=True).relu().detach().float()
    heat = heat / heat.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    side = inputs.shape[-1]
    return nn.functional.interpolate(heat, (side, side), mode="bilinear", align_corners=False)[:, 0], heat.shape[-1]


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """All (B, C, h, w) outputs of the model's parts, in the order in which they are made."""
    maps: list[Tensor] = []

    def note(_part: nn.Module, _given: Any, made: Any) -> None:
        if isinstance(made, Tensor) and made.ndim == 4:
            maps.append(made)

    handles = [part.register_forward_hook(note) for part in model.modules()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()

"""Any backbone of timm, and AlexNet from torchvision, as one kind of module.

In: a name, the number of input channels and of classes. Out: a module from (B, C, S, S) float32 to (B, classes) logits.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import alexnet

from ichsearch.errors import ConfigError

ALEXNET: Final = "alexnet"
ALEXNET_MIN_SIZE: Final = 63
"""The smallest side of which AlexNet's strides leave a pixel."""


@cache
def known_backbones() -> frozenset[str]:
    """Every name that `create_backbone` takes."""
    return frozenset([ALEXNET, *timm.list_models()])


def check_backbone(name: str, size: int) -> None:
    """Refuse a backbone that does not exist or cannot see images of this size.

    Raises:
        ConfigError: with the nearest names, or the smallest size.
    """
    if name not in known_backbones():
        near = difflib.get_close_matches(name, sorted(known_backbones()), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"a backbone must be alexnet or a model of timm, but {name!r} is neither; {hint}")
    if name == ALEXNET and size < ALEXNET_MIN_SIZE:
        raise ConfigError(
            f"alexnet needs images of at least {ALEXNET_MIN_SIZE} px, but size is {size}; use a larger size"
        )


def create_backbone(name: str, channels: int, classes: int, size: int, weights: Path | None = None) -> nn.Module:
    """A backbone with a new linear head; `weights` is a safetensors file of the original's, or None for random ones.

    A first convolution for three channels is adapted as timm does: summed to one, repeated and rescaled to others.
    """
    if name == ALEXNET:
        return _alexnet(channels, classes, weights)
    fixed = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}
    if weights:
        options |= {"pretrained_cfg_overlay": {"file": str(weights)}}
    model: nn.Module = timm.create_model(
        name, pretrained=weights is not None, in_chans=channels, num_classes=classes, **options
    )
    return model


def _alexnet(channels: int, classes: int, weights: Path | None) -> nn.Module:
    model: nn.Module = alexnet(num_classes=classes)
    first = nn.Conv2d(channels, 64, kernel_size=11, stride=4, padding=2)
    model.get_submodule("features")[0] = first  # type: ignore[operator]
    if weights is None:
        return model
    state = load_file(weights)
    state["features.0.weight"] = timm.models.adapt_input_conv(channels, state["features.0.weight"])
    head = {"classifier.6.weight", "classifier.6.bias"}
    missing = model.load_state_dict({k: v for k, v in state.items() if k not in head}, strict=False)
    assert set(missing.missing_keys) == head and not missing.unexpected_keys
    return model


def parameters_m(model: nn.Module) -> float:
    """Trainable parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, convolutions in channels-last order on a GPU (faster with tensor cores)."""
    memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

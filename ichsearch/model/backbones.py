"""Any backbone of timm or torchvision as one kind of module, refused early where it cannot see the images.

In: a name, channels, classes, size, a head, weights. Out: a module from (B, C, S, S) float32 to (B, classes) logits.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import nn

from ichsearch.errors import ConfigError
from ichsearch.model.answers import kept
from ichsearch.model.blueprint import IMPOSSIBLE, blank, blueprint, build, drafting, known_backbones, native_px
from ichsearch.model.heads import Head, feature_form, keep_logits_float32, with_concat_pool
from ichsearch.model.loading import load_state
from ichsearch.model.states import UNREADABLE, fitting_state, read_state

STEPS_PX: Final = (14, 16, 32)
"""Patches, strides and windows of nearly all backbones divide a multiple of one of these."""

NEAR_PX: Final = 64
"""How far above a refused size the least one that works is looked for."""


def check_backbone(name: str, size: int, *, channels: int = 3, head: Head = "linear") -> None:
    """Refuse a backbone that does not exist or cannot be trained on images of this size, with this head.

    It is built without memory and sees two images without values: milliseconds, once for the same question.

    Raises:
        ConfigError: with the nearest names, the sizes that work, or the head that does.
    """
    if name not in known_backbones():
        near = difflib.get_close_matches(name, _near_names(name), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"a backbone must be a model of timm or torchvision, but {name!r} is neither; {hint}")
    if (reason := _obstacle(name, size, channels)) is not None:
        raise ConfigError(_size_message(name, size, channels, reason))
    if head == "concat_pool" and not _has_maps(name, size, channels):
        raise ConfigError(f"head: concat_pool needs feature maps, but {name} gives tokens; use head: linear")


def fits(name: str, size: int, *, channels: int = 3, head: Head = "linear") -> bool:
    """Whether `check_backbone` would let a known backbone pass; it looks for no remedy, and so answers sooner."""
    return _obstacle(name, size, channels) is None and (head == "linear" or _has_maps(name, size, channels))


@kept
def _has_maps(name: str, size: int, channels: int) -> bool:
    """Whether a backbone makes feature maps, which other heads than linear need."""
    return feature_form(name, channels, size) is not None


@kept
def parameter_count(name: str, size: int, channels: int, classes: int, head: Head) -> int | None:
    """Trainable parameters of a backbone with its head; None if it cannot be built for images of this size."""
    try:
        model = blueprint(name, channels, classes if head == "linear" else 1, size)
        with torch.device("meta"):
            full = model if head == "linear" else with_concat_pool(name, model, channels, classes, size)
    except IMPOSSIBLE:
        return None
    return sum(parameter.numel() for parameter in full.parameters() if parameter.requires_grad)


def _near_names(name: str) -> list[str]:
    """Tags of weights only for who wrote one: they would hide the models."""
    return sorted(known for known in known_backbones() if "." in name or "." not in known)


@kept
def _obstacle(name: str, size: int, channels: int) -> str | None:
    """Why a backbone cannot be trained on images of this size; None if it can."""
    try:
        with drafting():
            model = blueprint(name, channels, 6, size)
            logits = model(blank(channels, size))
    except IMPOSSIBLE as error:
        return " ".join(str(error).split())[:120].rstrip(".;: ") or type(error).__name__
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, 6):
        return "its output is not a logit a class"
    patch = _patch_px(model)
    return f"patches of {patch} px would not cover them" if size % patch else None


def _patch_px(model: nn.Module) -> int:
    """The side of the patches that an image is cut into; 1 where it is not, or is padded. timm drops what is left."""
    embed: Any = next((module for module in model.modules() if isinstance(module, timm.layers.PatchEmbed)), None)
    return 1 if embed is None or embed.dynamic_img_pad else int(embed.patch_size[0])


def _size_message(name: str, size: int, channels: int, reason: str) -> str:
    below, above = (
        next((other for other in _others(name, size, side) if _obstacle(name, other, channels) is None), None)
        for side in (-1, +1)
    )
    if above is not None and below is None and above - size <= NEAR_PX:
        least = _least(name, channels, size, above)
        return f"{name} needs images of at least {least} px, but size is {size} ({reason}); use a larger size"
    working = [str(other) for other in (below, above) if other is not None]
    remedy = f"use {' or '.join(working)}" if working else "use another backbone"
    return f"{name} cannot see images of {channels} channels and {size} px ({reason}); {remedy}"


def _others(name: str, size: int, side: int) -> Iterator[int]:
    """Sizes likely to work, nearest first, below or above `size`; at last the native one."""
    near = {(size // step + more) * step for step in STEPS_PX for more in (-1, 0, 1, 2, 3)}
    for other in [*sorted(near, key=lambda other: abs(other - size)), native_px(name)]:
        if other > 0 and (other - size) * side > 0:
            yield other


def _least(name: str, channels: int, fails: int, works: int) -> int:
    """The least size that works, between one that does not and one that does."""
    while works - fails > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _obstacle(name, middle, channels) is None else (works, middle)
    return works


def create_model(
    name: str, *, channels: int, classes: int, size: int, head: Head = "linear", weights: Path | None = None
) -> nn.Module:
    """A backbone with a new head.

    Args:
        name: a name that timm has is timm's, any other torchvision's.
        channels: input channels; a first convolution for others is summed to one, repeated and scaled to more.
        classes: logits.
        size: pixels of an image's side; models made for one size are made for this one.
        head: `linear`, on the backbone's own pooling; `concat_pool`, fastai's, on its feature maps.
        weights: a safetensors or .pth file that the body starts from; None starts from random weights.

    Raises:
        ConfigError: the name or the size is refused by `check_backbone`, the weights are unreadable or of another body.
    """
    check_backbone(name, size, channels=channels, head=head)
    logits = classes if head == "linear" else 1
    if weights is None:
        model = build(name, channels, logits, size)
    else:
        model = load_state(name, channels, logits, size, _state_of(name, weights))
    if head == "concat_pool":
        model = with_concat_pool(name, model, channels, classes, size)
    keep_logits_float32(model)
    return model


def _state_of(name: str, weights: Path) -> dict[str, torch.Tensor]:
    try:
        state = read_state(weights)
    except UNREADABLE as error:
        raise ConfigError(
            f"weights must be a file of tensors, but {weights.name} is not ({type(error).__name__}); give another"
        ) from error
    return fitting_state(name, state, weights.name)


def parameters_m(model: nn.Module) -> float:
    """Trainable parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e6


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, convolutions in channels-last order on a GPU (faster with tensor cores)."""
    memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload,no-any-return]

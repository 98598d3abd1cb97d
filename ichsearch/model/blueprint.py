"""Backbones by name with random weights, real ones and blueprints that have shapes but no memory.

In: a name of timm or torchvision, channels, classes, image size. Out: a module from (B, C, S, S) to (B, classes).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model

NATIVE_PX: Final = 224
"""The side that torchvision's models were trained at, those of timm that do not say so too."""
IMPOSSIBLE: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What models raise, each in its own way, when they cannot be built for a size or cannot see an image of it."""


@cache
def known_backbones() -> frozenset[str]:
    """Every name that `create_model` takes: models of timm (with or without a tag of weights) and of torchvision."""
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    return frozenset([*timm.list_models(), *timm.list_pretrained(), *of_torchvision])


def is_of_timm(name: str) -> bool:
    """Whether timm has the name; then it is timm's, even where torchvision has it too."""
    return bool(timm.is_model(name))


def build(name: str, channels: int, classes: int, size: int | None, overlay: dict[str, Any] | None = None) -> nn.Module:
    """A backbone with its own pooling and a new linear head, for images of `size` pixels (None: its native size).

    Args:
        name: one of `known_backbones()`.
        channels: input channels.
        classes: logits.
        size: matters only to models that are made for one image size.
        overlay: entries of timm's `PretrainedCfg` that say which weights to load; None starts from random ones.
    """
    if not is_of_timm(name):
        return _of_torchvision(name, channels, classes, size)
    options: dict[str, Any] = {"img_size": size} if size and is_made_for_a_size(name) else {}
    if overlay:
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    model: nn.Module = timm.create_model(name, in_chans=channels, num_classes=classes, **options)
    return model


def is_made_for_a_size(name: str) -> bool:
    """Whether a backbone is built for one image size (transformers mostly); others take any that is large enough."""
    if is_of_timm(name):
        config = timm.get_pretrained_cfg(name)
        return config is not None and bool(config.fixed_input_size)
    return name.startswith(("vit_", "maxvit"))


def _of_torchvision(name: str, channels: int, classes: int, size: int | None) -> nn.Module:
    options: dict[str, Any] = {}
    if name == "googlenet":
        options = {"aux_logits": False, "transform_input": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": size or NATIVE_PX}
    elif name.startswith("maxvit"):
        options = {"input_size": (size or NATIVE_PX,) * 2}
    model: nn.Module = get_model(name, weights=None, num_classes=classes, **options)
    _set_channels(model, channels)
    return model


def _set_channels(model: nn.Module, channels: int) -> None:
    first = model.get_submodule(first_convolutions(model)[0])
    assert isinstance(first, nn.Conv2d)
    first.weight = nn.Parameter(timm.models.adapt_input_conv(channels, first.weight.detach()))
    first.in_channels = channels


def first_convolutions(model: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions that see the image; timm says so for its own, in others it is the first of all."""
    config: Any = getattr(model, "pretrained_cfg", None)
    if config is None:
        return (next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)),)
    named = config["first_conv"] or ()
    return (named,) if isinstance(named, str) else tuple(named)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give logits: timm says so for its own, in others it is the last with parameters."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier")
    if not named:
        owners = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
        return (owners[-1],)
    return (named,) if isinstance(named, str) else tuple(named)


def in_modules(parameter: str, modules: tuple[str, ...]) -> bool:
    """Whether a parameter, by its name, belongs to one of the modules or to a part of it."""
    return parameter.startswith(tuple(f"{module}." for module in modules))


class _Weightless(TorchFunctionMode):
    """Parameters without memory: everything is made as always but `torch.empty`, from which layers make weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def drafting() -> Iterator[None]:
    """Without warnings of models' authors, and leaving the random numbers of this process as they are."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def blueprint(name: str, channels: int, classes: int, size: int | None) -> nn.Module:
    """`build` on the meta device, in milliseconds: shapes and names, no values."""
    with drafting():
        try:
            with torch.device("meta"):
                return build(name, channels, classes, size)
        except NotImplementedError:  # it reads values while it is built, as torchvision's RegNet does
            with _Weightless():
                return build(name, channels, classes, size).to("meta")


def blank(channels: int, size: int) -> Tensor:
    """Two images on the meta device, (2, channels, size, size)."""
    return torch.empty(2, channels, size, size, device="meta")


def native_px(name: str) -> int:
    """The side of the images that a backbone's published weights were trained on."""
    config = timm.get_pretrained_cfg(name) if is_of_timm(name) else None
    return int(config.input_size[-1]) if config is not None else NATIVE_PX

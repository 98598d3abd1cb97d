"""Files of weights, held against the backbone that they are to start.

In: a safetensors or .pth file, a backbone's name. Out: its tensors under the backbone's names, or a refusal that says
which backbone they fit.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ichsearch.errors import ConfigError
from ichsearch.model.blueprint import (
    IMPOSSIBLE,
    blueprint,
    build,
    drafting,
    first_convolutions,
    head_names,
    in_modules,
    is_of_timm,
    known_backbones,
)

Shape = tuple[int, ...]
UNREADABLE: Final = (
    OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
    SafetensorError, UnpicklingError,
)  # fmt: skip
"""What `read_state` raises for a file that is damaged, or holds other objects than tensors."""
WRAPPERS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights in a checkpoint, the averaged ones first."""
BY_SIZE: Final = re.compile(r"pos_embed|rel_pos|relative_position|attention_bias")
"""Tensors whose shape follows the image size, which are resampled or made anew when weights are loaded."""
UNNEEDED: Final = re.compile(
    r"^(aux\d?|AuxLogits)\.|(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|attention_bias_idxs)$"
)
"""Tensors that a file may have or lack: auxiliary classifiers, counters, what is computed from the image size."""
COMMON: Final = (
    "alexnet", "googlenet", "squeezenet1_0", "squeezenet1_1", "shufflenet_v2_x1_0", "mnasnet1_0", "mobilenet_v2",
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnet10t", "resnet26",
    "resnet50d", "densenet121", "densenet161", "densenet169", "densenet201", "vgg11", "vgg16", "vgg16_bn", "vgg19_bn",
    "inception_v3", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
    "tf_efficientnet_b0", "efficientnetv2_s", "mobilenetv3_large_100", "regnety_008", "regnety_032", "convnext_tiny",
    "convnext_small", "convnextv2_tiny", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
    "deit_tiny_patch16_224", "deit_small_patch16_224", "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224", "maxvit_tiny_tf_224",
)  # fmt: skip
"""Backbones that a file of unknown origin is compared with, beside those with names like the one it was given for."""
FAMILY_LIMIT: Final = 60


class Body(NamedTuple):
    """What a backbone's body is made of: shapes by name, the modules of the head, the first convolutions."""

    shapes: dict[str, Shape]
    heads: tuple[str, ...]
    first_convolutions: tuple[str, ...]


class Comparison(NamedTuple):
    """How many of a body's tensors are in a state, of how many; the first that differs: name, there, in the body."""

    matching: int
    total: int
    first: tuple[str, Shape | None, Shape | None] | None


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a checkpoint, without wrappers; other objects are not unpickled.

    Raises:
        one of UNREADABLE.
    """
    if path.suffix == ".safetensors":
        state: Any = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in WRAPPERS:
            state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("no state dict")
    return _own_backbone(timm.models.clean_state_dict(dict(state)))


def _own_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model of ours with `concat_pool` starts another from its backbone."""
    prefix = "backbone."
    if not any(name.startswith(prefix) for name in state) or not all(n.startswith((prefix, "head.")) for n in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def fitting_state(name: str, state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """`state` under the names of backbone `name`; its head may be of any form, its first convolution of any channels.

    Raises:
        ConfigError: the body differs; with what fits, the first difference, and the backbone it seems to be for.
    """
    comparison = compare(name, state)
    if comparison.first is None:
        return state
    if (converted := _converted(name, state)) is not None:
        return converted
    key, found, wanted = comparison.first
    other = _seems_for(name, state)
    raise ConfigError(
        f"weights of {name} must have the tensors of its body, but {file} has {comparison.matching} of "
        f"{comparison.total}: {key} is {_told(found)} in the file and {_told(wanted)} in {name}; "
        + (f"it fits {other}: search that, or give" if other else "it fits no common backbone: give")
        + f" a file of {name}, or pretrained: no"
    )


def _told(shape: Shape | None) -> str:
    return "missing" if shape is None else " × ".join(map(str, shape)) or "a number"


def compare(name: str, state: Mapping[str, Tensor]) -> Comparison:
    """Hold the names and shapes of a state against the body of a backbone."""
    wanted, heads, convolutions = body_of(name)
    found = {key: tuple(tensor.shape) for key, tensor in state.items() if not in_modules(key, heads)}
    keys = [key for key in dict.fromkeys([*wanted, *found]) if not UNNEEDED.search(key)]
    firsts = {f"{convolution}.weight" for convolution in convolutions}
    differing = [key for key in keys if not _alike(key, found.get(key), wanted.get(key), key in firsts)]
    first = (differing[0], found.get(differing[0]), wanted.get(differing[0])) if differing else None
    total = sum(key in wanted for key in keys)
    return Comparison(total - sum(key in wanted for key in differing), total, first)


def _alike(key: str, found: Shape | None, wanted: Shape | None, is_first: bool) -> bool:
    if found is None or wanted is None:
        return False
    if BY_SIZE.search(key):
        return True
    if is_first and len(found) == len(wanted):
        return found[0] == wanted[0] and found[2:] == wanted[2:]
    return found == wanted


@cache
def body_of(name: str) -> Body:
    """The body of a backbone at three channels and its native size."""
    model = blueprint(name, 3, 1, None)
    heads = head_names(model)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if not in_modules(key, heads)}
    return Body(shapes, heads, first_convolutions(model))


def _converted(name: str, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """A foreign checkpoint under timm's names, where timm knows how; None where it does not.

    Renaming keeps the number of elements of each tensor: what has others is not worth building a model for.
    """
    if not is_of_timm(name):
        return None
    shapes = [shape for key, shape in body_of(name).shapes.items() if not UNNEEDED.search(key)]
    if Counter(torch.Size(shape).numel() for shape in shapes) - Counter(tensor.numel() for tensor in state.values()):
        return None
    classes = int(timm.get_pretrained_cfg(name).num_classes)
    try:
        with drafting():
            return dict(build(name, 3, classes, None, {"state_dict": dict(state)}).state_dict())
    except IMPOSSIBLE:
        return None


def _seems_for(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The first backbone that a state fits: of the common ones, then of those whose names begin like this one's."""
    stem = re.match(r"[a-z]*", name)
    family = [other for other in sorted(known_backbones()) if stem and other.startswith(stem[0]) and "." not in other]
    candidates = dict.fromkeys([*COMMON, *family[:FAMILY_LIMIT]])
    return next((other for other in candidates if compare(other, state).first is None), None)

"""A backbone whose body starts from given weights.

In: a name, channels, classes, size, tensors that `fitting_state` approved. Out: a module with a new linear head.
"""

from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from ichsearch.errors import ConfigError
from ichsearch.model.blueprint import build, first_convolutions, head_names, in_modules, is_of_timm
from ichsearch.model.states import UNNEEDED, body_of


def load_state(name: str, channels: int, classes: int, size: int, state: dict[str, Tensor]) -> nn.Module:
    """A backbone whose body starts from `state`, with a new linear head.

    The first convolution is summed for one channel, repeated and scaled for others; positions are resampled.

    Raises:
        ConfigError: the body is made for one image size, and the weights are of another.
    """
    try:
        if is_of_timm(name):
            return _load_into_timm(name, channels, classes, size, state)
        return _load_into_torchvision(name, channels, classes, size, state)
    except RuntimeError as error:
        raise ConfigError(
            f"weights of {name} must fit images of {size} px, but they belong to another size "
            f"({_first_line(error)}); use their own size, or pretrained: no"
        ) from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _load_into_timm(name: str, channels: int, classes: int, size: int, state: dict[str, Tensor]) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    heads = body_of(name).heads
    body = {key: value for key, value in state.items() if not in_modules(key, heads)}
    # timm demands a head where the number of classes is the configured one: no model has -1.
    overlay: dict[str, Any] = {"state_dict": body, "num_classes": -1}
    if (source := _channels_of(name, state)) != config.input_size[0]:
        overlay["input_size"] = (source, *config.input_size[1:])
    model = build(name, channels, classes, size, overlay)
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "state_dict": None}  # type: ignore[dict-item,assignment]
    return model


def _channels_of(name: str, state: dict[str, Tensor]) -> int:
    """Channels of the images that weights were trained on; some first convolutions see blocks of pixels as channels."""
    body = body_of(name)
    key = f"{body.first_convolutions[0]}.weight" if body.first_convolutions else ""
    if key not in state or state[key].ndim != 4:
        return 3
    return int(state[key].shape[1]) * 3 // body.shapes[key][1]


def _load_into_torchvision(name: str, channels: int, classes: int, size: int, state: dict[str, Tensor]) -> nn.Module:
    model = build(name, channels, classes, size)
    heads = head_names(model)
    body = {key: value for key, value in state.items() if not in_modules(key, heads) and not key.startswith("aux")}
    first = f"{first_convolutions(model)[0]}.weight"
    body[first] = timm.models.adapt_input_conv(channels, body[first], base_chans=body[first].shape[1])
    if "encoder.pos_embedding" in body:
        patch_px: Any = model.get_submodule("conv_proj").stride
        body = dict(interpolate_embeddings(size, patch_px[0], body))
    result = model.load_state_dict(body, strict=False)
    assert all(in_modules(key, heads) or UNNEEDED.search(key) for key in result.missing_keys)
    return model

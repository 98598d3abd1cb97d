"""Heads: the backbone's own pooling and a linear layer, or fastai's head on average and maximum.

In: a backbone with a linear head. Out: the same, or its feature maps with the head of fastai's transfer learning.
"""

from collections import OrderedDict
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ichsearch.model.blueprint import IMPOSSIBLE, blank, blueprint, drafting, head_names

Head = Literal["linear", "concat_pool"]
HIDDEN: Final = 512
CLASSIFIERS: Final = frozenset(["avgpool", "dropout", "fc", "classifier", "head", "heads", "flatten"])
"""What torchvision calls the parts behind a backbone's feature maps."""


class Trunk(nn.Sequential):
    """The parts of a torchvision model in front of its classifier, in a row; `family` is the model's class."""

    def __init__(self, parts: OrderedDict[str, nn.Module], family: str) -> None:
        super().__init__(parts)
        self.family = family


class FeatureMaps(NamedTuple):
    """The feature maps of a backbone: how many, and whether they come as (B, H, W, C)."""

    features: int
    channels_last: bool


class ConcatPoolHead(nn.Sequential):
    """(B, features, H, W) to (B, classes), as fastai's `create_head` (vision/learner.py): state dicts fit both ways."""

    def __init__(self, features: int, classes: int) -> None:
        pooled = 2 * features
        super().__init__(
            _ConcatPool(),
            nn.Flatten(),
            nn.BatchNorm1d(pooled),
            nn.Dropout(0.25),
            nn.Linear(pooled, HIDDEN, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(HIDDEN),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, classes, bias=False),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)


class _ConcatPool(nn.Module):
    """(B, C, H, W) to (B, 2 C, 1, 1): maxima, then averages, in the order of fastai's `AdaptiveConcatPool2d`."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.amax((2, 3), keepdim=True), maps.mean((2, 3), keepdim=True)], dim=1)


class ConcatPoolModel(nn.Module):
    """A backbone cut at its feature maps, with fastai's head."""

    def __init__(self, backbone: nn.Module, head: ConcatPoolHead, *, channels_last: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._channels_last = channels_last

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) float32 to (B, classes) logits."""
        maps: Tensor = features_of(self.backbone, images)
        logits: Tensor = self.head(maps.movedim(-1, 1) if self._channels_last else maps)
        return logits


def keep_logits_float32(model: nn.Module) -> None:
    """Let the layers that give logits work in float32 under autocast too: rounded logits tie, and ties have no rank."""
    names = (f"head.{len(model.head) - 1}",) if isinstance(model, ConcatPoolModel) else head_names(model)
    for name in names:
        parts = [part for part in model.get_submodule(name).modules() if list(part.parameters(recurse=False))]
        for layer in parts[-1:]:
            layer.register_forward_hook(_in_float32)


def _in_float32(layer: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
    """What the layer gives without autocast; None, which leaves its output alone, if that is float32 already."""
    if logits.dtype == torch.float32:
        return None
    with torch.autocast(logits.device.type, enabled=False):
        whole: Tensor = layer.forward(inputs[0].float())
    return whole


def features_of(backbone: nn.Module, images: Tensor) -> Any:
    """What a backbone, of timm or cut by `cut`, gives in front of its pooling: maps, tokens or a list of either."""
    return getattr(backbone, "forward_features", backbone)(images)


def with_concat_pool(name: str, model: nn.Module, channels: int, classes: int, size: int) -> nn.Module:
    """`model`, which is `name` with a linear head, with fastai's head in its place."""
    form = feature_form(name, channels, size)
    assert form is not None, "check_backbone refuses what has no feature maps"
    backbone = cut(model, _unused(name, channels, size))
    return ConcatPoolModel(backbone, ConcatPoolHead(form.features, classes), channels_last=form.channels_last)


def cut(model: nn.Module, unused: frozenset[str] = frozenset()) -> nn.Module:
    """A backbone without what comes behind its feature maps; parameters keep their names.

    Models of timm say themselves where that is, and lose only the `unused` parts; of torchvision's the parts in front
    of the classifier are put in a row.
    """
    if hasattr(model, "forward_features"):
        for part in unused:
            setattr(model, part, nn.Identity())
        return model
    parts = [(name, part) for name, part in model.named_children() if name not in CLASSIFIERS]
    row = [(name, nn.Sequential(*part) if isinstance(part, nn.ModuleList) else part) for name, part in parts]
    return Trunk(OrderedDict(row), type(model).__name__)


@cache
def feature_form(name: str, channels: int, size: int) -> FeatureMaps | None:
    """The feature maps that a backbone makes of images of `size` pixels; None for tokens and other forms."""
    with drafting():
        model = cut(blueprint(name, channels, 1, size))
        try:
            maps = features_of(model, blank(channels, size))
        except IMPOSSIBLE:  # torchvision's vit: its parts make no row
            return None
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        return None
    features = int(getattr(model, "num_features", maps.shape[1]))
    if features not in (maps.shape[1], maps.shape[-1]):
        return None
    return FeatureMaps(features, channels_last=maps.shape[1] != features)


@cache
def _unused(name: str, channels: int, size: int) -> frozenset[str]:
    """Top-level parts of a timm model that its feature maps do not pass through: they would only cost memory."""
    model = blueprint(name, channels, 1, size)
    used: set[str] = set()

    def note(part: str) -> Any:
        return lambda *_: used.add(part)

    for part, module in model.named_children():
        for inner in module.modules():
            inner.register_forward_pre_hook(note(part))
    with drafting():
        features_of(model, blank(channels, size))
    with_parameters = {part for part, module in model.named_children() if any(True for _ in module.parameters())}
    return frozenset(with_parameters - used)

"""Which parameters are the early body, the late body and the head, and which of them train.

In: a model of `create_model`. Out: three groups for discriminative learning rates; a frozen or free body.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from timm.models import group_parameters
from torch import nn

from ichsearch.model.blueprint import head_names, in_modules
from ichsearch.model.heads import ConcatPoolModel, Trunk

LATE_BODY: Final[Mapping[str, str]] = {
    "DenseNet": "features.transition2.",
    "AlexNet": "features.6.",
    "SqueezeNet": "features.5.",
}
"""Where the late body starts in fastai's splits (`features[:7]`, `[:6]`, `[:5]`), where the general rule differs."""


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Early body, late body, head: every parameter once, in the model's order.

    ResNet, DenseNet, AlexNet and SqueezeNet are cut where fastai's `vision_learner` cuts them (vision/learner.py). Any
    other body is cut at half of its blocks: stages as timm groups them, else the numbered modules in their order. The
    head is what no pretrained weights can fill: under `linear` the last layer, under `concat_pool` all of it.
    """
    body, head = _body_and_head(model)
    early = _early(model.backbone if isinstance(model, ConcatPoolModel) else model, list(body))
    return [
        [parameter for name, parameter in body.items() if name in early],
        [parameter for name, parameter in body.items() if name not in early],
        head,
    ]


def freeze_body(model: nn.Module) -> None:
    """Leave only the head and the body's norm layers trainable, as fastai freezes a body."""
    body, _ = _body_and_head(model)
    norms = {id(parameter) for parameter in _norm_parameters(model)}
    for parameter in body.values():
        parameter.requires_grad_(id(parameter) in norms)


def unfreeze(model: nn.Module) -> None:
    """Make every parameter trainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _body_and_head(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
    """The body's parameters under their names in the backbone, and the head's."""
    if isinstance(model, ConcatPoolModel):
        return dict(model.backbone.named_parameters()), list(model.head.parameters())
    heads = head_names(model)
    named = list(model.named_parameters())
    body = {name: parameter for name, parameter in named if not in_modules(name, heads)}
    return body, [parameter for name, parameter in named if in_modules(name, heads)]


def _norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that are a norm layer's own; timm has dozens of such layers, all with Norm in their name."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            yield from module.parameters(recurse=False)


def _early(backbone: nn.Module, names: list[str]) -> set[str]:
    """Names of the early body's parameters, never none and never all."""
    start = LATE_BODY.get(backbone.family if isinstance(backbone, Trunk) else type(backbone).__name__)
    cut = next((index for index, name in enumerate(names) if start and name.startswith(start)), 0)
    early = set(names[:cut]) or _half_of_stages(backbone, names)
    return early if 0 < len(early) < len(names) else _half_of_units(names)


def _half_of_stages(backbone: nn.Module, names: list[str]) -> set[str]:
    """The stem and half of the stages, as timm groups parameters; empty for models that it does not group."""
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        return set()
    try:
        stage_of = group_parameters(backbone, matcher(coarse=True), reverse=True)
    except AssertionError:  # timm's RDNet knows no stages
        return set()
    stages = sorted({stage_of[name] for name in names})
    early = stages[: 1 + (len(stages) - 1) // 2]
    return {name for name in names if stage_of[name] in early}


def _half_of_units(names: list[str]) -> set[str]:
    """Half of the body, cut where a numbered module (`features.3`, `stage2`) or one without a number ends."""
    units = list(dict.fromkeys(_unit(name) for name in names))
    early = set(units[: len(units) // 2])
    return {name for name in names if _unit(name) in early}


def _unit(name: str) -> str:
    parts = name.split(".")[:-1]
    numbered = next((i for i, part in enumerate(parts) if any(c.isdigit() for c in part)), len(parts))
    return ".".join(parts[: numbered + 1]) or name

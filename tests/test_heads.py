"""Heads and layer groups, held against fastai's own where it is installed."""

import pytest
import torch
from torch import nn

from ichsearch.errors import ConfigError
from ichsearch.model.backbones import check_backbone, create_model, parameters_m
from ichsearch.model.blueprint import blueprint, head_names, in_modules
from ichsearch.model.groups import freeze_body, layer_groups, unfreeze
from ichsearch.model.heads import ConcatPoolHead, ConcatPoolModel, with_concat_pool

MAPS = (
    "resnet10t", "mobilenetv3_small_050", "regnetx_002", "swin_tiny_patch4_window7_224", "mambaout_femto",
    "alexnet", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "swin_t", "regnet_y_400mf",
)  # fmt: skip
TOKENS = ("vit_tiny_patch16_224", "mixer_s32_224", "levit_128s", "vit_b_32", "coat_lite_tiny")
GROUPED = (
    *MAPS, *TOKENS, "resnet18", "resnet50", "densenet121", "vgg11", "efficientnet_b0", "convnext_atto", "inception_v3",
    "maxvit_pico_rw_256", "vit_tiny_r_s16_p8_224",
    "crossvit_tiny_240", "hrnet_w18_small", "mobilenet_v2", "efficientnet_v2_s", "repvgg_a0", "rdnet_tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_fastais_head_trains_all_of_a_backbone(name: str) -> None:
    model = create_model(name, channels=1, classes=5, size=64, head="concat_pool").train()
    logits = model(torch.randn(2, 1, 64, 64))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", TOKENS)
def test_a_backbone_of_tokens_is_told_to_use_the_linear_head(name: str) -> None:
    check_backbone(name, 64)
    with pytest.raises(ConfigError, match=f"concat_pool needs feature maps, but {name} .*head: linear"):
        check_backbone(name, 64, head="concat_pool")


def test_layers_behind_the_maps_are_left_out() -> None:
    vgg = blueprint("vgg11", 3, 1, 64)
    assert parameters_m(vgg) > 128
    assert parameters_m(with_concat_pool("vgg11", vgg, 3, 6, 64)) == pytest.approx(9.7509, abs=1e-3)


def test_maps_with_channels_last_are_pooled_over_space() -> None:
    model = create_model("swin_tiny_patch4_window7_224", channels=1, classes=5, size=64, head="concat_pool").eval()
    assert isinstance(model, ConcatPoolModel)
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        maps = model.backbone.forward_features(images)  # type: ignore[operator]
        pooled = model.head[0](maps.permute(0, 3, 1, 2)).flatten(1)
        assert pooled.shape == (2, 2 * 768)
        torch.testing.assert_close(pooled, torch.cat([maps.amax((1, 2)), maps.mean((1, 2))], dim=1))
        torch.testing.assert_close(model(images), model.head(maps.permute(0, 3, 1, 2)))


@pytest.mark.filterwarnings("ignore")
def test_the_head_is_fastais() -> None:
    learner = pytest.importorskip("fastai.vision.learner")
    theirs = learner.create_head(96, 6).eval()
    ours = ConcatPoolHead(96, 6).eval()
    leaves = [module for module in theirs.modules() if not list(module.children()) and list(module.parameters())]
    own = [module for module in ours if list(module.parameters())]
    assert [type(module) for module in own] == [type(module) for module in leaves]
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    assert [m.p for m in ours if isinstance(m, nn.Dropout)] == [
        m.p for m in theirs.modules() if isinstance(m, nn.Dropout)
    ]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    maps = torch.randn(3, 96, 4, 4)
    torch.testing.assert_close(ours(maps), theirs(maps))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "alexnet", "squeezenet1_0"])
def test_groups_and_parameters_are_fastais(name: str) -> None:
    learner = pytest.importorskip("fastai.vision.learner")
    architecture = getattr(learner.models, name)
    theirs = learner.create_vision_model(architecture, 6, pretrained=False)
    groups = learner.model_meta[architecture]["split"](theirs)
    ours = create_model(name, channels=3, classes=6, size=64, head="concat_pool")
    assert parameters_m(ours) == parameters_m(theirs)
    assert [[p.shape for p in group] for group in layer_groups(ours)] == [[p.shape for p in group] for group in groups]


@pytest.mark.parametrize("name", sorted(set(GROUPED)))
def test_every_parameter_is_in_one_of_three_groups(name: str) -> None:
    model = blueprint(name, 1, 6, None)
    groups = layer_groups(model)
    assert len(groups) == 3
    assert all(groups)
    grouped = [id(parameter) for group in groups for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    heads = head_names(model)
    head = [parameter for key, parameter in model.named_parameters() if in_modules(key, heads)]
    assert {id(parameter) for parameter in groups[2]} == {id(parameter) for parameter in head}
    assert sum(parameter.shape[0] == 6 for parameter in groups[2]) == len(groups[2])


def test_a_resnet_is_cut_before_its_third_stage() -> None:
    model = blueprint("resnet18", 3, 6, None)
    early = {id(parameter) for parameter in layer_groups(model)[0]}
    parts = {key.partition(".")[0] for key, parameter in model.named_parameters() if id(parameter) in early}
    assert parts == {"conv1", "bn1", "layer1", "layer2"}


@pytest.mark.parametrize("head", ["linear", "concat_pool"])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "swin_t"])
def test_a_frozen_body_trains_only_its_norms_and_the_head(name: str, head: str) -> None:
    model = create_model(name, channels=1, classes=6, size=32, head=head)  # type: ignore[arg-type]
    freeze_body(model)
    free = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    norms = {id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters()}
    assert free == norms | {id(parameter) for parameter in layer_groups(model)[2]}
    assert len(free) < len(list(model.parameters()))
    unfreeze(model)
    assert all(parameter.requires_grad for parameter in model.parameters())

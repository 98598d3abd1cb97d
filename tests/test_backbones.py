"""Backbones: form of what comes out, the first convolution for one channel, and what is refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import alexnet

from ichsearch.errors import ConfigError
from ichsearch.model.backbones import check_backbone, create_model, known_backbones, parameters_m, to_device
from ichsearch.model.blueprint import blank, blueprint, build, drafting

FAMILIES = (
    "resnet10t", "densenet121", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224", "mixer_s32_224",
    "swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "regnetx_002", "maxvit_pico_rw_256", "test_resnet",
    "levit_128s", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "mobilenet_v2",
    "swin_t",
)  # fmt: skip
PAPER = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
FIRST = {"resnet18": "conv1.weight", "alexnet": "features.0.weight"}
SECOND = {"resnet18": "layer1.0.conv1.weight", "alexnet": "features.3.weight"}
HEAD = {"resnet18": "fc.weight", "alexnet": "classifier.6.weight"}


@pytest.fixture(scope="module", params=["resnet18", "alexnet"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A backbone for RGB and 1000 classes with random weights, as a file; float16 beyond the first layer."""
    torch.manual_seed(11)
    name = str(request.param)
    model = alexnet() if name == "alexnet" else timm.create_model(name)
    path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
    exact = {FIRST[name], "bn1.num_batches_tracked"}
    save_file({key: value if key in exact else value.half() for key, value in model.state_dict().items()}, path)
    yield name, path
    path.unlink()


def stored(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float()


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_papers_backbones_give_six_logits(name: str, channels: int) -> None:
    check_backbone(name, 64)
    model = create_model(name, channels=channels, classes=6, size=64).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, channels, 64, 64))
    assert logits.shape == (2, 6)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_one_channel_starts_from_the_sum_of_the_rgb_weights(original: tuple[str, Path]) -> None:
    name, path = original
    adapted = create_model(name, channels=1, classes=6, size=64, weights=path).state_dict()
    summed = stored(path, FIRST[name]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(adapted[FIRST[name]], summed, rtol=0, atol=1e-6)


def test_three_channels_and_deeper_layers_start_from_the_file(original: tuple[str, Path]) -> None:
    name, path = original
    loaded = create_model(name, channels=3, classes=6, size=64, weights=path).state_dict()
    for key in (FIRST[name], SECOND[name]):
        torch.testing.assert_close(loaded[key], stored(path, key), rtol=0, atol=0)
    assert loaded[HEAD[name]].shape[0] == 6


def test_a_grey_image_looks_the_same_to_one_channel_as_to_three(original: tuple[str, Path]) -> None:
    name, path = original
    grey = torch.randn(2, 1, 64, 64)
    one, three = (create_model(name, channels=channels, classes=6, size=64, weights=path).eval() for channels in (1, 3))
    three.load_state_dict({key: value for key, value in one.state_dict().items() if key != FIRST[name]}, strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_is_let_in_trains(name: str) -> None:
    check_backbone(name, 64, channels=1)
    model = create_model(name, channels=1, classes=5, size=64).train()
    logits = model(torch.randn(2, 1, 64, 64))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_backbone_that_tries_itself_out_while_it_is_built_is_let_in() -> None:
    check_backbone("vit_tiny_r_s16_p8_224", 224)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_outputs_are_left_out(name: str) -> None:
    model = blueprint(name, 3, 6, 96).train()
    assert model(blank(3, 96)).shape == (2, 6)
    assert not [key for key, _ in model.named_parameters() if "aux" in key.lower()]


def test_a_name_that_both_have_is_timms() -> None:
    assert type(blueprint("resnet18", 3, 6, 64)).__module__.startswith("timm")
    assert type(blueprint("googlenet", 3, 6, 64)).__module__.startswith("torchvision")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 70, "at least 75 px, but size is 70"),
        ("vit_tiny_patch16_224", 100, "100 px .*patches of 16 px.*use 96 or 112"),
        ("vit_small_patch14_dinov2", 256, "256 px .*use 252 or 266"),
        ("mixer_s32_224", 80, "80 px .*use 64 or 96"),
        ("vit_b_32", 80, "80 px .*use 64 or 96"),
        ("maxvit_pico_rw_256", 100, r"100 px .*divisible.*use 96 or 128"),
        ("maxvit_t", 256, "256 px .*use 224"),
        ("efficientformer_l1", 64, "64 px .*use 224"),
    ],
)
def test_a_size_that_cannot_be_seen_is_refused_with_those_that_can(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*{message}") as refusal:
        check_backbone(name, size)
    for better in re.findall(r"\d+", re.split("use |at least ", str(refusal.value))[1].split(" px")[0]):
        check_backbone(name, int(better))


@pytest.mark.parametrize(
    "name", ["alexnet", "resnet10t", "vit_tiny_patch16_224", "maxvit_pico_rw_256", "regnet_y_400mf"]
)
@pytest.mark.parametrize("size", [32, 64, 72])
def test_the_check_says_what_a_real_forward_does(name: str, size: int) -> None:
    try:
        check_backbone(name, size)
        refused = False
    except ConfigError:
        refused = True
    try:
        with drafting():
            logits = build(name, 3, 6, size)(torch.zeros(2, 3, size, size))
        failed = logits.shape != (2, 6)
    except (RuntimeError, AssertionError, ValueError):
        failed = True
    cut_off = name.startswith("vit") and size % 16  # timm only drops what its patches do not cover
    assert refused == (failed or bool(cut_off))


def test_the_check_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_backbone("resnet14t", 96, head="concat_pool")
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_gives_the_same_weights_whatever_was_checked_before() -> None:
    def first() -> Tensor:
        torch.manual_seed(7)
        return next(create_model("resnet10t", channels=1, classes=6, size=48, head="concat_pool").parameters())

    assert torch.equal(first(), first())


def test_torchvisions_first_convolution_repeats_for_more_channels(original: tuple[str, Path]) -> None:
    name, path = original
    adapted = create_model(name, channels=6, classes=2, size=64, weights=path).state_dict()[FIRST[name]]
    expected = stored(path, FIRST[name]).repeat(1, 2, 1, 1) / 2
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["test_vit", "vit_b_32"])
def test_positions_are_resampled_to_the_images(name: str, tmp_path: Path) -> None:
    model = build(name, 3, 2, 160)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in model.state_dict().items()}, path)
    assert create_model(name, channels=1, classes=6, size=64, weights=path)(torch.zeros(2, 1, 64, 64)).shape == (2, 6)


@pytest.mark.parametrize(
    ("typed", "meant"), [("resnet_18", "resnet18"), ("denset121", "densenet121"), ("alexnte", "alexnet")]
)
def test_an_unknown_name_is_answered_with_the_near_one(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{typed}.*did you mean .*\b{meant}\b"):
        check_backbone(typed, 64)


def test_a_name_like_no_other_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"timm\.list_models"):
        check_backbone("~~~~", 64)


def test_alexnet_needs_63_pixels_as_its_strides_do() -> None:
    with pytest.raises(ConfigError, match="at least 63 px, but size is 62"):
        check_backbone("alexnet", 62)
    check_backbone("alexnet", 63)
    features = alexnet().features
    assert features(torch.zeros(1, 3, 63, 63)).shape[-1] == 1
    with pytest.raises(RuntimeError, match="too small"):
        features(torch.zeros(1, 3, 62, 62))


def test_a_backbone_of_fixed_size_is_made_for_the_images() -> None:
    model = create_model("vit_tiny_patch16_224", channels=1, classes=6, size=64).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 6)


def test_all_of_timm_and_torchvision_are_known() -> None:
    assert {
        *PAPER,
        "resnet10t",
        "efficientnet_b0",
        "resnet18.a1_in1k",
        "googlenet",
        "squeezenet1_0",
        "vit_b_16",
    } <= known_backbones()


def test_parameters_are_counted_in_millions() -> None:
    model = torch.nn.Linear(999, 1000)
    assert parameters_m(model) == 1.0
    model.bias.requires_grad = False
    assert parameters_m(model) == 0.999


def test_on_a_cpu_the_model_stays_as_it_is() -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    assert to_device(model, torch.device("cpu")).weight.is_contiguous()

"""Backbones: form of what comes out, the first convolution for one channel, and what is refused."""

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
from ichsearch.model.backbones import check_backbone, create_backbone, known_backbones, parameters_m, to_device

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
    model = create_backbone(name, channels, 6, 64).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, channels, 64, 64))
    assert logits.shape == (2, 6)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_one_channel_starts_from_the_sum_of_the_rgb_weights(original: tuple[str, Path]) -> None:
    name, path = original
    adapted = create_backbone(name, 1, 6, 64, path).state_dict()
    summed = stored(path, FIRST[name]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(adapted[FIRST[name]], summed, rtol=0, atol=1e-6)


def test_three_channels_and_deeper_layers_start_from_the_file(original: tuple[str, Path]) -> None:
    name, path = original
    loaded = create_backbone(name, 3, 6, 64, path).state_dict()
    for key in (FIRST[name], SECOND[name]):
        torch.testing.assert_close(loaded[key], stored(path, key), rtol=0, atol=0)
    assert loaded[HEAD[name]].shape[0] == 6


def test_a_grey_image_looks_the_same_to_one_channel_as_to_three(original: tuple[str, Path]) -> None:
    name, path = original
    grey = torch.randn(2, 1, 64, 64)
    one, three = (create_backbone(name, channels, 6, 64, path).eval() for channels in (1, 3))
    three.load_state_dict({key: value for key, value in one.state_dict().items() if key != FIRST[name]}, strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


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
    model = create_backbone("vit_tiny_patch16_224", 1, 6, 64).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 6)


def test_all_of_timm_and_alexnet_are_known() -> None:
    assert {*PAPER, "resnet10t", "efficientnet_b0"} <= known_backbones()


def test_parameters_are_counted_in_millions() -> None:
    model = torch.nn.Linear(999, 1000)
    assert parameters_m(model) == 1.0
    model.bias.requires_grad = False
    assert parameters_m(model) == 0.999


def test_on_a_cpu_the_model_stays_as_it_is() -> None:
    model = torch.nn.Conv2d(3, 4, 3)
    assert to_device(model, torch.device("cpu")).weight.is_contiguous()

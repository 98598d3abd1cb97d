"""Start weights: from a folder or the hub's cache, by the policy; no test asks the network."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import densenet121

from ichsearch.errors import ConfigError
from ichsearch.model import weights
from ichsearch.model.backbones import create_model
from ichsearch.model.blueprint import build
from ichsearch.model.weights import Policy, obtain_weights


def state_of(name: str, channels: int = 3, classes: int = 10) -> dict[str, Tensor]:
    """A backbone's own tensors with random values."""
    return {key: value.clone() for key, value in build(name, channels, classes, None).state_dict().items()}


@pytest.fixture(scope="module")
def values() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return state_of("test_resnet")


@pytest.fixture
def source(tmp_path: Path, values: dict[str, Tensor]) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(values, folder / "test_resnet.safetensors")
    return folder


@pytest.mark.parametrize("policy", ["require", "auto"])
@pytest.mark.parametrize("given", ["", "test_resnet.safetensors"])
def test_weights_of_a_folder_or_a_file_are_copied_to_the_run(
    source: Path, tmp_path: Path, policy: Policy, given: str, values: dict[str, Tensor]
) -> None:
    start = obtain_weights("test_resnet", policy, tmp_path / "run", source / given)
    assert start == (tmp_path / "run" / "test_resnet.safetensors", "pretrained")
    assert start.path is not None
    loaded = load_file(start.path)
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], values[name]) for name in values)


@pytest.mark.parametrize(
    "wrap", [dict, lambda state: {"epoch": 3, "state_dict": {f"module.{k}": state[k] for k in state}}]
)
def test_a_pth_file_becomes_safetensors(
    source: Path, tmp_path: Path, values: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], dict[str, object]]
) -> None:
    torch.save(wrap(values), source / "some.pth")
    start = obtain_weights("test_resnet", "require", tmp_path / "run", source / "some.pth")
    assert start.path is not None
    loaded = load_file(start.path)
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], values[name]) for name in values)


def test_weights_that_are_there_are_not_fetched_again(source: Path, tmp_path: Path) -> None:
    first = obtain_weights("test_resnet", "require", tmp_path / "run", source)
    (source / "test_resnet.safetensors").unlink()
    assert obtain_weights("test_resnet", "require", tmp_path / "run", source) == first


def test_weights_that_were_absent_when_a_run_began_stay_absent(source: Path, tmp_path: Path) -> None:
    """Else trials of one run would start from different weights, and be ranked together."""
    (away := tmp_path / "away").mkdir()
    first = obtain_weights("test_resnet", "auto", tmp_path / "run", away)
    assert first == (None, "scratch (no test_resnet.safetensors in the weights folder)")
    assert obtain_weights("test_resnet", "auto", tmp_path / "run", source) == first
    assert obtain_weights("test_resnet", "auto", tmp_path / "another run", source).path is not None


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"torn")])
def test_weights_that_a_run_began_with_are_not_given_up(
    source: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    first = obtain_weights("test_resnet", "auto", tmp_path / "run", source)
    assert first.path is not None
    damage(first.path)
    (source / "test_resnet.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"began with those of test_resnet, but .*bring weights/test_resnet\.safe"):
        obtain_weights("test_resnet", "auto", tmp_path / "run", source)


def test_no_means_scratch_even_where_weights_are(source: Path, tmp_path: Path) -> None:
    obtain_weights("test_resnet", "require", tmp_path / "run", source)
    assert obtain_weights("test_resnet", "no", tmp_path / "run", source) == (None, "scratch")


def test_required_weights_that_are_missing_are_a_config_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights of resnet50, but .*no resnet50\.safetensors.*pretrained: auto"):
        obtain_weights("resnet50", "require", tmp_path / "run", source)


def test_auto_starts_from_scratch_and_says_why(source: Path, tmp_path: Path) -> None:
    start = obtain_weights("resnet50", "auto", tmp_path / "run", source)
    assert start == (None, "scratch (no resnet50.safetensors in the weights folder)")
    assert not (tmp_path / "run" / "resnet50.safetensors").exists()


@pytest.mark.parametrize("name", ["resnet50.safetensors", "resnet50.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_damaged_weights_file_is_told_like_a_missing_one(
    source: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(ConfigError, match="weights of resnet50, but they cannot be had"):
        obtain_weights("resnet50", "require", tmp_path / "run", source)
    start = obtain_weights("resnet50", "auto", tmp_path / "run", source)
    assert start.path is None
    assert start.origin.startswith("scratch (")


def test_a_torn_weights_file_is_told_like_a_missing_one(source: Path, tmp_path: Path) -> None:
    path = source / "test_resnet.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="weights of test_resnet, but they cannot be had"):
        obtain_weights("test_resnet", "require", tmp_path / "run", source)


@pytest.mark.parametrize("backbone", ["resnet18", "alexnet", "googlenet"])
def test_without_a_network_and_a_cache_the_reason_is_the_hub(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_reachable", lambda url: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    start = obtain_weights(backbone, "auto", tmp_path / "run")
    assert start == (None, "scratch (the weights hub does not answer, and its local cache has none)")
    with pytest.raises(ConfigError, match="the weights hub does not answer"):
        obtain_weights(backbone, "require", tmp_path / "run")


def test_a_backbone_without_pretrained_weights_says_so(tmp_path: Path) -> None:
    assert obtain_weights("resnet10t_of_nobody", "auto", tmp_path / "run").origin.startswith("scratch (")


class Stranger:
    """An object that a file of tensors has no need of."""

    made: ClassVar[int] = 0

    def __setstate__(self, state: object) -> None:
        Stranger.made += 1


def test_objects_in_a_file_are_never_made(source: Path, tmp_path: Path, values: dict[str, Tensor]) -> None:
    stranger = Stranger()
    stranger.__dict__["x"] = 1
    torch.save({"state_dict": values, "by": stranger}, source / "strange.pth")
    with pytest.raises(ConfigError, match=r"cannot be had \(unreadable: UnpicklingError"):
        obtain_weights("test_resnet", "require", tmp_path / "run", source / "strange.pth")
    assert Stranger.made == 0


@pytest.mark.parametrize("policy", ["require", "auto"])
def test_weights_of_another_body_are_refused_with_the_one_they_fit(tmp_path: Path, policy: Policy) -> None:
    save_file(state_of("resnet18"), tmp_path / "some.safetensors")
    message = (
        r"weights of resnet34 must .* but some\.safetensors has 100 of 180: layer1\.2\.conv1\.weight is missing in the "
        r"file and 64 × 64 × 3 × 3 in resnet34; it fits resnet18: .* a file of resnet34, or pretrained: no"
    )
    with pytest.raises(ConfigError, match=message):
        obtain_weights("resnet34", policy, tmp_path / "run", tmp_path / "some.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_deeper_body_is_not_taken_for_a_shallow_one(tmp_path: Path) -> None:
    save_file(state_of("resnet34"), tmp_path / "resnet18.safetensors")
    with pytest.raises(
        ConfigError, match=r"100 of 100: layer1\.2\.\S+ is .* in the file and missing in resnet18; it fits resnet34"
    ):
        obtain_weights("resnet18", "auto", tmp_path / "run", tmp_path)


def test_tensors_of_no_backbone_are_refused(tmp_path: Path) -> None:
    save_file({"layers.weight": torch.zeros(3)}, tmp_path / "alexnet.safetensors")
    with pytest.raises(ConfigError, match=r"has 0 of 14: features\.0\.weight is missing .* fits no common backbone"):
        obtain_weights("alexnet", "auto", tmp_path / "run", tmp_path)


@pytest.mark.parametrize("name", ["test_resnet", "squeezenet1_1", "test_vit"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 5), (3, 6), (3, 1000)])
def test_another_head_and_other_channels_are_no_obstacle(
    name: str, channels: int, classes: int, tmp_path: Path
) -> None:
    state = state_of(name, channels, classes)
    save_file(state, tmp_path / "own.safetensors")
    start = obtain_weights(name, "require", tmp_path / "run", tmp_path / "own.safetensors")
    model = create_model(name, channels=3, classes=6, size=64, weights=start.path).state_dict()
    body = {key for key in state if state[key].ndim == 4 and not key.startswith("classifier.")}
    first = next(key for key in state if key in body)
    expected = state[first] if channels == 3 else state[first].repeat(1, 3, 1, 1) / 3
    torch.testing.assert_close(model[first], expected)
    assert all(torch.equal(model[key], state[key]) for key in body - {first})


def test_a_model_with_fastais_head_starts_another(tmp_path: Path) -> None:
    model = create_model("test_resnet", channels=1, classes=5, size=32, head="concat_pool")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    other = create_model("test_resnet", channels=1, classes=6, size=32, weights=tmp_path / "own.safetensors")
    assert all(
        torch.equal(model.state_dict()[f"backbone.{k}"], v) for k, v in other.state_dict().items() if "fc" not in k
    )


def test_names_that_timm_knows_to_translate_are_translated(tmp_path: Path) -> None:
    theirs = densenet121(num_classes=1000)
    old = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    renamed = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in old.items()}
    torch.save(renamed, tmp_path / "densenet121.pth")
    start = obtain_weights("densenet121", "require", tmp_path / "run", tmp_path)
    model = create_model("densenet121", channels=3, classes=6, size=32, weights=start.path).state_dict()
    body = {key: value for key, value in old.items() if not key.startswith("classifier")}
    assert all(torch.equal(model[key], body[key]) for key in body)


def test_auxiliary_classifiers_in_a_file_are_passed_over(tmp_path: Path) -> None:
    state = state_of("googlenet") | {"aux1.fc1.weight": torch.zeros(1024, 2048), "aux2.conv.bn.bias": torch.zeros(128)}
    save_file(state, tmp_path / "googlenet.safetensors")
    model = create_model("googlenet", channels=1, classes=6, size=64, weights=tmp_path / "googlenet.safetensors")
    assert torch.equal(
        model.state_dict()["inception5b.branch4.1.conv.weight"], state["inception5b.branch4.1.conv.weight"]
    )


def test_weights_of_a_fixed_size_are_refused_for_other_images(tmp_path: Path) -> None:
    save_file(state_of("mixer_s32_224"), tmp_path / "mixer_s32_224.safetensors")
    obtain_weights("mixer_s32_224", "require", tmp_path / "fits", tmp_path, sizes=[224])
    with pytest.raises(ConfigError, match=r"weights of mixer_s32_224 must fit images of 64 px, but .*pretrained: no"):
        obtain_weights("mixer_s32_224", "auto", tmp_path / "run", tmp_path, sizes=[224, 64])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_model_is_not_made_from_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a file of tensors, but own\.safetensors is not"):
        create_model("test_resnet", channels=1, classes=6, size=32, weights=tmp_path / "own.safetensors")

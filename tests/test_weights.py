"""Start weights: from a folder or the hub's cache, by the policy; no test asks the network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ichsearch.errors import ConfigError
from ichsearch.model import weights
from ichsearch.model.weights import Policy, obtain_weights

VALUES = {"conv1.weight": torch.arange(12.0).reshape(3, 4), "bn1.running_mean": torch.ones(3)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(VALUES, folder / "resnet18.safetensors")
    return folder


@pytest.mark.parametrize("policy", ["require", "auto"])
def test_weights_of_a_folder_are_copied_to_the_run(source: Path, tmp_path: Path, policy: Policy) -> None:
    start = obtain_weights("resnet18", policy, tmp_path / "run", source)
    assert start == (tmp_path / "run" / "resnet18.safetensors", "pretrained")
    assert start.path is not None
    loaded = load_file(start.path)
    assert loaded.keys() == VALUES.keys()
    assert all(torch.equal(loaded[name], VALUES[name]) for name in VALUES)


def test_a_pth_file_becomes_safetensors(source: Path, tmp_path: Path) -> None:
    torch.save(VALUES, source / "resnet50.pth")
    start = obtain_weights("resnet50", "require", tmp_path / "run", source)
    assert start.path is not None
    assert torch.equal(load_file(start.path)["conv1.weight"], VALUES["conv1.weight"])


def test_weights_that_are_there_are_not_fetched_again(source: Path, tmp_path: Path) -> None:
    first = obtain_weights("resnet18", "require", tmp_path / "run", source)
    (source / "resnet18.safetensors").unlink()
    assert obtain_weights("resnet18", "require", tmp_path / "run", source) == first


def test_no_means_scratch_even_where_weights_are(source: Path, tmp_path: Path) -> None:
    obtain_weights("resnet18", "require", tmp_path / "run", source)
    assert obtain_weights("resnet18", "no", tmp_path / "run", source) == (None, "scratch")


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
    path = source / "resnet18.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match="weights of resnet18, but they cannot be had"):
        obtain_weights("resnet18", "require", tmp_path / "run", source)


@pytest.mark.parametrize("backbone", ["resnet18", "alexnet"])
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

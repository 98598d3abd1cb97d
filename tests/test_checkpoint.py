"""Checkpoints: what is loaded is what was saved, to the bit, and a damaged one is never loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ichsearch.train.checkpoint import TrainState, load_checkpoint, save_checkpoint, whole_checkpoint


def make_state(seed: int) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    groups = [
        {"params": [model[0].weight, model[2].weight]},
        {"params": list(model[1].parameters()), "weight_decay": 0.0},
    ]
    return TrainState(model, torch.optim.AdamW(groups, lr=0.0, fused=True), {}, {"epochs": [], "best": None})


def train_epoch(state: TrainState, epoch: int) -> None:
    """Some steps that depend on the state and the epoch alone."""
    generator = torch.Generator().manual_seed(epoch)
    state.model.train()
    for _ in range(3):
        state.optimizer.zero_grad()
        for group in state.optimizer.param_groups:
            group["lr"] = 0.01 * epoch
        loss = state.model(torch.randn(8, 3, generator=generator)).square().mean()
        loss.backward()
        state.optimizer.step()
    state.records["epochs"].append({"epoch": epoch, "train_loss": loss.item(), "auroc_epidural": None})
    if epoch == 2:
        state.records["best"] = {"score": loss.item(), "epoch": epoch}
        state.best_weights = {name: value.clone() for name, value in state.model.state_dict().items()}


def trained(epochs: int) -> TrainState:
    state = make_state(0)
    for epoch in range(1, epochs + 1):
        train_epoch(state, epoch)
    return state


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named 1 to 4: runs of so many epochs that saved a checkpoint after each."""
    folder, state = tmp_path_factory.mktemp("runs"), make_state(0)
    for epoch in range(1, 5):
        train_epoch(state, epoch)
        if epoch > 1:
            shutil.copytree(folder / str(epoch - 1), folder / str(epoch))
        save_checkpoint(folder / str(epoch), epoch, state)
    return folder


@pytest.fixture
def save_epochs(runs: Path) -> Callable[[Path, int], None]:
    """Copies such a run, which spares the disk the synchronising."""
    return lambda folder, epochs: shutil.copytree(runs / str(epochs), folder, dirs_exist_ok=True) and None


def assert_same(one: TrainState, other: TrainState) -> None:
    for (name, value), expected in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    assert one.best_weights.keys() == other.best_weights.keys()
    assert all(torch.equal(value, other.best_weights[name]) for name, value in one.best_weights.items())
    states = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for index, values in states[0].items():
        assert values.keys() == states[1][index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, states[1][index][name]) for name, value in values.items())
    assert one.records == other.records


def flip_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def loaded(folder: Path) -> TrainState:
    state, path = make_state(99), whole_checkpoint(folder)
    assert path
    load_checkpoint(path, state)
    return state


def test_model_optimizer_best_and_records_come_back_to_the_bit(
    tmp_path: Path, save_epochs: Callable[[Path, int], None]
) -> None:
    save_epochs(tmp_path, 3)
    assert_same(loaded(tmp_path), trained(3))


def test_training_goes_on_to_the_same_numbers(tmp_path: Path, save_epochs: Callable[[Path, int], None]) -> None:
    save_epochs(tmp_path, 3)
    state = loaded(tmp_path)
    train_epoch(state, 4)
    train_epoch(state, 5)
    assert_same(state, trained(5))


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert whole_checkpoint(tmp_path / "never made") is None
    assert whole_checkpoint(tmp_path) is None


def test_only_the_two_newest_are_kept(tmp_path: Path, save_epochs: Callable[[Path, int], None]) -> None:
    save_epochs(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-003", "epoch-004"]


def test_a_checkpoint_holds_nothing_that_is_unpickled(tmp_path: Path, save_epochs: Callable[[Path, int], None]) -> None:
    save_epochs(tmp_path, 1)
    names = sorted(path.name for path in (tmp_path / "epoch-001").iterdir())
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["model", "optimizer", "best"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_bit_in_the_tensors_of_the_newest_loads_the_one_before(
    tmp_path: Path, save_epochs: Callable[[Path, int], None], name: str, place: float
) -> None:
    save_epochs(tmp_path, 3)
    path = tmp_path / "epoch-003" / f"{name}.safetensors"
    flip_bit(path, int(path.stat().st_size * place))
    assert_same(loaded(tmp_path), trained(2))


def test_a_flipped_bit_anywhere_in_the_records_never_loads_other_ones(
    tmp_path: Path, save_epochs: Callable[[Path, int], None]
) -> None:
    save_epochs(tmp_path, 3)
    accepted = [trained(2).records, trained(3).records]
    for path in sorted((tmp_path / "epoch-003").glob("*.json")):
        for at in range(path.stat().st_size):
            flip_bit(path, at)
            assert loaded(tmp_path).records in accepted, f"byte {at} of {path.name}"
            flip_bit(path, at)


@pytest.mark.parametrize("name", ["*.json", "model.safetensors", "optimizer.safetensors", "best.safetensors"])
@pytest.mark.parametrize("kept_bytes", [None, 0, 40])
def test_a_torn_newest_loads_the_one_before(
    tmp_path: Path, save_epochs: Callable[[Path, int], None], name: str, kept_bytes: int | None
) -> None:
    save_epochs(tmp_path, 3)
    for path in (tmp_path / "epoch-003").glob(name):
        if kept_bytes is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:kept_bytes])
    assert_same(loaded(tmp_path), trained(2))


def test_an_empty_folder_of_a_checkpoint_is_passed_over(
    tmp_path: Path, save_epochs: Callable[[Path, int], None]
) -> None:
    save_epochs(tmp_path, 2)
    (tmp_path / "epoch-003").mkdir()
    assert_same(loaded(tmp_path), trained(2))


def test_two_damaged_checkpoints_are_none(tmp_path: Path, save_epochs: Callable[[Path, int], None]) -> None:
    save_epochs(tmp_path, 2)
    for epoch in (1, 2):
        flip_bit(tmp_path / f"epoch-{epoch:03d}" / "model.safetensors", 500)
    assert whole_checkpoint(tmp_path) is None


def test_what_a_killed_writer_left_is_neither_loaded_nor_in_the_way(
    tmp_path: Path, save_epochs: Callable[[Path, int], None]
) -> None:
    save_epochs(tmp_path, 2)
    shutil.copytree(tmp_path / "epoch-002", tmp_path / ".epoch-003.aside")
    (tmp_path / ".epoch-003.aside" / "model.safetensors").write_bytes(b"half")
    assert_same(loaded(tmp_path), trained(2))
    save_checkpoint(tmp_path, 3, trained(3))
    assert_same(loaded(tmp_path), trained(3))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_checkpoint_is_replaced_when_its_epoch_comes_again(
    tmp_path: Path, save_epochs: Callable[[Path, int], None]
) -> None:
    save_epochs(tmp_path, 3)
    flip_bit(tmp_path / "epoch-003" / "best.safetensors", 500)
    state = loaded(tmp_path)
    train_epoch(state, 3)
    save_checkpoint(tmp_path, 3, state)
    assert_same(loaded(tmp_path), trained(3))


def test_moments_come_back_in_their_parameters_memory_format(tmp_path: Path) -> None:
    """Fused AdamW on a GPU demands it, and on a CPU mixes the moments without a word."""

    def trained_steps(folder: Path | None, steps: int) -> TrainState:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
        state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True), {}, {})
        if folder:
            load_checkpoint(folder / "epoch-001", state)
        generator = torch.Generator().manual_seed(steps)
        for _ in range(steps):
            state.optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
            state.optimizer.step()
        return state

    first = trained_steps(None, 2)
    save_checkpoint(tmp_path, 1, first)
    loaded = trained_steps(tmp_path, 0)
    for parameter, expected in zip(loaded.model.parameters(), first.model.parameters(), strict=True):
        moments, others = loaded.optimizer.state[parameter], first.optimizer.state[expected]
        assert moments["exp_avg"].stride() == others["exp_avg"].stride()
        assert torch.equal(moments["exp_avg"], others["exp_avg"])

"""Children: pieces of a cycle make the whole of it, new cycles start from the parent's best, lost parents show."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from slice_sets import make_slices, split_of

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.train.config import TrialConfig
from ichsearch.train.schedule import phases, step_at
from ichsearch.train.setup import make_model
from ichsearch.train.steps import Stepper
from ichsearch.train.trial import TrialResult, read_result, run_trial

CPU = torch.device("cpu")
CONFIG = TrialConfig(
    backbone="resnet10t", batch_size=16, size=32, channels="hu", augment=0.5, lr=5e-3, epochs=4, seed=1
)
TIMES = ("seconds", "trained_s", "images_per_s")
Run = Callable[..., TrialResult]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices() -> SliceSet:
    return make_slices(patients=20, slices=6, size=32)


@pytest.fixture(scope="module")
def split(slices: SliceSet) -> Split:
    return split_of(slices)


@pytest.fixture(scope="module")
def run(slices: SliceSet, split: Split) -> Run:
    """`run_trial` of `CONFIG` with changes in a folder."""

    def run_changed(folder: Path, options: dict[str, Any] | None = None, **changes: Any) -> TrialResult:
        config = TrialConfig.model_validate(CONFIG.model_dump() | changes)
        return run_trial(config, slices, split, folder, device=CPU, **(options or {}))

    return run_changed


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Start weights of the body."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(dict(make_model(CONFIG.model_copy(update={"seed": 9}), None, CPU).state_dict()), path)
    return path


@pytest.fixture(scope="module")
def parents(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two epochs, `cycle` a whole cycle and `piece` one of a cycle of four."""
    folder = tmp_path_factory.mktemp("parents")
    run(folder / "cycle", epochs=2)
    run(folder / "piece", epochs=2, cycle_epochs=4)
    return folder


@pytest.fixture
def parent(parents: Path, tmp_path: Path) -> Path:
    """A copy of these parents that a test may damage."""
    return Path(shutil.copytree(parents, tmp_path / "parents"))


CHILD = {"epochs": 4, "epochs_before": 2}
KINDS = pytest.mark.parametrize("kind", ["cycle", "piece"])


def child_of(kind: str) -> dict[str, Any]:
    return CHILD | ({"cycle_epochs": 4} if kind == "piece" else {})


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def stop_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise StoppedError

    return on_epoch


def stop_at_step(patch: pytest.MonkeyPatch, stop: int) -> None:
    real, steps = Stepper.step, [0]

    def counted(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == stop:
            raise StoppedError
        return real(self, *batch)

    patch.setattr(Stepper, "step", counted)


def history(folder: Path) -> list[dict[str, Any]]:
    epochs = json.loads((folder / "metrics.json").read_text())["epochs"]
    return [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in epochs]


def assert_same_end(one: Path, other: Path) -> None:
    results = [read_result(folder) for folder in (one, other)]
    assert results[0]
    assert results[1]
    assert history(one) == history(other)
    assert results[0].metrics == results[1].metrics
    assert (results[0].score, results[0].best_epoch) == (results[1].score, results[1].best_epoch)
    for name in ("weights.safetensors", "predictions.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("change", [{}, {"lr_schedule": "fine_tune", "frozen_epochs": 2}], ids=["one_cycle", "fine"])
def test_the_pieces_of_a_cycle_are_the_cycle(run: Run, tmp_path: Path, weights: Path, change: dict[str, Any]) -> None:
    options = {"weights": weights if change else None}
    run(tmp_path / "whole", options, **change)
    change |= {"cycle_epochs": 4}
    run(tmp_path / "1", options, epochs=1, **change)
    run(tmp_path / "3", options | {"parent": tmp_path / "1"}, epochs=3, epochs_before=1, **change)
    result = run(tmp_path / "4", options | {"parent": tmp_path / "3"}, epochs=4, epochs_before=3, **change)
    assert_same_end(tmp_path / "4", tmp_path / "whole")
    assert history(tmp_path / "3") == history(tmp_path / "whole")[:3]
    assert (result.epochs_trained, result.restarted) == (1, False)
    epochs = json.loads((tmp_path / "4" / "metrics.json").read_text())["epochs"]
    assert result.seconds == epochs[-1]["seconds"]
    assert result.images_per_s == pytest.approx(epochs[-1]["images_per_s"])
    assert [(tmp_path / name / "state").is_dir() for name in ("whole", "1", "3", "4")] == [False, True, True, False]
    parameters = {folder: read_result(tmp_path / folder).parameters_m for folder in ("1", "4")}  # type: ignore[union-attr]
    assert parameters["1"] == parameters["4"]


@KINDS
@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_child_killed_within_an_epoch_ends_with_the_same_bits(
    run: Run, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stop: int
) -> None:
    options = {"parent": parent / kind}
    expected = run(tmp_path / "whole", options, **child_of(kind))
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_at_step(patch, stop)
        run(tmp_path / "child", options | {"checkpoint_every_s": 0}, **child_of(kind))
    shutil.rmtree(parent)  # no longer needed
    torch.rand(5)
    result = run(tmp_path / "child", options, **child_of(kind))
    assert_same_end(tmp_path / "child", tmp_path / "whole")
    assert (result.epochs_trained, result.restarted) == (expected.epochs_trained, expected.restarted) == (2, False)


def test_a_new_cycle_starts_from_all_of_the_parents_best_weights_and_no_moments(
    run: Run, parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Stepper] = []

    def keep(self: Stepper, *_: torch.Tensor) -> torch.Tensor:
        seen.append(self)
        raise StoppedError

    monkeypatch.setattr(Stepper, "step", keep)
    with pytest.raises(StoppedError):
        run(tmp_path, {"parent": parents / "cycle"}, **CHILD)
    best = load_file(parents / "cycle" / "weights.safetensors")
    state = seen[0]._model.state_dict()
    assert best.keys() == state.keys()
    assert all(torch.equal(state[name], value) for name, value in best.items())
    assert not seen[0]._optimizer.state


def test_a_new_cycle_is_complete_and_shows_what_no_epoch_before_it_did(
    run: Run, parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    real = Batches.train

    def noted(self: Batches, epoch: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        shown.append(epoch)
        return real(self, epoch, first_step)

    monkeypatch.setattr(Batches, "train", noted)
    records: list[dict[str, Any]] = []
    result = run(tmp_path, {"parent": parents / "cycle", "on_epoch": records.append}, **CHILD)
    assert shown == [2, 3]
    assert [record["epoch"] for record in records] == [3, 4]
    assert result.best_epoch in (3, 4)
    assert result.score == max(record["auroc_any"] for record in records)
    assert (result.epochs_trained, result.restarted) == (2, False)
    lrs = json.loads((parents / "cycle" / "metrics.json").read_text())["epochs"]
    assert [record["lr"] for record in records] == [record["lr"] for record in lrs]
    assert records[-1]["lr"] == pytest.approx(CONFIG.lr / CONFIG.end_divisor)


def test_a_new_cycle_has_no_frozen_epochs() -> None:
    config = TrialConfig.model_validate(CONFIG.model_dump() | CHILD | {"lr_schedule": "fine_tune"})
    plan = phases(config)
    assert [(phase.epochs, phase.body_frozen) for phase in plan] == [(2, False)]
    assert step_at(plan, 1, 9, 10).lrs[-1] == pytest.approx(CONFIG.lr / 2 / 1e5)
    piece = config.model_copy(update={"cycle_epochs": 6})
    assert [(phase.epochs, phase.body_frozen) for phase in phases(piece)] == [(1, True), (5, False)]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_seed(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))


@pytest.mark.parametrize(
    ("kind", "damage", "name"),
    [
        ("cycle", remove, "weights.safetensors"),
        ("cycle", flip, "weights.safetensors"),
        ("cycle", remove, "metrics.json"),
        ("cycle", change_seed, "config.json"),
        ("cycle", remove, ""),
        ("piece", remove, "state"),
        ("piece", flip, "state/epoch-002/optimizer.safetensors"),
        ("piece", remove, "lineage.json"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_child_whose_parent_is_lost_restarts_and_says_so(
    run: Run, parent: Path, tmp_path: Path, kind: str, damage: Callable[[Path], None], name: str, fresh: Path
) -> None:
    damage(parent / kind / name)
    result = run(tmp_path / "child", {"parent": parent / kind}, **child_of(kind))
    assert (result.epochs_trained, result.restarted) == (4, True)
    assert json.loads((tmp_path / "child" / "metrics.json").read_text())["result"]["restarted"] is True
    assert_same_end(tmp_path / "child", fresh)


@pytest.fixture(scope="module")
def fresh(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial of four epochs without a parent: what a restarted child must be."""
    folder = tmp_path_factory.mktemp("fresh")
    run(folder)
    return folder


def test_a_child_without_a_parents_folder_restarts(run: Run, tmp_path: Path, fresh: Path) -> None:
    assert run(tmp_path, **CHILD).restarted
    assert_same_end(tmp_path, fresh)


@KINDS
@pytest.mark.parametrize("checkpoint_every_s", [0, 1000])
def test_a_restarted_child_stays_restarted(
    run: Run, parents: Path, parent: Path, tmp_path: Path, kind: str, checkpoint_every_s: float, fresh: Path
) -> None:
    shutil.rmtree(parent / kind)
    options = {"parent": parent / kind, "checkpoint_every_s": checkpoint_every_s, "on_epoch": stop_after(3)}
    with pytest.raises(StoppedError):
        run(tmp_path / "child", options, **child_of(kind))
    shutil.copytree(parents / kind, parent / kind)
    assert run(tmp_path / "child", {"parent": parent / kind}, **child_of(kind)).restarted
    assert_same_end(tmp_path / "child", fresh)


@KINDS
def test_a_child_that_lost_its_parent_before_a_checkpoint_restarts(
    run: Run, parent: Path, tmp_path: Path, kind: str, fresh: Path
) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path / "child", {"parent": parent / kind, "on_epoch": stop_after(3)}, **child_of(kind))
    shutil.rmtree(parent)
    assert run(tmp_path / "child", {"parent": parent / kind}, **child_of(kind)).restarted
    assert_same_end(tmp_path / "child", fresh)


def test_a_parent_of_another_split_is_none(parents: Path, slices: SliceSet, split: Split, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update=CHILD)
    other = split.model_copy(update={"seed": 5})
    assert run_trial(config, slices, other, tmp_path, parent=parents / "cycle", device=CPU).restarted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs_before": 4}, "epochs must be more than epochs_before, .* they are 4 and 4"),
        ({"epochs_before": -1}, "epochs_before"),
        ({"cycle_epochs": 3}, "cycle_epochs must be at least epochs, but they are 3 and 4"),
        ({"lr_schedule": "fine_tune", "frozen_epochs": 6, "cycle_epochs": 6}, "has 6 and 6"),
    ],
)
def test_epochs_that_contradict_each_other_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrialConfig.model_validate(CONFIG.model_dump() | change)


def test_a_piece_may_end_among_the_frozen_epochs() -> None:
    piece = {"lr_schedule": "fine_tune", "frozen_epochs": 2, "epochs": 1, "cycle_epochs": 6}
    assert TrialConfig.model_validate(CONFIG.model_dump() | piece).cycle == range(6)

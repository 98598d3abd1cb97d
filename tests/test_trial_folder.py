"""The folder of a trial: whose it is, who may write to it, how long that may take, and its curves for TensorBoard."""

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from slice_sets import make_slices, split_of
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.errors import AlreadyRunningError
from ichsearch.train import trial
from ichsearch.train.config import TrialConfig, TrialFailedError
from ichsearch.train.setup import make_model
from ichsearch.train.steps import Stepper
from ichsearch.train.trial import TrialResult, run_trial

CPU = torch.device("cpu")
CONFIG = TrialConfig(backbone="resnet10t", batch_size=8, size=32, channels="hu", lr=5e-3, epochs=3, seed=1)
Run = Callable[..., TrialResult]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "OTHER_WRITER_S", 0.3)


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
    """`run_trial` of `CONFIG` in a folder."""

    def run_in(folder: Path, *, config: TrialConfig = CONFIG, **options: Any) -> TrialResult:
        return run_trial(
            config, options.pop("slices", slices), options.pop("split", split), folder, device=CPU, **options
        )

    return run_in


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def stop_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise StoppedError

    return on_epoch


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counts steps, and makes each of them take longer if asked to."""
    seen, real = {"made": 0, "sleep_s": 0.0}, Stepper.step

    def counted(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        seen["made"] += 1
        time.sleep(seen["sleep_s"])
        return real(self, *batch)

    monkeypatch.setattr(Stepper, "step", counted)
    return seen


def changed_weights(folder: Path) -> dict[str, Any]:
    save_file(dict(make_model(CONFIG, None, CPU).state_dict()), folder / "weights.safetensors")
    return {"weights": folder / "weights.safetensors"}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", ["data", "split", "weights", "config"])
def test_a_trial_does_not_go_on_from_that_of_others(
    run: Run, slices: SliceSet, split: Split, tmp_path: Path, what: str, finished: bool
) -> None:
    changes: dict[str, Any] = {
        "data": {"slices": replace(slices, fingerprint="other data")},
        "split": {"split": split.model_copy(update={"patients": split_of(slices, seed=1).patients})},
        "weights": changed_weights(tmp_path),
        "config": {"config": CONFIG.model_copy(update={"lr": 1e-3})},
    }
    folder = tmp_path / "trial"
    if finished:
        run(folder)
    else:
        with pytest.raises(StoppedError):
            run(folder, on_epoch=stop_after(2), checkpoint_every_s=0)
    records: list[dict[str, Any]] = []
    with pytest.raises(StoppedError):
        run(folder, on_epoch=lambda record: records.append(record) or stop_after(1)(record), **changes[what])
    assert [record["epoch"] for record in records] == [1]
    assert not (folder / "predictions.parquet").exists()
    assert {event.step for event in read_events(folder)} <= {0, 1}


def test_a_second_writer_is_refused(run: Run, tmp_path: Path) -> None:
    def again(_: dict[str, Any]) -> None:
        run(tmp_path / "0007")

    with pytest.raises(AlreadyRunningError, match="another process is at work on 0007"):
        run(tmp_path / "0007", on_epoch=again)
    assert run(tmp_path / "0007").epochs_trained == 3


def test_a_killed_writer_gives_the_folder_free_at_once(run: Run, tmp_path: Path) -> None:
    hold = "import fcntl, sys; fcntl.flock(f := open(sys.argv[1], 'a'), 2); print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "trial.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunningError):
            run(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
        with pytest.raises(StoppedError):
            run(tmp_path, on_epoch=stop_after(1))


def test_a_trial_that_takes_too_long_ends_within_an_epoch(run: Run, tmp_path: Path, steps: dict[str, Any]) -> None:
    steps["sleep_s"] = 0.1
    with pytest.raises(TrialFailedError, match=r"^timed_out: it has trained for more than 0\.25 s$") as caught:
        run(tmp_path, limit_s=0.25, checkpoint_every_s=0)
    assert caught.value.reason == "timed_out"
    assert steps["made"] <= 3
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("within", [False, True])
def test_time_before_an_interruption_counts(
    run: Run, tmp_path: Path, steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    steps["sleep_s"] = 0.05
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        if within:
            real = Stepper.step
            patch.setattr(Stepper, "step", lambda *given: stop_at(steps, 5) or real(*given))
        run(tmp_path, on_epoch=stop_after(1), checkpoint_every_s=0)
    steps |= {"made": 0, "sleep_s": 0.0}
    with pytest.raises(TrialFailedError, match="timed_out"):
        run(tmp_path, limit_s=0.2)
    assert steps["made"] == 1


def stop_at(steps: dict[str, Any], number: int) -> None:
    if steps["made"] == number:
        raise StoppedError


def test_the_parents_time_does_not_count(run: Run, tmp_path: Path, steps: dict[str, Any]) -> None:
    steps["sleep_s"] = 0.3
    piece = CONFIG.model_copy(update={"epochs": 1, "cycle_epochs": 2})
    parents_s = run(tmp_path / "parent", config=piece).seconds
    steps["sleep_s"] = 0.0
    child = piece.model_copy(update={"epochs": 2, "epochs_before": 1})
    assert run(tmp_path / "child", config=child, parent=tmp_path / "parent", limit_s=parents_s).seconds < parents_s


def read_events(folder: Path) -> list[Any]:
    """All events of a trial, in the order in which TensorBoard reads them; checksums verified."""
    events = []
    for path in sorted((folder / "events").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length, crc = struct.unpack_from("<QI", content, at)
            assert crc == masked_crc32c(content[at : at + 8])
            data = content[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked_crc32c(data)
            events.append(Event.FromString(data))
            at += 16 + length
    return events


def shown(events: list[Any]) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows: a START drops what stands at its step and after it."""
    points: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        if event.session_log.status == SessionLog.START:
            points = {tag: [point for point in known if point[0] < event.step] for tag, known in points.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def texts(events: list[Any]) -> list[str]:
    return [
        value.tensor.string_val[0].decode()
        for event in events
        for value in event.summary.value
        if value.tag == "configuration/text_summary"
    ]


def test_curves_are_those_of_the_records(run: Run, tmp_path: Path) -> None:
    run(tmp_path)
    records = json.loads((tmp_path / "metrics.json").read_text())["epochs"]
    events = read_events(tmp_path)
    assert events[0].file_version == "brain.Event:2"
    points = shown(events)
    for tag in ("training/train_loss", "training/lr", "training/images_per_s", "scores/auroc_any", "scores/log_loss"):
        name = tag.partition("/")[2]
        assert points[tag] == [(record["epoch"], pytest.approx(record[name], rel=1e-6)) for record in records]
    defined = {name for name, value in records[0].items() if value is not None and name != "epoch"}
    assert {tag.partition("/")[2] for tag in points} == defined
    (text,) = texts(events)
    assert "|backbone|resnet10t|" in text
    assert "|lr|0.005|" in text
    assert str(tmp_path) not in text


def test_epochs_that_are_trained_again_are_shown_once(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, on_epoch=stop_after(2), checkpoint_every_s=0)
    shutil.rmtree(tmp_path / "checkpoint" / "epoch-002")
    run(tmp_path)
    steps = [event.step for event in read_events(tmp_path) if event.summary.value]
    assert steps.count(2) > steps.count(3) > 0
    points = shown(read_events(tmp_path))
    assert all([step for step, _ in known] == [1, 2, 3] for known in points.values())
    assert len(texts(read_events(tmp_path))) == 1


def test_a_failed_trial_leaves_no_event_file_open(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, on_epoch=stop_after(1))
    opened = [path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [name for name in opened if "tfevents" in name]
    assert shown(read_events(tmp_path))["training/train_loss"]

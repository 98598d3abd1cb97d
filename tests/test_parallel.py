"""A trial of two processes: the numbers of one, agreement on what fits, and an end in common."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from ranks import in_two
from safetensors.torch import load_file
from searches import descendants, outlive
from slice_sets import make_rows, write_shards
from test_searcher import open_book, reasons, run
from test_steps import BATCH, make_batch, moved, stepped

from ichsearch.data.cache import open_slices
from ichsearch.data.split import Split, make_split
from ichsearch.files import read_json, write_json
from ichsearch.search.processes import RankFailedError, TrialJob, train
from ichsearch.search.replay import Link, Replay, run_replay
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.worker import Assignment, attempt, trainable
from ichsearch.train import setup
from ichsearch.train.config import TrialConfig, TrialFailedError, TrialStoppedError

CONFIG = TrialConfig(
    backbone="test_resnet", batch_size=16, size=32, channels="hu", augment=0.5, lr=5e-3, epochs=3, seed=1
)
Records = list[dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def on_cpu_with_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, make_rows(patients=25, slices=6), 32)
    return folder


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    slices = open_slices(shards, 32)
    return make_split(slices.table, slices.fingerprint, 0)


@pytest.fixture
def job(shards: Path, split: Split, tmp_path: Path) -> TrialJob:
    return TrialJob(CONFIG, shards, split, tmp_path / "trial", None, None, threads=1)


def changed(job: TrialJob, folder: str, **changes: Any) -> TrialJob:
    return job._replace(folder=job.folder.with_name(folder), config=job.config.model_copy(update=changes))


def column(records: Records, name: str) -> list[float]:
    return [record[name] for record in records]


def trained(job: TrialJob, processes: int) -> tuple[Records, dict[str, torch.Tensor]]:
    records: Records = []
    result = train(job, processes, records.append)
    assert column(records, "epoch") == [1, 2, 3]
    assert result.score == max(column(records, job.config.metric))
    return records, load_file(job.folder / "weights.safetensors")


def test_two_processes_train_as_one_does_without_batch_norm(job: TrialJob) -> None:
    changes: dict[str, Any] = {"backbone": "test_convnext", "batch_size": 15, "clip_norm": 0.5, "imbalance": "loss"}
    one, weights = trained(changed(job, "one", **changes), 1)
    two, weights_of_two = trained(changed(job, "two", **changes), 2)
    for name in ("train_loss", "log_loss", "auroc_any"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-4), name
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-3, atol=1e-4)
    assert column(two, "micro_batch") == [8, 8, 8]


def test_batch_norm_sees_a_share_as_it_sees_the_micro_batches_of_one_process(
    job: TrialJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, _ = trained(changed(job, "two"), 2)
    whole, _ = trained(changed(job, "whole"), 1)
    real = setup.make_model

    def of_halves(*arguments: Any) -> torch.nn.Module:
        model = real(*arguments)
        model.register_forward_pre_hook(refuse_more_than_half)
        return model

    monkeypatch.setattr(setup, "make_model", of_halves)
    halves, _ = trained(changed(job, "halves"), 1)
    assert column(halves, "micro_batch") == column(two, "micro_batch") == [8, 8, 8]
    assert column(two, "train_loss") == pytest.approx(column(halves, "train_loss"), rel=1e-3)
    assert column(two, "train_loss") == pytest.approx(column(whole, "train_loss"), rel=0.2)
    assert column(two, "log_loss") == pytest.approx(column(whole, "log_loss"), rel=0.2)


def refuse_more_than_half(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if len(inputs[0]) > CONFIG.batch_size // 2:
        raise torch.OutOfMemoryError


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two(tmp_path_factory.mktemp("ranks"))


def test_ranks_agree(answers: list[dict[str, Any]]) -> None:
    first, second = answers
    for answer in answers:
        assert answer["average"] == pytest.approx([1.25] * 6 + [2.5])
        assert (answer["least"], answer["told"]) == (4, "by 0")
    assert (first["gathered"], second["gathered"]) == ([0, 1, 1], [1, 1])
    assert first["drawn"] != second["drawn"]


def test_what_does_not_fit_on_one_is_halved_on_all_and_the_gradient_stays(answers: list[dict[str, Any]]) -> None:
    whole, loss, _ = stepped(BATCH)
    for answer in answers:
        assert answer["micro_batch"] == 3
        assert answer["loss"] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(torch.tensor(answer["gradient"]), moved(whole), rtol=1e-4, atol=1e-7)


def test_running_statistics_are_the_mean_of_the_ranks(answers: list[dict[str, Any]]) -> None:
    shares = make_batch()[0].chunk(2)
    mean = sum(float(share.mean()) for share in shares) / 2
    variance = sum(float(share.var()) for share in shares) / 2
    for answer in answers:
        assert answer["running"] == pytest.approx((0.1 * mean, 0.9 + 0.1 * variance), rel=1e-4)


def test_a_trials_own_failure_is_told_as_what_it_is(job: TrialJob) -> None:
    with pytest.raises(TrialFailedError, match="more than 0 s") as caught:
        train(job._replace(limit_s=0.0), 2)
    assert caught.value.reason == "timed_out"
    assert not multiprocessing.active_children()


def test_a_crash_is_told_with_its_place(job: TrialJob, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assignment = Assignment(job.shards, RunFolder(tmp_path), {}, 1, 20)
    with pytest.raises(RankFailedError, match="SafetensorError"):
        attempt(job.folder, assignment, lambda: train(job._replace(weights=tmp_path / "torn.safetensors"), 2))
    told = (job.folder / "error.txt").read_text()
    assert "in run_trial" in told
    assert "/" not in told.partition("\n")[2]


def replay_job(job: TrialJob, root: Path, config: TrialConfig) -> tuple[Replay, Assignment]:
    folder = RunFolder(root)
    write_json(folder.split, job.split.model_dump())
    assignment = Assignment(job.shards, folder, {config.backbone: None}, 1, 20, processes=2)
    return Replay((Link("0000", config),), config.seed), assignment


def test_the_death_of_one_is_a_crash_from_which_the_trial_goes_on_to_the_same_bits(
    job: TrialJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = changed(job, "undisturbed", head="concat_pool")  # which draws dropout
    train(undisturbed, 2)
    monkeypatch.setattr("ichsearch.search.replay.CHECKPOINT_EVERY_S", 0.0)
    replay, assignment = replay_job(job, tmp_path / "run", undisturbed.config)
    place = assignment.folder.replay(replay.name)
    killer = Thread(target=kill_the_second_within_the_second_epoch, args=(place,))
    killer.start()
    record = run_replay(replay, assignment, retries=1)[1]
    killer.join()
    assert (record.status, record.reason) == ("finished", "")
    begun = sorted(path.suffix for path in (place / "events").iterdir())
    assert begun == [".0000", ".0001"], "it must have gone on once, from within its second epoch"
    for name in ("weights.safetensors", "predictions.parquet"):
        assert (place / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name


def test_processes_that_must_stop_leave_a_checkpoint_to_go_on_from(job: TrialJob) -> None:
    undisturbed, stopped = (changed(job, name, head="concat_pool") for name in ("undisturbed", "stopped"))
    train(undisturbed, 2)
    seen: Records = []
    with pytest.raises(TrialStoppedError):
        train(stopped, 2, seen.append, lambda: bool(seen))
    train(stopped, 2)
    for name in ("weights.safetensors", "predictions.parquet"):
        assert (stopped.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name


def kill_the_second_within_the_second_epoch(place: Path) -> None:
    while not any(place.glob("checkpoint/epoch-001-step-*")):
        time.sleep(0.005)
    (second,) = (process for process in multiprocessing.active_children() if process.name == "rank 1 of 2")
    assert second.pid is not None
    os.kill(second.pid, signal.SIGKILL)


ENDLESS = """
import pickle, sys
from ichsearch.search.processes import train
train(pickle.loads(bytes.fromhex(sys.argv[1])), 2)
"""


def test_the_ranks_end_with_whoever_started_them(job: TrialJob) -> None:
    endless = pickle.dumps(changed(job, "endless", epochs=1000)).hex()
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS, endless])
    while not (job.folder.with_name("endless") / "metrics.json").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    ranks = list(descendants(parent.pid))
    assert len(ranks) >= 3, "two ranks, and the server that forked them"
    parent.kill()
    parent.wait()
    assert not outlive(ranks, 30.0)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_trains_its_trials_by_several_processes(job: TrialJob, tmp_path: Path) -> None:
    root = tmp_path / "run"
    book, folder = open_book(root, 1), RunFolder(root)
    write_json(folder.split, job.split.model_dump())
    told = run(root, book, trainable(Assignment(job.shards, folder, {"test_resnet": None}, 1, 20, processes=2)))
    assert reasons(root) == {"0000": "finished"}
    assert [event.kind for event in told] == ["started", "finished"]
    assert read_json(folder.trial("0000") / "metrics.json")["result"]["micro_batch"] == 4

"""Trials through real Ray Tune: workers used again, names, waiting, crashes, hangs, and faults of the search itself."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.data.cache import open_slices
from ichsearch.data.split import open_split
from ichsearch.search import execution, worker
from ichsearch.search import searcher as searcher_module
from ichsearch.search.book import WAIT, Book, Started
from ichsearch.search.events import Event
from ichsearch.search.execution import Execution, run_trials
from ichsearch.search.journal import open_storage
from ichsearch.search.nodes import Nodes
from ichsearch.search.resources import Requests
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.searcher import BookSearcher, Hearers, job_of, label_of
from ichsearch.search.space_file import load_space
from ichsearch.search.worker import Assignment, trainable
from ichsearch.train import trial as trial_module

SPACE = """\
name: tiny
trials: {trials}
epochs: 1
max_retries: 1
parameters: {{backbone: test_resnet, batch_size: 8, size: 32, lr: {{float: [0.001, 0.1]}}}}
"""
RESULT = {
    "score": 0.5,
    "best_epoch": 1,
    "metrics": {"auroc_any": 0.5},
    "seconds": 1.0,
    "images_per_s": 1.0,
    "parameters_m": 1.0,
    "micro_batch": 8,
    "epochs_trained": 1,
}
ONE_CORE = Requests({"CPU": 1.0, "GPU": 0.0})
Trial = Callable[[dict[str, Any]], None]


def open_book(root: Path, trials: int, kind: type[Book] = Book, more: str = "") -> Book:
    folder = RunFolder(root)
    root.mkdir(exist_ok=True)
    space = load_space(write_space(root, SPACE.format(trials=trials) + more))
    return kind(
        space,
        folder,
        open_storage(folder.journal),
        suggest_lr=lambda config: 0.01,
        weights_of={"test_resnet": "scratch"},
        images_per_s=lambda config: None,
        train_slices=10,
    )


def run(root: Path, book: Book, trial: Trial, max_retries: int = 1, requests: Requests = ONE_CORE) -> list[Event]:
    told: list[Event] = []
    assert not run_trials(book, execution_of(root, trial, told, max_retries, requests))
    return told


def execution_of(
    root: Path, trial: Trial, told: list[Event], max_retries: int = 1, requests: Requests = ONE_CORE
) -> Execution:
    def write_leaderboard(folder: RunFolder) -> None:
        folder.leaderboard.write_text(str(len(told)))

    return Execution(
        name="tiny",
        metric="auroc_any",
        folder=RunFolder(root),
        requests=requests,
        max_retries=max_retries,
        trial=trial,
        tell=told.append,
        write_leaderboard=write_leaderboard,
    )


def finishing(root: Path, meanwhile: Callable[[dict[str, Any]], None] = lambda job: None) -> Trial:
    """A trial that leaves a result, and before it a line of its worker's process and title."""

    def trial(job: dict[str, Any]) -> None:
        folder = RunFolder(root).trial(job["trial"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "attempts").open("a") as file:
            title = Path("/proc/self/cmdline").read_text().rstrip("\0 ").split("\0")[0]
            file.write(f"{os.getpid()} {title}\n")
        meanwhile(job)
        (folder / "metrics.json").write_text(json.dumps({"epochs": [], "result": RESULT}))
        tune.report({"score": 0.5, "reason": "", "done": True})

    return trial


def attempts(root: Path, trial: str) -> list[list[str]]:
    return [line.split() for line in (RunFolder(root).trial(trial) / "attempts").read_text().splitlines()]


def reasons(root: Path) -> dict[str, str]:
    return {record.trial: record.reason or record.status for record in RunFolder(root).records()}


@pytest.mark.usefixtures("ray_local")
def test_workers_go_from_trial_to_trial_and_show_which_one_runs(tmp_path: Path) -> None:
    told = run(tmp_path, open_book(tmp_path, 12), finishing(tmp_path, lambda job: time.sleep(0.1)))
    names = [f"{number:04d}" for number in range(12)]
    assert reasons(tmp_path) == dict.fromkeys(names, "finished")
    seen = [attempts(tmp_path, name) for name in names]
    assert [[title for _, title in tried] for tried in seen] == [[f"ray::test_resnet-b8-1ep-{name}"] for name in names]
    assert len({pid for tried in seen for pid, _ in tried}) <= 3, "a process a trial costs seconds each time"
    assert [event.kind for event in told].count("finished") == 12
    assert RunFolder(tmp_path).leaderboard.read_text() == str(len(told))
    assert told[-1].standing is not None
    assert told[-1].standing.finished == 12


class _OneByOne(Book):
    """Waits until the running trial has ended, as at the top of a rung."""

    asked = 0

    def next(self) -> Started | None:
        self.asked += 1
        return WAIT if self.standing().running else super().next()  # type: ignore[return-value]


@pytest.mark.usefixtures("ray_local")
def test_a_book_that_waits_is_asked_again_when_a_trial_ends_and_not_before(tmp_path: Path) -> None:
    book = open_book(tmp_path, 3, _OneByOne)
    assert isinstance(book, _OneByOne)
    run(tmp_path, book, finishing(tmp_path, lambda job: time.sleep(1)))
    assert list(reasons(tmp_path).values()) == ["finished"] * 3
    assert book.asked <= 8, "it was asked while nothing could have changed"


@pytest.mark.usefixtures("ray_local")
def test_a_dead_worker_is_tried_again_and_then_told(tmp_path: Path) -> None:
    def die(job: dict[str, Any]) -> None:
        tried = (tmp_path / "trials" / job["trial"] / "attempts").read_text().count("\n")
        if job["trial"] == "0001" or (job["trial"] == "0000" and tried == 1):
            os._exit(1)

    told = run(tmp_path, open_book(tmp_path, 3), finishing(tmp_path, die))
    assert reasons(tmp_path) == {"0000": "finished", "0001": "crashed", "0002": "finished"}
    assert [len(attempts(tmp_path, name)) for name in ("0000", "0001", "0002")] == [2, 2, 1]
    assert [event.facts["trial"] for event in told if event.kind == "failed"] == ["0001"]


@pytest.mark.usefixtures("ray_local")
def test_a_trial_that_hangs_is_ended_and_told_with_the_place(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=5, slices=2), 32)
    root = tmp_path / "run"
    book = open_book(root, 1)
    os.mkfifo(RunFolder(root).split)  # whoever opens it waits for somebody who writes
    assignment = Assignment(
        tmp_path / "shards", RunFolder(root), {"test_resnet": None}, 1, 20, limit_s=0.2, least_grace_s=1.0
    )
    told = run(root, book, trainable(assignment))
    assert reasons(root) == {"0000": "timed_out"}
    assert [event.kind for event in told] == ["started", "failed"]
    explained = (RunFolder(root).trial("0000") / "error.txt").read_text()
    assert "timed_out" in explained
    assert 'File "files.py"' in explained
    assert 'File "/' not in explained
    assert not (RunFolder(root).trial("0000") / "hung.txt").exists()


class _Broken(Book):
    def tell_finished(self, started: Started, result: Any) -> None:  # noqa: ARG002
        raise ZeroDivisionError("a fault of the search")


@pytest.mark.usefixtures("ray_local")
def test_a_fault_of_the_search_ends_the_run_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a fault of the search"):
        run(tmp_path, open_book(tmp_path, 3, _Broken), finishing(tmp_path))
    assert "crashed" not in reasons(tmp_path).values()
    assert RunFolder(tmp_path).leaderboard.is_file(), "what is known must be on the disk when a run breaks off"


def searcher_of(root: Path, cores: float, trials: int = 4, max_retries: int = 0) -> tuple[BookSearcher, Book]:
    book = open_book(root, trials)
    nodes = Nodes(lambda: {"one": {"CPU": cores}}, ONE_CORE.least, lambda node: node != "one")
    return BookSearcher(book, RunFolder(root), ONE_CORE, nodes, hearers(), max_retries), book


def hearers(on_wait: Callable[[Any], None] = print, **told: list[Any]) -> Hearers:
    """Who keeps what is told in lists of these names: `again`, `avoided`."""
    return Hearers(
        on_start=lambda trial: None,
        on_end=lambda *trial: None,
        on_wait=on_wait,
        on_again=lambda trial, reason, node: told.get("again", []).append((trial.record.trial, reason, node)),
        on_avoid=lambda node: told.get("avoided", []).append(node),
    )


def test_nothing_is_proposed_before_it_can_start(tmp_path: Path) -> None:
    searcher, book = searcher_of(tmp_path, cores=2)
    assert [searcher.suggest(name) is None for name in "abc"] == [False, False, True]
    assert book.standing().running == 2
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("d") is not None


@pytest.mark.parametrize(
    ("error", "reason"),
    [("", "crashed"), ("1 worker(s) were killed due to the node running low on memory", "out_of_memory")],
)
def test_a_worker_killed_for_memory_is_told_as_that(tmp_path: Path, error: str, reason: str) -> None:
    searcher, _ = searcher_of(tmp_path, cores=1)
    assert searcher.suggest("a")
    searcher.errors["a"] = error
    searcher.on_trial_complete("a", error=True)
    assert reasons(tmp_path) == {"0000": reason}


def test_a_full_disk_ends_the_run_and_keeps_the_trial(tmp_path: Path) -> None:
    searcher, _ = searcher_of(tmp_path, cores=1)
    assert searcher.suggest("a")
    searcher.on_trial_complete("a", {"reason": "disk full: that of a node"})
    assert searcher.disk_full == "disk full: that of a node"
    assert searcher.suggest("b") == "FINISHED"
    assert reasons(tmp_path) == {"0000": "running"}


@pytest.mark.usefixtures("ray_local")
def test_a_disk_that_the_driver_finds_full_is_named(tmp_path: Path) -> None:
    def write_leaderboard(folder: RunFolder) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder.leaderboard))

    full = replace(execution_of(tmp_path, finishing(tmp_path), []), write_leaderboard=write_leaderboard)
    assert run_trials(open_book(tmp_path, 1), full).startswith(f"disk full: the disk of {tmp_path} on ")


def test_a_disk_that_a_worker_finds_full_before_its_trial_is_named(tmp_path: Path) -> None:
    def attempted(folder: RunFolder) -> dict[str, Any]:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", str(folder))

    found = worker.outcome_on_node(RunFolder(tmp_path), tmp_path / "trials" / "0000", (), attempted)
    assert re.fullmatch(rf"disk full: the disk of {tmp_path} on \S+ is full: [\d,]+ bytes free", found["reason"])


def test_a_run_that_no_node_could_serve_says_so_once_and_ends_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher_module, "NODES_EVERY_S", 0.0)
    monkeypatch.setattr(searcher_module, "LONG_WAIT_S", 0.1)
    book = open_book(tmp_path, 4, more="time: 1\n")
    waits = list[dict[str, float]]()
    nodes = Nodes(lambda: {"one": {"CPU": 0.5}}, ONE_CORE.least, lambda node: node != "one")
    searcher = BookSearcher(book, RunFolder(tmp_path), ONE_CORE, nodes, hearers(waits.append), 0)
    assert searcher.suggest("a") is None
    assert not waits, "a cluster that scales by itself takes its time"
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        assert searcher.suggest("a") is None
    assert waits == [ONE_CORE.least]
    time.sleep(0.6)
    assert searcher.suggest("a") == "FINISHED"
    assert (book.standing().done, book.standing().running) == ("time", 0)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("left_after", [0, 1], ids=["before the first trial", "while Ray holds a trial"])
def test_a_run_whose_nodes_have_gone_ends_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_after: int
) -> None:
    """Ray has two cores here, the trial asks for three, and at first there seems to be a node for it."""
    shown = iter([{"one": {"CPU": 3.0}}] * left_after)
    monkeypatch.setattr(execution, "nodes_by_id", lambda: next(shown, {"one": {"CPU": 2.0}}))
    book = open_book(tmp_path, 4, more="time: 3\n")
    began_s = time.monotonic()
    run(tmp_path, book, finishing(tmp_path), requests=Requests({"CPU": 3.0, "GPU": 0.0}))
    assert 2 < time.monotonic() - began_s < 30
    assert book.standing().done == "time"
    assert reasons(tmp_path) == dict.fromkeys(["0000"][:left_after], "running"), "the next start goes on with it"


@pytest.mark.usefixtures("ray_local")
def test_a_trial_that_waits_for_a_node_that_has_gone_runs_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes here, where there seems to be another node, which is gone some seconds later."""
    here, crashed = ray.get_runtime_context().get_node_id(), tmp_path / "crashed"

    def look() -> dict[str, dict[str, float]]:
        there = not crashed.is_file() or time.time() - crashed.stat().st_mtime < 4
        return {here: {"CPU": 2.0}} | ({"another": {"CPU": 2.0}} if there else {})

    def crash_once(_: dict[str, Any]) -> None:
        if not crashed.is_file():
            crashed.touch()
            os._exit(1)

    monkeypatch.setattr(execution, "nodes_by_id", look)
    told = run(tmp_path, open_book(tmp_path, 1), finishing(tmp_path, crash_once))
    assert reasons(tmp_path) == {"0000": "finished"}
    assert [event.kind for event in told] == ["started", "again", "finished"]
    assert time.time() - crashed.stat().st_mtime > 4


def test_a_trial_whose_folder_another_process_holds_is_run_again(tmp_path: Path) -> None:
    searcher, book = searcher_of(tmp_path, cores=1)
    assert (first := searcher.suggest("a"))
    searcher.on_trial_complete("a", {"reason": "folder busy"})
    assert searcher.suggest("b") == first
    searcher.on_trial_complete("b", {"reason": "diverged"})
    assert reasons(tmp_path) == {"0000": "diverged"}
    again = searcher.suggest("c")
    assert again is not None
    assert again["trial"] == "0001"
    assert book.standing().running == 1


def test_a_worker_knows_a_folder_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "OTHER_WRITER_S", 0.0)
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    slices = open_slices(tmp_path / "shards", 32)
    folder = RunFolder(tmp_path / "run")
    open_split(folder.split, slices.table, slices.fingerprint, 0)
    started = open_book(tmp_path / "run", 1).next()
    assert isinstance(started, Started)
    assignment = Assignment(tmp_path / "shards", folder, {"test_resnet": None}, 1, 20)
    with (folder.trial("0000") / "trial.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert worker._outcome(job_of(started, ONE_CORE.whole), assignment) == {"reason": "folder busy"}
    assert not (folder.trial("0000") / "error.txt").exists()


@pytest.mark.usefixtures("ray_local")
def test_a_trial_may_be_handed_out_twice_in_one_run(tmp_path: Path) -> None:
    def busy_at_first(job: dict[str, Any]) -> None:
        if (tmp_path / "trials" / job["trial"] / "attempts").read_text().count("\n") == 1:
            tune.report({"reason": "folder busy", "done": True})

    told = run(tmp_path, open_book(tmp_path, 2), finishing(tmp_path, busy_at_first))
    assert reasons(tmp_path) == {"0000": "finished", "0001": "finished"}
    assert [len(attempts(tmp_path, name)) for name in ("0000", "0001")] == [2, 2]
    assert [event.kind for event in told].count("finished") == 2


def test_a_label_holds_nothing_but_plain_letters(tmp_path: Path) -> None:
    started = open_book(tmp_path, 1).next()
    assert started is not None
    config = started.config.model_copy(update={"backbone": "hf_hub:timm/resnet18.a1_in1k", "epochs": 4})
    labelled = Started(started.record, config, started.place)
    assert label_of(labelled) == "hf_hub_timm_resnet18.a1_in1k-b8-4ep-0000"


@pytest.mark.slow
def test_rays_memory_monitor_is_told_as_out_of_memory(tmp_path: Path) -> None:
    code = f"""
import sys, time, logging
from dataclasses import replace
from pathlib import Path
import ray
from test_searcher import finishing, open_book, reasons, run
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
root = Path({str(tmp_path)!r})
run(root, open_book(root, 1), finishing(root, lambda job: time.sleep(60)), max_retries=0)
print(reasons(root))
"""
    monitored = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | monitored | paths, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "{'0000': 'out_of_memory'}"

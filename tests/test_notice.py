"""SIGTERM as a notice: seen while a trial runs, and told with a checkpoint."""

import os
import signal
from pathlib import Path

import pytest
from slice_sets import make_rows, write_shards
from test_searcher import ONE_CORE, open_book

from ichsearch.data.cache import open_slices
from ichsearch.data.split import open_split
from ichsearch.search import worker
from ichsearch.search.book import Started
from ichsearch.search.notice import notices
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.searcher import job_of
from ichsearch.search.worker import Assignment


def give_notice(*told: object) -> None:  # noqa: ARG001 - an epoch, where it is called after one
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_notice_counts_in_the_block_that_it_came_in_and_ends_nothing() -> None:
    for _ in range(2):
        with notices() as must_stop:
            assert not must_stop()
            give_notice()
            assert must_stop()


def test_a_trial_that_is_given_notice_is_handed_back_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    slices = open_slices(tmp_path / "shards", 32)
    folder = RunFolder(tmp_path / "run")
    open_split(folder.split, slices.table, slices.fingerprint, 0)
    started = open_book(tmp_path / "run", 1).next()
    assert isinstance(started, Started)
    job = job_of(started, ONE_CORE.whole)
    job["config"]["epochs"] = 3
    assignment = Assignment(tmp_path / "shards", folder, {"test_resnet": None}, 1, 20)
    monkeypatch.setattr(worker, "_report_epoch", give_notice)
    assert worker._outcome(job, assignment) == {"reason": "node leaves"}
    (checkpoint,) = (folder.trial("0000") / "checkpoint").iterdir()
    assert checkpoint.name == "epoch-001-step-000001"
    monkeypatch.setattr(worker, "_report_epoch", lambda *told: None)
    assert worker._outcome(job, assignment)["reason"] == ""
    assert not (folder.trial("0000") / "error.txt").exists()

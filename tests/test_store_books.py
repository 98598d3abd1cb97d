"""Books and replays on a run folder in a store: left at any moment, gone on with elsewhere, they are as on a disk."""

import threading
from pathlib import Path
from typing import Any

import pytest
from books import make_space, next_of, open_book, score_of, suggested_lr, tell
from slice_sets import make_rows, write_shards
from stores import Store, new_folder

from ichsearch.data.cache import local_shards, open_slices
from ichsearch.data.split import open_split
from ichsearch.errors import AlreadyRunningError, StorageError
from ichsearch.files import read_json
from ichsearch.search.book import Book
from ichsearch.search.driving import driving
from ichsearch.search.journal import open_storage
from ichsearch.search.replay import Link, Replay, run_replay, score_replay
from ichsearch.search.resolved import save_space
from ichsearch.search.run_folder import RunFolder, opened
from ichsearch.search.space import Space
from ichsearch.search.worker import Assignment
from ichsearch.storage import open_folder
from ichsearch.train.config import TrialConfig
from ichsearch.train.held_out import read_held_out
from ichsearch.train.trial import TrialResult, read_result

SIZE = 32
CLOCKS = ("seconds", "images_per_s")


def on_machine(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / f"machine {number}"))


def book_in(folder: RunFolder, space: Space, **settings: Any) -> Book:
    weights = dict.fromkeys(("test_resnet", "test_efficientnet"), "scratch")
    storage = open_storage(folder.journal)
    return Book(space, folder, storage, suggest_lr=suggested_lr, weights_of=weights, **settings)


def test_a_book_that_changes_machines_after_every_trial_proposes_what_one_on_a_disk_does(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, location = make_space(trials=6), new_folder(store)
    expected = []
    for _ in range(6):
        book = open_book(tmp_path / "run", space)
        started = next_of(book)
        expected.append((started.record.trial, started.record.parent, started.config))
        tell(book, started)
    found = []
    for number in range(6):
        on_machine(tmp_path, number, monkeypatch)
        with opened(location) as folder, driving(folder) as held:
            save_space(space, folder.space)
            book = book_in(folder, space, check_lease=held.check)
            assert book.standing().finished == number
            started = next_of(book)
            found.append((started.record.trial, started.record.parent, started.config))
            tell(book, started)
    assert found == expected
    assert [name for name in open_folder(location).names() if name.startswith("lease/")] == []


def test_what_a_book_was_told_is_known_elsewhere_before_anything_else_happens(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may be gone without another word."""
    space, location = make_space(trials=6), new_folder(store)
    with opened(location) as folder:
        save_space(space, folder.space)
        assert folder.mirror
        folder.mirror.push()
        book = book_in(folder, space)
        started = next_of(book)
        on_machine(tmp_path, 1, monkeypatch)
        with opened(location) as other:
            assert book_in(other, space).standing().running == 1
        on_machine(tmp_path, 0, monkeypatch)
        tell(book, started)
        on_machine(tmp_path, 1, monkeypatch)
        with opened(location) as other:
            again = book_in(other, space)
            assert again.standing().best == (started.record.trial, score_of(started.config))
            next_of(again)
        with pytest.raises(AlreadyRunningError, match="one writer"):
            next_of(book)


def test_a_trial_that_is_told_while_the_store_is_away_waits_or_is_told_again_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, location = make_space(trials=6), new_folder(store)
    on_machine(tmp_path, 0, monkeypatch)
    with pytest.raises(StorageError, match="has not for 1 s"), opened(location) as folder, driving(folder) as held:
        save_space(space, folder.space)
        folder.push(folder.root)
        book = book_in(folder, space, check_lease=held.check)
        first, second = next_of(book), next_of(book)
        with store.away():
            threading.Timer(2.0, store.let_in).start()
            tell(book, first)
        monkeypatch.setenv("ICHSEARCH_STORE_PATIENCE_S", "1")
        with store.away():
            tell(book, second)
    on_machine(tmp_path, 1, monkeypatch)
    monkeypatch.delenv("ICHSEARCH_STORE_PATIENCE_S")
    with opened(location) as folder:
        standing = book_in(folder, space).standing()
    assert (standing.finished, standing.running) == (1, 1)


def test_a_replay_in_a_store_is_what_it_is_on_a_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, location, shards = make_space(), new_folder(store), new_folder(store)
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4, size=SIZE), SIZE)
    local = open_folder(tmp_path / "shards")
    for name in local.names():
        open_folder(shards).write_bytes(name, local.read_bytes(name))
    first = TrialConfig(
        backbone="test_resnet",
        batch_size=8,
        size=SIZE,
        channels="hu",
        lr=0.01,
        epochs=1,
        task="any",
        metric="auroc_any",
    )
    chain = (Link("0000", first), Link("0001", first.model_copy(update={"epochs": 3, "epochs_before": 1})))

    def replayed(folder: RunFolder, data: str | Path) -> tuple[TrialResult | None, object]:
        slices = open_slices(local_shards(data), SIZE)
        open_split(folder.split, slices.table, slices.fingerprint, 0)
        save_space(space, folder.space)
        folder.push(folder.root)
        assignment = Assignment(data, folder, {"test_resnet": None}, 1, 20)
        replay, record = run_replay(Replay(chain, seed=7), assignment, 0)
        assert record.reason == ""
        score_replay(replay, assignment)
        place = folder.replay(replay.name)
        folder.refresh(place)
        assert not (folder.replay("0000-seed7") / "weights.safetensors").exists()
        return read_result(place), read_held_out(place)

    on_machine(tmp_path, 0, monkeypatch)
    with opened(location) as folder:
        result, held_out = replayed(folder, shards)
    expected, expected_held_out = replayed(RunFolder(tmp_path / "run"), tmp_path / "shards")
    assert result
    assert expected
    assert (result.score, result.metrics, result.best_epoch) == (expected.score, expected.metrics, expected.best_epoch)
    assert held_out == expected_held_out
    names = open_folder(location).names()
    assert "confirm/0001-seed7/weights.safetensors" in names
    assert "confirm/0000-seed7/weights.safetensors" not in names, "the child has gone on from it"
    lineage = open_folder(location).read_bytes("confirm/0001-seed7/lineage.json")
    assert lineage == (tmp_path / "run" / "confirm" / "0001-seed7" / "lineage.json").read_bytes()
    assert not read_json(tmp_path / "run" / "confirm" / "0001-seed7" / "lineage.json")["restarted"]

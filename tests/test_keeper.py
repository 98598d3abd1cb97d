"""Which checkpoints outlive their trials: the best, those that may be promoted, and what a running child needs."""

from pathlib import Path
from typing import Any

import pytest
from books import make_space, next_of, open_book, score_of, tell

from ichsearch.search.book import Book, Started
from ichsearch.search.history import Entry, History
from ichsearch.search.keeper import Keeper
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.sections import Keep
from ichsearch.train.lineage import STATE, WEIGHTS


def entry_of(root: Path) -> Entry:
    """Any configuration will do."""
    book = open_book(root, make_space())
    next_of(book)
    return book._history.entries["0000"]


class Trials:
    """A history and its folders: weights of 100 bytes, states of 100 bytes."""

    def __init__(self, root: Path) -> None:
        self.folder, self.history = RunFolder(root / "kept"), History()
        self._any = entry_of(root / "any").configuration

    def add(self, epochs: int, loss: float | None, parent: int | None = None, *, running: bool = False) -> None:
        name = str(len(self.history.entries))
        self.history.add(Entry(name, epochs, self._any, None if parent is None else str(parent)))
        if not running:
            self.history.end(name, loss)
        (self.folder.trial(name) / STATE).mkdir(parents=True)
        for file in (WEIGHTS, f"{STATE}/a.bin", "metrics.json", "predictions.parquet"):
            (self.folder.trial(name) / file).write_bytes(b"x" * (100 if file == WEIGHTS else 50))
        (self.folder.trial(name) / STATE / "b.bin").write_bytes(b"x" * 50)

    def swept(self, left: float = 0, rungs: tuple[int, ...] = (1, 3, 9), **keep: Any) -> list[int]:
        """Which trials still have weights and states, and nothing else is touched."""
        keeper = Keeper(self.folder, Keep.model_validate(keep), rungs, 3)
        keeper.sweep(self.history, left)
        kept = []
        for name in self.history.entries:
            trial = self.folder.trial(name)
            assert (trial / WEIGHTS).exists() == (trial / STATE).exists()
            assert (trial / "metrics.json").exists()
            assert (trial / "predictions.parquet").exists()
            kept += [int(name)] if (trial / WEIGHTS).exists() else []
        return kept


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return Trials(tmp_path)


def test_the_best_are_kept_whatever_their_rung(trials: Trials) -> None:
    for epochs, loss in ((9, 0.5), (9, 0.4), (9, 0.3), (9, 0.2), (9, 0.6)):
        trials.add(epochs, loss)
    assert trials.swept(best=5) == [0, 1, 2, 3, 4]
    assert trials.swept(best=2) == [2, 3]
    assert trials.swept(best=1) == [3]


def test_who_may_be_promoted_is_kept_and_who_was_is_not(trials: Trials) -> None:
    for loss in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        trials.add(1, loss)
    assert trials.swept(left=3, best=1) == [3, 4, 5]
    trials.add(3, 0.1, parent=5)
    trials.add(9, 0.05, parent=6)
    assert trials.swept(left=0, best=1) == [4, 7]


def test_the_last_trials_of_a_budget_keep_the_next_in_line(trials: Trials) -> None:
    for loss in (0.9, 0.8, 0.7, 0.6):
        trials.add(1, loss)
    trials.add(3, None, parent=3, running=True)
    assert trials.swept(left=0, best=1) == [3, 4]
    trials.history.end("4", None)
    for loss in (0.9, 0.8):
        trials.add(1, loss)
    assert trials.swept(left=2, best=1)[:1] == [3]


def test_a_parent_whose_child_runs_is_kept(trials: Trials) -> None:
    trials.add(1, 0.5)
    trials.add(3, None, parent=0, running=True)
    for _ in range(3):
        trials.add(9, 0.1)
    assert trials.swept(best=1) == [0, 1, 2]
    trials.history.end("1", 0.4)
    assert 0 not in trials.swept(best=1)


def test_trials_of_another_space_are_kept_only_among_the_best(trials: Trials) -> None:
    for loss in (0.1, 0.2, 0.3):
        trials.add(1, loss)
    entries, trials.history = trials.history.entries.values(), History()
    for entry in entries:
        trials.history.add(Entry(entry.trial, 1, None))
        trials.history.end(entry.trial, entry.loss)
    assert trials.swept(left=10, best=1) == [0]


def test_under_a_cap_the_least_promising_go_first(trials: Trials) -> None:
    for loss in (0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        trials.add(1, loss)
    assert trials.swept(left=30, best=2, disk_gb=1200e-9) == [0, 1, 2, 3, 4, 5]
    assert trials.swept(left=30, best=2, disk_gb=1000e-9) == [1, 2, 3, 4, 5]
    assert trials.swept(left=30, best=2, disk_gb=599e-9) == [4, 5]
    assert trials.swept(left=30, best=2, disk_gb=1e-9) == [4, 5], "both are due for promotion"


def test_under_a_cap_the_best_outlive_those_that_only_may_be_promoted(trials: Trials) -> None:
    trials.add(9, 0.1)
    trials.add(9, 0.15)
    for loss in (0.5, 0.4, 0.3):
        trials.add(1, loss)
    assert trials.swept(left=30, best=2, disk_gb=800e-9) == [0, 1, 3, 4]
    assert trials.swept(left=30, best=2, disk_gb=600e-9) == [0, 1, 4]
    assert trials.swept(left=30, best=2, disk_gb=400e-9) == [0, 4], "the best of all, and who is due"


def test_the_cap_never_takes_what_a_running_child_needs(trials: Trials) -> None:
    trials.add(9, 0.1)
    trials.add(1, 0.5)
    trials.add(3, None, parent=1, running=True)
    assert trials.swept(best=1, disk_gb=1e-9) == [0, 1, 2]


def test_sizes_are_known_after_a_new_start(trials: Trials) -> None:
    keeper = Keeper(trials.folder, Keep(best=3, disk_gb=450e-9), (9,), 3)
    for loss in (0.3, 0.2):
        trials.add(9, loss)
        keeper.sweep(trials.history, 9)
    trials.add(9, 0.1)
    assert trials.swept(left=9, rungs=(9,), best=3, disk_gb=450e-9) == [1, 2], "another keeper"
    trials.add(9, 0.05)
    keeper.sweep(trials.history, 9)
    assert [trials.folder.trial(str(name)).joinpath(WEIGHTS).exists() for name in range(4)] == [
        False,
        False,
        True,
        True,
    ]


def train(book: Book, root: Path, file: str = WEIGHTS) -> Started:
    started = next_of(book)
    (root / "trials" / started.record.trial / file).write_bytes(b"w")
    tell(book, started, score_of(started.config))
    return started


def kept(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob(f"trials/*/{WEIGHTS}")}


def test_no_promoted_trial_of_a_run_finds_its_parents_weights_gone(tmp_path: Path) -> None:
    for seed in range(4):
        root = tmp_path / str(seed)
        book = open_book(root, make_space(trials=25, seed=seed, keep={"best": 1}))
        for _ in range(25):
            before = kept(root)
            parent = train(book, root).record.parent
            assert parent is None or parent in before
        assert len(kept(root)) <= 8


def test_a_failed_childs_parent_goes_at_once(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(keep={"best": 1}, trials=100))
    for _ in range(3):
        train(book, tmp_path)
    child, better = next_of(book), next_of(book)
    tell(book, better, 0.99)
    parent = str(child.record.parent)
    assert (better.record.parent, parent in kept(tmp_path)) == (None, True)
    book.tell_failed(child, "diverged")
    assert parent not in kept(tmp_path)


def test_a_new_start_sweeps_what_a_dead_driver_left(tmp_path: Path) -> None:
    space = make_space(keep={"best": 1}, trials=6)
    book = open_book(tmp_path, space)
    for _ in range(6):
        train(book, tmp_path)
    (gone, *_) = {f"{number:04d}" for number in range(6)} - kept(tmp_path)
    (tmp_path / "trials" / gone / WEIGHTS).write_bytes(b"w")
    open_book(tmp_path, space)
    assert gone not in kept(tmp_path)

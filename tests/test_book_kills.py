"""A driver killed at any step of the book's and started again makes the run that it would have made."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from books import PARAMETERS, make_space, open_book, score_of, studies, tell
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file

from ichsearch.search.book import Book, Started
from ichsearch.search.run_folder import RunFolder

TRIALS: Final = 30
WEIGHTS: Final = "weights.safetensors"
SPACE: Final = make_space(
    PARAMETERS | {"weight_decay": {"float": [1e-5, 0.1], "log": True}, "imbalance": {"choice": ["none", "loss"]}},
    trials=TRIALS,
    keep={"best": 2},
    first_trials=[{"lr": 1.0, "augment": 0.9}],
)
MOMENTS: Final = ("before", "torn", "after")


class KilledError(BaseException):
    """Nothing of the driver's own code must catch it."""


class Killer:
    """Kills the driver at its `step`-th write from now on: before it, in the middle of it, or after it."""

    def __init__(self) -> None:
        self.steps, self.step, self.moment = 0, -1, "before"

    @contextmanager
    def installed(self) -> Iterator[None]:
        append, write = JournalFileBackend.append_logs, RunFolder.write_record

        def tear(journal: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            """Half a line, and the lock stays."""
            before = Path(journal._file_path).read_bytes()
            append(journal, logs)
            line = Path(journal._file_path).read_bytes()[len(before) :]
            Path(journal._file_path).write_bytes(before + line[: len(line) // 2])
            Path(f"{journal._file_path}.lock").symlink_to(journal._file_path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", self._killing(append, tear))
            patch.setattr(RunFolder, "write_record", self._killing(write, lambda *given: None))
            yield

    def _killing(self, whole: Callable[..., None], torn: Callable[..., None]) -> Callable[..., None]:
        def step(*given: Any) -> None:
            self.steps += 1
            hit = self.steps == self.step
            if hit and self.moment == "torn":
                torn(*given)
            elif not hit or self.moment == "after":
                whole(*given)
            if hit:
                raise KilledError

        return step


class Seen(NamedTuple):
    """What must be the same, whatever happened to the driver."""

    trials: dict[str, tuple[str, str, str | None, dict[str, Any]]]
    values: dict[str, list[float | None]]
    weights: list[str]


def one_trial(book: Book, root: Path) -> bool:
    """A trial from beginning to end; false when there is none."""
    started = book.next()
    if not isinstance(started, Started):
        return False
    (root / "trials" / started.record.trial / WEIGHTS).write_bytes(b"w" * 10)
    if started.config.imbalance == "loss" and started.config.augment > 0.6:
        book.tell_failed(started, "diverged")
    else:
        tell(book, started, score_of(started.config))
    return True


def seen(root: Path) -> Seen:
    records = RunFolder(root).records()
    return Seen(
        {record.trial: (record.status, record.reason, record.parent, record.config) for record in records},
        {name: [trial.value for trial in study.get_trials()] for name, study in studies(root).items()},
        sorted(path.parent.name for path in root.glob(f"trials/*/{WEIGHTS}")),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A run whose driver was never killed."""
    root = tmp_path_factory.mktemp("whole")
    book = open_book(root, SPACE)
    while one_trial(book, root):
        pass
    found = seen(root)
    assert len(found.trials) == TRIALS
    assert {status for status, *_ in found.trials.values()} == {"finished", "failed"}
    assert sum(parent is not None for _, _, parent, _ in found.trials.values()) >= 5
    assert Counter(len(values) for values in found.values.values())[TRIALS] == 0, "on three rungs"
    return found


def killed_run(root: Path, steps: Iterator[tuple[int, str]], known: int = 0) -> int:
    """Drivers that are killed one after the other, each at its own step, until one is not; how many there were."""
    killer = Killer()
    with killer.installed():
        for drivers in count(1):
            killer.steps, (killer.step, killer.moment) = 0, next(steps, (-1, "before"))
            with suppress(KilledError):
                book = open_book(root, SPACE)
                while one_trial(book, root):
                    known += 1
                return drivers
    raise AssertionError


@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_again_and_again_makes_the_same_run(tmp_path: Path, whole: Seen, seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = ((int(random.integers(1, 20)), str(random.choice(MOMENTS))) for _ in count())
    drivers = killed_run(tmp_path, iter(steps))
    assert drivers > 15
    found = seen(tmp_path)
    assert found.trials == whole.trials
    assert found.values == whole.values
    assert found.weights == whole.weights


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_killed_at_any_step_of_a_trial_makes_the_same_run(tmp_path: Path, whole: Seen, moment: str) -> None:
    """The first trial, which makes a study; a promotion, which makes another; a failure; and one that is told."""
    order = sorted(whole.trials)
    failure = next(trial for trial in order if whole.trials[trial][0] == "failed")
    child = next(trial for trial in order if whole.trials[trial][2] is not None)
    book = open_book(tmp_path / "run", SPACE)
    for trial in order[: int(max(failure, child, "0012")) + 1]:
        shutil.copytree(tmp_path / "run", tmp_path / f"before {trial}")
        one_trial(book, tmp_path / "run")
    for trial in {"0000", failure, child, "0012"}:
        for step in range(1, 14):
            root = tmp_path / f"{trial} {step}"
            shutil.copytree(tmp_path / f"before {trial}", root)
            killer = Killer()
            killer.step, killer.moment = step, moment
            with killer.installed(), suppress(KilledError):
                one_trial(open_book(root, SPACE), root)
            again = open_book(root, SPACE)
            while len(RunFolder(root).records()) <= int(trial) + 2 and one_trial(again, root):
                pass
            for name, told in seen(root).trials.items():
                assert told == whole.trials[name] or told[0] == "running", (trial, step)
            assert len(seen(root).trials) >= int(trial) + 2


def test_a_stale_lock_does_not_delay(tmp_path: Path) -> None:
    one_trial(open_book(tmp_path, SPACE), tmp_path)
    with get_lock_file(JournalFileBackend(str(tmp_path / "journal.log"))._lock):
        assert one_trial(open_book(tmp_path, SPACE), tmp_path)
        (tmp_path / "journal.log.lock").symlink_to(tmp_path / "journal.log")

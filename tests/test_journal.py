"""The journal: a line a trial, whole after any end of its driver, and readable by Optuna itself."""

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from books import PARAMETERS, make_space, next_of, open_book, plain_space, run_all, studies, tell
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from ichsearch.search.drawing import Configuration
from ichsearch.search.journal import OUTCOME, RUNS, Journal, Place, open_storage

CONFIGURATION = Configuration(
    {"x": 0.25, "kind": "b"},
    {"x": 0.25, "kind": "b"},
    {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])},
)


def open_journal(root: Path) -> Journal:
    return Journal(open_storage(root / "journal.log"), "run", "maximize")


def start(journal: Journal, trial: str = "0000", epochs: int = 1, space: str = "{}") -> Place:
    return journal.start(epochs, space, CONFIGURATION, {"trial": trial, "epochs": epochs})


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "journal.log").read_text().splitlines()]


def test_a_trial_is_one_line(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    start(journal)
    before = lines(tmp_path)
    assert start(journal, "0001") == Place("run · 1 epoch", 1)
    (line,) = lines(tmp_path)[len(before) :]
    assert line["user_attrs"]["trial"] == "0001"
    assert line["params"] == {"x": 0.25, "kind": 1}
    assert line["state"] == TrialState.RUNNING


def test_what_is_told_comes_back(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    finished, failed, running = (start(journal, f"000{number}") for number in range(3))
    longer = start(journal, "0003", epochs=3)
    journal.finish(finished, 0.75, {"seconds": 2.5})
    journal.fail(failed, {"reason": "diverged", "seconds": 1.0})
    found = {trial.user_attrs["trial"]: (place, trial) for place, trial in open_journal(tmp_path).trials()}
    assert [place for place, _ in found.values()] == [finished, failed, running, longer]
    states = [trial.state for _, trial in found.values()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING]
    assert found["0000"][1].value == 0.75
    assert found["0000"][1].user_attrs[OUTCOME]["seconds"] == 2.5
    assert found["0001"][1].user_attrs[OUTCOME]["reason"] == "diverged"
    assert found["0001"][1].constraints == {RUNS: 1.0}
    assert found["0002"][1].params == CONFIGURATION.params
    assert found["0002"][1].distributions == CONFIGURATION.distributions


def test_a_rung_is_a_study_and_so_is_another_space(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    places = [
        start(journal, "0000"), start(journal, "0001", 3), start(journal, "0002", 1, "{2}"), start(journal, "0003"),
    ]  # fmt: skip
    names = ["run · 1 epoch", "run · 3 epochs", "run · 1 epoch · space 3", "run · 1 epoch"]
    assert [place.study for place in places] == names
    again = open_journal(tmp_path)
    assert start(again, "0004", 1, "{2}") == Place("run · 1 epoch · space 3", 1)
    assert start(again, "0005", 3) == Place("run · 3 epochs", 1)


def test_the_time_that_was_spent_is_kept(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.note_driven(1.0)
    assert journal.driven_s() == 0.0, "a run without a trial has no study to note it in"
    start(journal)
    journal.note_driven(12.3456)
    start(journal, epochs=3)
    assert open_journal(tmp_path).driven_s() == 12.346


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_torn_line_is_cut_off_and_a_dead_drivers_lock_removed(tmp_path: Path, share: float) -> None:
    journal = open_journal(tmp_path)
    start(journal)
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    start(journal, "0001")
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[: max(1, int(share * len(line)))])
    (tmp_path / "journal.log.lock").symlink_to(path)
    again = open_journal(tmp_path)
    assert path.read_bytes() == whole
    assert start(again, "0001").number == 1
    assert len(list(open_journal(tmp_path).trials())) == 2


def test_an_empty_or_absent_journal_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_bytes(b'{"op_co')
    assert list(open_journal(tmp_path).trials()) == []
    assert start(open_journal(tmp_path)).number == 0
    assert start(open_journal(tmp_path / "deep" / "folder")).number == 0


@pytest.mark.parametrize("cut", [1, 2])
def test_a_study_that_a_dead_driver_had_begun_is_completed(tmp_path: Path, cut: int) -> None:
    start(open_journal(tmp_path))
    path = tmp_path / "journal.log"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:cut]))
    assert start(open_journal(tmp_path)) == Place("run · 1 epoch", 0)
    assert len(studies(tmp_path)) == 1


def test_a_failure_told_by_half_is_told_again(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    place = start(journal)
    journal.fail(place, {"reason": "diverged"})
    path = tmp_path / "journal.log"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    again = open_journal(tmp_path)
    again.fail(place, {"reason": "diverged", "seconds": 1.0})
    ((_, trial),) = open_journal(tmp_path).trials()
    assert (trial.state, trial.constraints) == (TrialState.PRUNED, {RUNS: 1.0})


def test_optuna_reads_a_run(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(trials=8, seed=1))
    told = []
    for number in range(8):
        started = next_of(book)
        if number == 1:
            book.tell_failed(started, "out_of_memory")
        else:
            tell(book, started)
        told.append(started)
    found = studies(tmp_path)
    assert set(found) == {"small · 1 epoch", "small · 3 epochs", "small · 9 epochs"}
    for study in found.values():
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    for started in told:
        trial = found[started.place.study].get_trials()[started.place.number]
        assert trial.user_attrs["trial"] == started.record.trial
        assert trial.user_attrs["parent"] == started.record.parent
        assert trial.params["augment"] == started.config.augment
        assert trial.params["lr_factor"] == started.record.parameters["lr_factor"]
        assert trial.params["backbone"] == started.config.backbone
        assert trial.state == (TrialState.PRUNED if started is told[1] else TrialState.COMPLETE)
        assert trial.constraints == ({RUNS: 1.0} if started is told[1] else {})
    first = found["small · 1 epoch"]
    assert first.best_value == max(trial.value for trial in first.get_trials() if trial.value is not None)
    assert set(first.trials_dataframe()["params_backbone"]) <= {"test_resnet", "test_efficientnet"}
    first.ask().suggest_float("augment", 0.0, 1.0)


def test_a_changed_space_forgets_nothing_of_the_old_one(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, make_space(trials=6)))
    before = {name: study.get_trials() for name, study in studies(tmp_path).items()}
    wider = PARAMETERS | {"augment": {"float": [0.2, 1.0]}, "label_smoothing": {"choice": [0.0, 0.1]}}
    run_all(open_book(tmp_path, make_space(wider, trials=12, epochs=12)))
    after = studies(tmp_path)
    for name, trials in before.items():
        assert after[name].get_trials() == trials
    assert len(list(tmp_path.glob("trials/*/trial.json"))) == 12
    epochs = [study.user_attrs["epochs"] for study in after.values()]
    assert sorted(set(epochs)) == [1, 3, 9, 12]


def test_the_journal_is_synced_a_line_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure takes no trial that was handed out."""
    synced: list[int] = []
    sync = os.fsync
    book = open_book(tmp_path, plain_space())

    def watched(handle: int) -> None:
        synced.append(os.fstat(handle).st_size)
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    next_of(book)
    assert (tmp_path / "journal.log").stat().st_size in synced

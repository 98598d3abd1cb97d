"""The book: what is proposed, told, resumed and reused; with a real journal and no cluster."""

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from spaces import SMALL, write_space

from ichsearch.errors import AlreadyRunningError
from ichsearch.search.book import Book, Started
from ichsearch.search.journal import open_journal
from ichsearch.search.run_folder import RunFolder, lease
from ichsearch.search.space_file import load_space
from ichsearch.train.config import InputConfig
from ichsearch.train.trial import TrialResult

WEIGHTS = {"test_resnet": "scratch", "test_efficientnet": "scratch", "resnet10t": "scratch"}


def suggested_lr(config: InputConfig) -> float:
    return 0.01 if config.backbone == "test_resnet" else 0.001


def open_book(root: Path, content: str = SMALL) -> Book:
    folder = RunFolder(root)
    space = load_space(write_space(root, content))
    return Book(space, folder, open_journal(folder.journal), suggested_lr, WEIGHTS)


def result(score: float) -> TrialResult:
    return TrialResult(score, 1, {"auroc_any": score}, 1.0, 1.0, 1.0, 8, 1)


def run_all(book: Book, scores: list[float]) -> list[Started]:
    started = []
    for score in scores:
        trial = book.next()
        assert trial is not None
        book.tell_finished(trial, result(score))
        started.append(trial)
    return started


def studies(root: Path) -> dict[str, optuna.Study]:
    storage = open_journal(root / "journal.log")
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def test_there_are_as_many_trials_as_asked_for(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_all(book, [0.5, 0.6, 0.7])
    assert book.next() is None
    assert open_book(tmp_path).next() is None


def test_lr_is_the_drawn_factor_times_the_suggestion(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    for started in run_all(book, [0.5, 0.6, 0.7]):
        suggestion = suggested_lr(
            InputConfig.model_validate(started.config.model_dump(include=set(InputConfig.model_fields)))
        )
        assert started.config.lr == pytest.approx(started.record.parameters["lr_factor"] * suggestion)
        assert started.record.lr_suggestion == pytest.approx(suggestion)


def test_proposals_depend_on_the_seed_and_on_what_was_told_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = run_all(open_book(tmp_path / "a"), [0.5, 0.6, 0.7])
    second = []
    for score in (0.5, 0.6, 0.7):  # a driver that is started anew before every trial
        second += run_all(open_book(tmp_path / "b"), [score])
    other = run_all(open_book(tmp_path / "c", SMALL + "seed: 1\n"), [0.5, 0.6, 0.7])
    assert [item.config for item in first] == [item.config for item in second]
    assert [item.config.augment for item in first] != [item.config.augment for item in other]
    assert len({item.config.augment for item in first}) == 3


def test_interrupted_trials_are_handed_out_again_first_and_once(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    done, cut, also_cut = book.next(), book.next(), book.next()
    assert done and cut and also_cut
    book.tell_finished(done, result(0.5))
    again = open_book(tmp_path)
    assert [again.next(), again.next()] == [cut, also_cut]
    assert again.next() is None
    again.tell_finished(cut, result(0.6))
    again.tell_finished(also_cut, result(0.7))
    assert [record.status for record in RunFolder(tmp_path).records()] == ["finished"] * 3


def test_a_trial_that_died_before_it_had_a_configuration_is_replaced(tmp_path: Path) -> None:
    open_book(tmp_path)
    (study,) = studies(tmp_path).values()
    study.ask()
    assert len(run_all(open_book(tmp_path), [0.5, 0.6, 0.7])) == 3


def test_a_failure_is_a_violated_constraint_with_its_reason(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    trial = book.next()
    assert trial is not None
    book.tell_failed(trial, "out_of_memory")
    (study,) = studies(tmp_path).values()
    (told,) = study.get_trials()
    assert told.state == TrialState.PRUNED
    assert told.constraints == {"runs": 1.0}
    assert told.user_attrs["reason"] == "out_of_memory"
    (record,) = RunFolder(tmp_path).records()
    assert (record.status, record.reason) == ("failed", "out_of_memory")


def test_the_sampler_steers_away_from_what_fails(tmp_path: Path) -> None:
    book = open_book(tmp_path, SMALL.replace("trials: 3", "trials: 60"))
    failed = 0
    for _ in range(60):
        trial = book.next()
        assert trial is not None
        if trial.config.backbone == "test_resnet":
            failed += 1
            book.tell_failed(trial, "out_of_memory")
        else:
            book.tell_finished(trial, result(0.5 + trial.config.augment / 10))
    assert failed <= 20, "an axis that always fails keeps half of the trials when failures are ignored"


def test_a_torn_last_line_and_a_dead_drivers_lock_do_not_stop_the_next_driver(tmp_path: Path) -> None:
    run_all(open_book(tmp_path), [0.5, 0.6])
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_id": "x", "study')
    (tmp_path / "journal.log.lock").symlink_to(journal)
    book = open_book(tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert b'"worker_id": "x"' not in journal.read_bytes()
    assert len(run_all(book, [0.7])) == 1
    assert book.next() is None


def test_an_extended_run_reuses_what_the_new_space_could_have_proposed(tmp_path: Path) -> None:
    before = run_all(open_book(tmp_path), [0.5, 0.6, 0.7])
    wider = SMALL.replace("[test_resnet, test_efficientnet]", "[test_resnet, test_efficientnet, resnet10t]")
    book = open_book(tmp_path, wider.replace("trials: 3", "trials: 5"))
    assert len(run_all(book, [0.5, 0.6])) == 2
    old, new = studies(tmp_path).values()
    assert [trial.value for trial in new.get_trials()[:3]] == [0.5, 0.6, 0.7]
    assert len(old.get_trials()) == 3
    assert len(RunFolder(tmp_path).records()) == 5
    assert [record.trial for record in RunFolder(tmp_path).records()][:3] == [item.record.trial for item in before]


def test_a_narrowed_space_learns_only_from_trials_inside_it(tmp_path: Path) -> None:
    before = run_all(open_book(tmp_path, SMALL.replace("trials: 3", "trials: 8")), [0.5] * 8)
    narrow = SMALL.replace("{float: [0.0, 1.0]}", "{float: [0.0, 0.5]}").replace("trials: 3", "trials: 9")
    open_book(tmp_path, narrow)
    _, new = studies(tmp_path).values()
    inside = sum(item.config.augment <= 0.5 for item in before)
    assert 0 < inside < 8
    assert len(new.get_trials()) == inside


def test_a_second_driver_is_refused_and_a_dead_ones_lease_lapses(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with lease(folder), pytest.raises(AlreadyRunningError, match="already running"), lease(folder):
        pass
    with lease(folder):
        pass


def test_an_extended_run_still_finishes_what_the_earlier_space_began(tmp_path: Path) -> None:
    cut = open_book(tmp_path).next()
    assert cut is not None
    book = open_book(tmp_path, SMALL.replace("[0.0, 1.0]", "[0.0, 0.5]"))
    resumed = book.next()
    assert resumed is not None
    assert (resumed.record.trial, resumed.config, resumed.study) == (cut.record.trial, cut.config, cut.study)
    book.tell_finished(resumed, result(0.6))
    assert [study.get_trials()[0].value for study in studies(tmp_path).values() if study.get_trials()] == [0.6]
    assert len(run_all(book, [0.5, 0.5])) == 2


def test_a_trial_with_another_constant_teaches_nothing(tmp_path: Path) -> None:
    run_all(open_book(tmp_path), [0.5, 0.6, 0.7])
    open_book(tmp_path, SMALL.replace("size: 32", "size: 64").replace("trials: 3", "trials: 4"))
    _, new = studies(tmp_path).values()
    assert new.get_trials() == []


def test_what_the_wider_space_found_is_known_when_the_first_one_is_searched_again(tmp_path: Path) -> None:
    run_all(open_book(tmp_path), [0.5, 0.6, 0.7])
    wider = SMALL.replace("[0.3, 3.0]", "[0.1, 3.0]").replace("trials: 3", "trials: 8")
    found = run_all(open_book(tmp_path, wider), [0.5] * 5)
    open_book(tmp_path)
    old, _ = studies(tmp_path).values()
    inside = sum(item.record.parameters["lr_factor"] >= 0.3 for item in found)
    assert 0 < inside < 5
    assert len(old.get_trials()) == 3 + inside


def test_an_interrupted_trial_whose_backbone_is_gone_is_abandoned_by_name(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    cut = [book.next(), book.next(), book.next()]
    gone = [item for item in cut if item and item.config.backbone == "test_resnet"]
    assert gone
    folder = RunFolder(tmp_path)
    content = SMALL.replace("{choice: [test_resnet, test_efficientnet]}", "{choice: [test_efficientnet, resnet10t]}")
    space = load_space(write_space(tmp_path, content))
    weights = {"test_efficientnet": "scratch", "resnet10t": "scratch"}
    other = Book(space, folder, open_journal(folder.journal), suggested_lr, weights)
    while other.next() is not None:
        pass
    abandoned = {record.trial for record in folder.records() if record.reason.startswith("abandoned")}
    assert abandoned == {item.record.trial for item in gone}


def test_a_deleted_trial_folder_does_not_let_a_new_trial_take_anothers_place(tmp_path: Path) -> None:
    run_all(open_book(tmp_path), [0.5, 0.6, 0.7])
    shutil.rmtree(tmp_path / "trials" / "0001")
    (started,) = run_all(open_book(tmp_path), [0.8])
    assert started.record.trial == "0003"


def test_a_failure_that_was_only_half_told_is_not_run_again(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    trial = book.next()
    assert trial is not None
    RunFolder(tmp_path).write_record(trial.record.model_copy(update={"status": "failed", "reason": "diverged"}))
    again = open_book(tmp_path).next()
    assert again is not None
    assert again.record.trial != trial.record.trial
    (study,) = studies(tmp_path).values()
    assert study.get_trials()[0].state == TrialState.PRUNED

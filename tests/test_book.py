"""The book: what is proposed, promoted, told, resumed and reused; with a real journal and no cluster."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from books import (
    BACKBONES,
    PARAMETERS,
    make_space,
    next_of,
    open_book,
    plain_space,
    run_all,
    studies,
    suggested_lr,
    tell,
)
from optuna.trial import TrialState

from ichsearch.search.book import WAIT, Started
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.config import InputConfig

RESNET = PARAMETERS | {"backbone": "test_resnet", "batch_size": {"choice": [8, 16]}}
FOUR = {"backbone": "test_resnet", "batch_size": {"choice": [8, 16]}, "size": 32, "lr": {"factor": {"choice": [1, 2]}}}
NARROW = PARAMETERS | {"augment": {"float": [0.0, 0.5]}}
WIDER = PARAMETERS | {"backbone": {"choice": list(BACKBONES)}}


def statuses(root: Path) -> list[str]:
    return [record.status for record in RunFolder(root).records()]


def test_there_are_as_many_trials_as_asked_for(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space())
    run_all(book, [0.5, 0.6, 0.7])
    assert book.next() is None
    assert book.standing().why_done == "all trials are done"
    assert open_book(tmp_path, plain_space()).next() is None


def test_lr_is_the_drawn_factor_times_the_suggestion(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space())
    for started in run_all(book, [0.5, 0.6, 0.7]):
        seen = InputConfig.model_validate(started.config.model_dump(include=set(InputConfig.model_fields)))
        assert started.config.lr == pytest.approx(started.record.parameters["lr_factor"] * suggested_lr(seen))
        assert started.record.lr_suggestion == pytest.approx(suggested_lr(seen))


def test_a_rate_without_the_lr_finder_is_taken_as_it_is(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space(PARAMETERS | {"lr": {"float": [1e-4, 1e-1], "log": True}}))
    for started in run_all(book, [0.5, 0.6, 0.7]):
        assert started.config.lr == started.record.parameters["lr"]
        assert started.record.lr_suggestion is None


def test_proposals_depend_on_the_seed_and_on_what_was_told_alone(tmp_path: Path) -> None:
    first = run_all(open_book(tmp_path / "a", plain_space()), [0.5, 0.6, 0.7])
    second = []
    for score in (0.5, 0.6, 0.7):  # a driver that is started anew before every trial
        second += run_all(open_book(tmp_path / "b", plain_space()), [score])
    other = run_all(open_book(tmp_path / "c", plain_space(seed=1)), [0.5, 0.6, 0.7])
    assert [item.config for item in first] == [item.config for item in second]
    assert [item.config.augment for item in first] != [item.config.augment for item in other]
    assert len({item.config.augment for item in first}) == 3


def test_the_best_go_on_from_their_parents_weights(tmp_path: Path) -> None:
    book, folder = open_book(tmp_path, make_space(trials=5)), RunFolder(tmp_path)
    for score in (0.5, 0.7, 0.6):
        tell(book, next_of(book), score)
    child = next_of(book)
    assert (child.record.parent, child.record.epochs) == ("0001", 3)
    assert (child.config.epochs, child.config.epochs_before, child.config.cycle_epochs) == (3, 1, None)
    parent = folder.record("0001")
    assert parent is not None
    own = {"epochs": 3, "epochs_before": 1}
    assert child.config.model_dump() == parent.config | own
    assert child.record.parameters == parent.parameters
    tell(book, child, 0.8)
    last = next_of(book)
    assert (last.record.parent, last.config.epochs, last.config.epochs_before) == ("0003", 9, 3)
    assert {name: len(study.get_trials()) for name, study in studies(tmp_path).items()} == {
        "small · 1 epoch": 3, "small · 3 epochs": 1, "small · 9 epochs": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "before", "cycle"),
    [
        ({"promotion": {"eta": 3, "child": "restart"}}, 0, None),
        ({"schedule": "whole"}, 1, 9),
    ],
)
def test_a_child_restarts_or_goes_on_with_the_whole_cycle(
    tmp_path: Path, settings: dict[str, Any], before: int, cycle: int | None
) -> None:
    book = open_book(tmp_path, make_space(**settings))
    for _ in range(3):
        started = next_of(book)
        assert started.config.cycle_epochs == cycle
        tell(book, started)
    child = next_of(book)
    assert child.record.parent is not None
    assert (child.config.epochs_before, child.config.cycle_epochs) == (before, cycle)


def test_interrupted_trials_are_handed_out_again_first_and_once(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space())
    done, cut, also_cut = next_of(book), next_of(book), next_of(book)
    tell(book, done, 0.5)
    again = open_book(tmp_path, plain_space())
    assert [again.next(), again.next()] == [cut, also_cut]
    assert again.next() is None
    tell(again, cut, 0.6)
    tell(again, also_cut, 0.7)
    assert statuses(tmp_path) == ["finished"] * 3


def test_a_trial_of_others_in_the_journal_is_left_alone(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, plain_space()), [0.5])
    (study,) = studies(tmp_path).values()
    study.ask()
    assert len(run_all(open_book(tmp_path, plain_space()), [0.6, 0.7])) == 2
    assert open_book(tmp_path, plain_space()).next() is None


def test_a_failure_is_known_with_its_reason(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space())
    book.tell_failed(next_of(book), "out_of_memory")
    (record,) = RunFolder(tmp_path).records()
    assert (record.status, record.reason) == ("failed", "out_of_memory")
    again = open_book(tmp_path, plain_space())
    assert (again.standing().failed, next_of(again).record.trial) == (1, "0001")


def test_the_sampler_steers_away_from_what_fails(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space(trials=60))
    failed = 0
    for _ in range(60):
        trial = next_of(book)
        if trial.config.backbone == "test_resnet":
            failed += 1
            book.tell_failed(trial, "out_of_memory")
        else:
            tell(book, trial, 0.5 + trial.config.augment / 10)
    assert failed <= 20, "an axis that always fails keeps half of the trials when failures are ignored"


def test_scores_that_shall_be_low_are_minimised(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(metric="log_loss", trials=5))
    started = run_all(book, [0.5, 0.3, 0.4, 0.2])
    assert started[3].record.parent == "0001"
    assert book.standing().best == ("0003", 0.2)


def test_an_extended_run_reuses_what_the_new_space_could_have_proposed(tmp_path: Path) -> None:
    before = run_all(open_book(tmp_path, make_space(trials=5)), [0.5, 0.7, 0.6, 0.71, 0.72])
    book = open_book(tmp_path, make_space(WIDER, trials=9))
    assert (book.standing().finished, book.standing().best) == (5, ("0004", 0.72))
    after = run_all(book)
    assert [item.record.trial for item in after] == ["0005", "0006", "0007", "0008"]
    new = [item for item in after if item.record.parent is None]
    assert not {item.config for item in new} & {item.config for item in before}
    promoted = [item.record.parent for item in before + after if item.record.parent]
    assert len(promoted) == len(set(promoted))
    assert {"0002", "0000"} & {item.record.parent for item in after}, "an older trial climbs in the new run"
    assert "small · 1 epoch · space 4" in studies(tmp_path)


def test_other_rungs_take_over_the_trials_that_stand_on_them(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, make_space(trials=5)), [0.5, 0.7, 0.6, 0.71, 0.72])
    longer = make_space(trials=7, epochs=18, promotion={"eta": 9})
    assert longer.rungs() == (1, 9, 18)
    (on, top) = run_all(open_book(tmp_path, longer), [0.6, 0.8])
    assert (on.record.parent, on.config.epochs) == ("0004", 18), "who had full length stands one rung below it now"
    assert on.config.epochs == 18
    assert top.record.parent in ("0000", "0002")


def test_a_narrowed_space_learns_only_from_trials_inside_it(tmp_path: Path) -> None:
    before = run_all(open_book(tmp_path, make_space(trials=6)), [0.5] * 6)
    roots = [item for item in before if item.record.parent is None]
    inside = {item.record.trial for item in roots if item.config.augment <= 0.5}
    assert 0 < len(inside) < len(roots)
    after = run_all(open_book(tmp_path, make_space(NARROW, trials=12)))
    known = {item.record.trial: item for item in before + after}
    for child in (item for item in after if item.record.parent):
        assert known[str(child.record.parent)].config.augment <= 0.5


@pytest.mark.parametrize(
    ("changed", "settings", "known"),
    [
        (PARAMETERS | {"label_smoothing": {"choice": [0, 0.1]}}, {}, True),  # a trial's default is among them
        (PARAMETERS | {"label_smoothing": {"choice": [0.05, 0.1]}}, {}, False),
        (PARAMETERS | {"size": 64}, {}, False),
        (PARAMETERS | {"batch_size": {"choice": [8, 16, 32]}}, {}, True),
        (RESNET | {"backbone": {"choice": ["resnet10t", "test_efficientnet"]}}, {}, False),
        (RESNET | {"batch_size": 4}, {}, False),
        (RESNET | {"augment": 0.0}, {}, False),
        (PARAMETERS | {"lr": {"float": [1e-4, 1.0], "log": True}}, {}, True),
        (PARAMETERS, {"constraints": {"forbidden": [{"backbone": "test_resnet"}]}}, False),
        (PARAMETERS, {"schedule": "whole"}, False),
        (PARAMETERS, {"sampler": "random", "trials": 99, "keep": {"best": 1}}, True),
    ],
)
def test_a_trial_counts_where_the_changed_space_could_have_proposed_it(
    tmp_path: Path, changed: dict[str, Any], settings: dict[str, Any], known: bool
) -> None:
    run_all(open_book(tmp_path, make_space(RESNET)), [0.5, 0.6, 0.7])
    inputs = make_space(changed, **settings).input_configs()

    def found(config: InputConfig) -> float:
        assert config in inputs, "the LR finder has run for this space alone"
        return suggested_lr(config)

    started = next_of(open_book(tmp_path, make_space(changed, **settings), suggest_lr=found))
    assert (started.record.parent == "0002") == known


def test_a_removed_parameter_counts_with_its_default(tmp_path: Path) -> None:
    smoothed = RESNET | {"label_smoothing": {"float": [0.05, 0.1]}}
    run_all(open_book(tmp_path, make_space(smoothed)), [0.5, 0.6, 0.7])
    removed = {"float": [0.0, 0.1], "when": [{"if": {"backbone": "test_resnet"}, "remove": True}]}
    started = next_of(open_book(tmp_path, make_space(PARAMETERS | {"label_smoothing": removed})))
    assert started.record.parent is None, "without smoothing it would be another configuration"


def test_what_was_found_in_between_is_known_when_the_first_space_is_searched_again(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, plain_space()), [0.5, 0.6, 0.7])
    run_all(open_book(tmp_path, plain_space(WIDER, trials=8)), [0.5] * 5)
    book = open_book(tmp_path, plain_space(trials=9))
    assert book.standing().finished == 8
    (last,) = run_all(book, [0.5])
    assert last.record.trial == "0008"
    assert len(studies(tmp_path)) == 2


def test_an_extended_run_still_finishes_what_the_earlier_space_began(tmp_path: Path) -> None:
    cut = next_of(open_book(tmp_path, plain_space(PARAMETERS | {"augment": {"float": [0.6, 1.0]}})))
    book = open_book(tmp_path, plain_space(NARROW))
    resumed = next_of(book)
    assert resumed == cut
    tell(book, resumed, 0.6)
    assert [trial.value for study in studies(tmp_path).values() for trial in study.get_trials()] == [0.6]
    assert len(run_all(book)) == 2


def test_an_interrupted_trial_whose_backbone_is_gone_is_abandoned_by_name(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space())
    cut = [next_of(book), next_of(book), next_of(book)]
    gone = {item.record.trial for item in cut if item.config.backbone == "test_resnet"}
    assert 0 < len(gone) < 3
    without = plain_space(PARAMETERS | {"backbone": {"choice": ["test_efficientnet", "resnet10t"]}})
    weights = {"test_efficientnet": "scratch", "resnet10t": "scratch"}
    run_all(open_book(tmp_path, without, weights_of=weights))
    abandoned = {item.trial for item in RunFolder(tmp_path).records() if item.reason.startswith("abandoned")}
    assert abandoned == gone


def test_only_trials_that_may_go_on_have_checkpoints(tmp_path: Path) -> None:
    """A crash, or a kill of the worker at the wrong moment, leaves one in the folder of a trial that has ended."""
    book = open_book(tmp_path, plain_space())
    started = [next_of(book), next_of(book), next_of(book)]
    files = [tmp_path / "trials" / item.record.trial / "checkpoint" / "0001" / "model.pt" for item in started]

    def leave_checkpoints() -> None:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"large")

    leave_checkpoints()
    tell(book, started[0])
    book.tell_failed(started[1], "crashed")
    assert [file.parent.parent.exists() for file in files] == [False, False, True]
    leave_checkpoints()
    open_book(tmp_path, plain_space())
    assert [file.parent.parent.exists() for file in files] == [False, False, True]


def test_a_deleted_trial_folder_does_not_let_a_new_trial_take_anothers_place(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, plain_space()), [0.5, 0.6, 0.7])
    shutil.rmtree(tmp_path / "trials" / "0001")
    (started,) = run_all(open_book(tmp_path, plain_space(trials=4)), [0.8])
    assert started.record.trial == "0003"
    assert statuses(tmp_path) == ["finished"] * 4


def test_a_failure_that_was_only_half_told_is_not_run_again(tmp_path: Path) -> None:
    trial = next_of(open_book(tmp_path, plain_space()))
    RunFolder(tmp_path).write_record(trial.record.model_copy(update={"status": "failed", "reason": "diverged"}))
    again = next_of(open_book(tmp_path, plain_space()))
    assert again.record.trial != trial.record.trial
    (study,) = studies(tmp_path).values()
    assert study.get_trials()[0].state == TrialState.PRUNED


def test_trials_beyond_the_ten_thousandth_stay_in_their_order(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, plain_space()), [0.5, 0.5, 0.5])
    journal = tmp_path / "journal.log"
    lines = journal.read_text().replace('"trial":"0001"', '"trial":"9999"').replace('"trial":"0002"', '"trial":"10000"')
    journal.write_text(lines)
    book = open_book(tmp_path, plain_space(trials=4))
    assert [entry.trial for entry in book._history.all_finished()] == ["0000", "9999", "10000"]
    assert next_of(book).record.trial == "10001"


def test_workers_wait_for_the_one_that_must_climb(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_space(trials=3))
    first = next_of(book)
    assert book.next() == WAIT
    tell(book, first)
    second = next_of(book)
    assert (second.record.parent, book.next()) == ("0000", WAIT)
    tell(book, second)
    tell(book, next_of(book))
    assert (book.next(), book.standing().why_done) == (None, "all trials are done")


def test_a_finite_space_ends_when_all_was_tried(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space(FOUR, trials=9))
    cut = [next_of(book) for _ in range(4)]
    assert book.next() == WAIT
    for started in cut:
        tell(book, started)
    assert book.next() is None
    assert book.standing().why_done == "every configuration of the space has been tried"
    assert len({(item.config.batch_size, item.config.lr) for item in cut}) == 4


def test_a_grid_is_tried_in_order_with_failures(tmp_path: Path) -> None:
    space = plain_space(FOUR, trials=9, strategy="grid")
    started = []
    for number in count():
        book = open_book(tmp_path, space)
        if not isinstance(trial := book.next(), Started):
            break
        started.append((trial.config.batch_size, trial.record.parameters["lr_factor"]))
        book.tell_failed(trial, "diverged") if number == 1 else tell(book, trial)
    assert started == [(8, 1), (8, 2), (16, 1), (16, 2)]


def test_the_standing_says_how_far_the_run_is(tmp_path: Path) -> None:
    book = open_book(tmp_path, plain_space(trials=5, time=1000, device_hours=1))
    assert book.standing().eta_s == pytest.approx(1000, abs=5), "all there is"
    for score in (0.5, 0.7):
        tell(book, next_of(book), score)
    book.tell_failed(next_of(book), "diverged")
    next_of(book)
    standing = book.standing()
    assert (standing.finished, standing.failed, standing.running, standing.trials) == (2, 1, 1, 5)
    assert standing.best == ("0001", 0.7)
    assert (standing.time_s, standing.device_limit_s, standing.why_done) == (1000, 3600, "")
    assert standing.eta_s == pytest.approx(standing.spent_s * 2 / 3, rel=0.2)
    assert standing.device_s == pytest.approx(4, abs=0.5)


def test_a_driver_that_has_lost_its_lease_decides_nothing(tmp_path: Path) -> None:
    class LostError(Exception):
        pass

    lost = False

    def check() -> None:
        if lost:
            raise LostError

    book = open_book(tmp_path, plain_space(), check_lease=check)
    started, lost = next_of(book), True
    before = (tmp_path / "journal.log").read_bytes()
    for step in (book.next, lambda: tell(book, started), lambda: book.tell_failed(started, "diverged")):
        with pytest.raises(LostError):
            step()
    assert (tmp_path / "journal.log").read_bytes() == before
    assert statuses(tmp_path) == ["running"]

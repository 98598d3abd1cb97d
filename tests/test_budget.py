"""Budgets of trials, wall clock and device time: estimates, and what still fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from books import PARAMETERS, make_space, next_of, open_book, plain_space, result, run_all, score_of

from ichsearch.search import book as book_module
from ichsearch.search.book import WAIT, Book, Started
from ichsearch.search.budget import Costs, Left
from ichsearch.search.drawing import Configuration
from ichsearch.search.space import Space
from ichsearch.train.config import TrialConfig

ONE = Configuration({}, {}, {})


def config(**changes: Any) -> TrialConfig:
    known = {"backbone": "test_resnet", "batch_size": 8, "size": 32, "epochs": 3, "lr": 0.1}
    return TrialConfig.model_validate(known | changes)


def costs(images_per_s: Callable[[TrialConfig], float | None] = lambda config: None, slices: int = 100) -> Costs:
    return Costs(images_per_s, slices)


def test_nothing_is_known_at_first() -> None:
    assert costs().seconds(config(), [(0, 3)]) is None


def test_the_median_of_the_same_kind_is_the_estimate() -> None:
    known = costs()
    for lr, seconds in ((0.1, 30.0), (0.2, 40.0), (0.3, 900.0)):
        known.learn(config(lr=lr), seconds, 10)
    assert known.seconds(config(), [(0, 3)]) == pytest.approx(12)
    assert known.seconds(config(), [(1, 3), (3, 9)]) == pytest.approx(32)


def test_the_nearest_kind_counts() -> None:
    known = costs()
    known.learn(config(), 10, 1)
    known.learn(config(batch_size=16), 20, 1)
    known.learn(config(backbone="test_efficientnet"), 100, 1)
    assert known.seconds(config(augment=1.0), [(0, 1)]) == 10
    assert known.seconds(config(batch_size=16), [(0, 1)]) == 20
    assert known.seconds(config(batch_size=32), [(0, 1)]) == 15, "the backbone's"
    assert known.seconds(config(backbone="test_efficientnet", size=64), [(0, 1)]) == 100
    assert known.seconds(config(backbone="resnet10t"), [(0, 1)]) == 20, "any"


def test_the_lr_finders_speed_stands_in_for_a_backbone_without_trials() -> None:
    known = costs(lambda config: 50.0 if config.backbone == "resnet10t" else None, slices=1000)
    known.learn(config(), 7, 1)
    assert known.seconds(config(backbone="resnet10t"), [(0, 2)]) == pytest.approx(40)
    assert known.seconds(config(backbone="test_efficientnet"), [(0, 2)]) == pytest.approx(14)
    known.learn(config(backbone="resnet10t", size=64), 3, 1)
    assert known.seconds(config(backbone="resnet10t"), [(0, 2)]) == pytest.approx(6), "a trial knows better"


@pytest.mark.parametrize(
    ("time_s", "device_s", "devices", "cost_s", "lacking"),
    [
        (10, 10, 1.0, 10, ""),
        (9.9, 10, 1.0, 10, "time"),
        (10, 9.9, 1.0, 10, "device_hours"),
        (10, 5, 0.5, 10, ""),
        (10, 19, 2.0, 10, "device_hours"),
        (10, 10, 1.0, None, ""),
        (0, 10, 1.0, None, "time"),
        (10, -1, 1.0, None, "device_hours"),
    ],
)
def test_a_trial_fits_if_all_its_time_is_left(
    time_s: float, device_s: float, devices: float, cost_s: float | None, lacking: str
) -> None:
    left = Left(9, time_s, device_s, lambda configuration, steps: cost_s, lambda configuration: devices)
    assert left.has(ONE, [(0, 1)]) == (not lacking)
    assert left.lacking == (lacking or "time")


class Clock:
    """Time passes only while trials run."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(book_module, "time", clock)
    return clock


def train(book: Book, clock: Clock, started: Started, epoch_s: float = 10.0) -> None:
    """A trial that takes its time."""
    epochs = started.config.epochs - started.config.epochs_before
    clock.now_s += epochs * epoch_s
    book.tell_finished(started, result(score_of(started.config), epochs * epoch_s, epochs))


def run(book: Book, clock: Clock) -> list[Started]:
    ended = []
    while isinstance(started := book.next(), Started):
        train(book, clock, started)
        ended.append(started)
    return ended


def restarting(**settings: Any) -> Space:
    return make_space(trials=100, promotion={"eta": 3, "child": "restart"}, **settings)


def test_a_trial_has_its_spaces_limit_or_twenty_times_what_it_should_take(tmp_path: Path) -> None:
    book = open_book(tmp_path / "a", plain_space(trial_limit=90))
    assert book.limit_s(next_of(book)) == 90
    book = open_book(tmp_path / "b", plain_space())
    first = next_of(book)
    assert book.limit_s(first) == float("inf"), "nothing is known of any like it"
    book.tell_finished(first, result(0.5, seconds=3600.0, epochs=first.config.epochs))
    assert book.limit_s(next_of(book)) == 20 * 3600
    hasty = open_book(tmp_path / "c", plain_space(), images_per_s=lambda config: 1e6, train_slices=10)
    assert hasty.limit_s(next_of(hasty)) == 2 * 3600, "a node may have to decode its slices first"


@pytest.mark.parametrize("time_s", [15, 45, 131, 200, 500])
def test_a_run_keeps_to_its_time_and_ends_at_full_length_if_it_can(tmp_path: Path, clock: Clock, time_s: int) -> None:
    book = open_book(tmp_path, restarting(time=time_s))
    ended = run(book, clock)
    standing = book.standing()
    assert standing.why_done == "the time budget has no room for another trial"
    assert standing.spent_s <= time_s
    assert time_s - standing.spent_s < 10 * (1 + 3 + 9)
    if time_s >= 10 + 30 + 90 + 10:
        assert ended[-1].config.epochs == 9 or 9 in [item.config.epochs for item in ended]


def test_the_first_trial_is_tried_whatever_it_may_cost(tmp_path: Path, clock: Clock) -> None:
    book = open_book(tmp_path, plain_space(time=5))
    assert len(run(book, clock)) == 1
    assert book.standing().spent_s == 20


def test_a_speed_that_is_known_keeps_the_first_trial_from_starting(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"images_per_s": lambda config: 10.0, "train_slices": 1000}
    assert open_book(tmp_path / "a", plain_space(time=199), **settings).next() is None
    assert isinstance(open_book(tmp_path / "b", plain_space(time=201), **settings).next(), Started)


@pytest.mark.parametrize(
    ("time_s", "device_s", "done"), [(45, 1000, "time"), (1000, 45, "device_hours"), (1000, 1000, "trials")]
)
def test_a_run_says_which_budget_has_ended_it(
    tmp_path: Path, clock: Clock, time_s: int, device_s: int, done: str
) -> None:
    book = open_book(tmp_path, plain_space(trials=5, time=time_s, device_hours=device_s / 3600))
    ended = run(book, clock)
    assert (len(ended), book.standing().done) == (5 if done == "trials" else 2, done)


def test_the_time_of_earlier_starts_counts(tmp_path: Path, clock: Clock) -> None:
    space = plain_space(time=100, trials=50)
    train(first := open_book(tmp_path, space), clock, next_of(first))
    clock.now_s += 10_000  # nobody drives the run
    again = open_book(tmp_path, space)
    assert again.standing().spent_s == 20
    assert len(run(again, clock)) == 4
    longer = open_book(tmp_path, plain_space(time=140, trials=50))
    assert len(run(longer, clock)) == 2


def test_running_trials_take_of_the_device_time_what_they_will_cost(tmp_path: Path, clock: Clock) -> None:
    parameters = PARAMETERS | {"backbone": "test_resnet", "batch_size": 8}
    book = open_book(
        tmp_path, plain_space(parameters, trials=50, device_hours=100 / 3600), devices_of=lambda config: 0.5
    )
    train(book, clock, next_of(book))
    assert book.standing().device_s == 10
    running = [next_of(book) for _ in range(9)]
    assert book.next() == WAIT, "9 trials of 20 s on half a device, and the one before them"
    for started in running:
        train(book, clock, started)
    assert book.next() is None
    assert book.standing().device_s == 100


def test_each_trial_is_charged_the_share_of_a_device_that_its_backbone_has(tmp_path: Path, clock: Clock) -> None:
    """Of what has ended, of what runs, and of what is asked for."""
    shares = {"test_resnet": 0.25, "test_efficientnet": 1.0}
    first = [{"backbone": name, "batch_size": 8} for name in ("test_resnet", "test_efficientnet", "test_resnet")]
    space = plain_space(trials=50, device_hours=(5 + 20 + 5 + 19) / 3600, first_trials=first)
    settings: dict[str, Any] = {"devices_of": lambda config: shares[config.backbone]}
    book = open_book(tmp_path, space, **settings)
    for spent_s in (5, 25):
        train(book, clock, next_of(book))
        assert book.standing().device_s == spent_s
    assert open_book(tmp_path, space, **settings).standing().device_s == 25
    started = [next_of(book)]
    while isinstance(trial := book.next(), Started):
        started.append(trial)
    assert [item.config.backbone for item in started] == ["test_resnet"] * len(started)
    assert len(started) <= 4


def test_failures_cost_device_time_also_after_a_new_start(tmp_path: Path, clock: Clock) -> None:
    space = plain_space(device_hours=1, trials=9)
    book = open_book(tmp_path, space)
    started = next_of(book)
    clock.now_s += 30
    book.tell_failed(started, "diverged")
    train(book, clock, next_of(book))
    assert book.standing().device_s == 50
    assert open_book(tmp_path, space).standing().device_s == 50


def test_promotions_go_before_new_trials_when_time_runs_out(tmp_path: Path, clock: Clock) -> None:
    book = open_book(tmp_path, restarting(time=10 * 2 + 30 + 90 + 5))
    ended = [(item.config.epochs, item.config.epochs_before) for item in run(book, clock)]
    assert ended == [(1, 0), (1, 0), (3, 0), (9, 0)]


def test_what_is_left_after_the_top_goes_to_the_best_below_it(tmp_path: Path, clock: Clock) -> None:
    book = open_book(tmp_path, restarting(time=10 * 3 + 30 + 90))
    while (started := next_of(book)).config.epochs < 9:
        train(book, clock, started)
    train(book, clock, started, epoch_s=5.0)  # unexpectedly fast
    assert [(item.config.epochs, item.record.parent is None) for item in run(book, clock)] == [(3, False), (1, True)]


def test_trials_are_counted_over_all_starts(tmp_path: Path) -> None:
    run_all(open_book(tmp_path, plain_space(trials=3)))
    assert len(run_all(open_book(tmp_path, plain_space(trials=5)))) == 2
    assert open_book(tmp_path, plain_space(trials=4)).next() is None

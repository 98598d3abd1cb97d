"""Promotion over rungs: who goes on, in which order, and what the last trials of a budget are for."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from books import Search

from ichsearch.search.drawing import Drawn, Suggests
from ichsearch.search.history import Entry, History
from ichsearch.search.promotion import (
    climbs,
    due_promotions,
    leaders,
    missing_steps,
    promotable,
    rungs_of,
)

RUNGS = (1, 3, 9)


def history(*ends: tuple[int, float | str | None, str | None]) -> History:
    """Trials "0", "1", …: epochs, loss (None: failed, "runs": it has not ended), parent."""
    known, some = History(), Search(1)
    first = some.start()
    assert isinstance(first, Entry)
    for number, (epochs, loss, parent) in enumerate(ends):
        known.add(Entry(str(number), epochs, first.configuration, parent))
        if not isinstance(loss, str):
            known.end(str(number), loss)
    return known


def first(entries: Iterator[Entry]) -> Entry | None:
    return next(entries, None)


def name(entry: Entry | None) -> str | None:
    return entry.trial if entry else None


@pytest.mark.parametrize(
    ("epochs", "eta", "first", "rungs"),
    [
        (9, 3, 1, (1, 3, 9)),
        (10, 3, 1, (1, 3, 10)),
        (12, 3, 2, (2, 6, 12)),
        (11, 3, 2, (2, 11)),  # 6 of 11 would be more than half
        (27, 3, 1, (1, 3, 9, 27)),
        (16, 4, 1, (1, 4, 16)),
        (2, 4, 1, (1, 2)),
        (2, 2, 1, (1, 2)),
        (1, 3, 1, (1,)),
        (9, 3, 9, (9,)),
        (9, 3, 20, (9,)),
        (5, 10, 1, (1, 5)),
    ],
)
def test_rungs_rise_by_eta_and_end_at_full_length(epochs: int, eta: int, first: int, rungs: tuple[int, ...]) -> None:
    assert rungs_of(epochs, eta, first) == rungs


def test_rungs_of_any_length_are_apart_and_complete() -> None:
    for epochs in range(1, 130):
        for eta in range(2, 11):
            for first in (1, 2, 3, 7, epochs):
                rungs = rungs_of(epochs, eta, first)
                assert rungs[0] == min(first, epochs)
                assert rungs[-1] == epochs
                assert all(longer == shorter * eta for shorter, longer in pairwise(rungs[:-1]))
                assert all(2 * shorter <= epochs for shorter in rungs[1:-1])


def test_a_third_of_a_rung_is_promoted_the_best_first() -> None:
    ends = [(1, loss, None) for loss in (0.5, 0.3, 0.4, 0.2, 0.6)]
    assert name(first(due_promotions(history(*ends[:2]), RUNGS, 3))) is None
    assert name(first(due_promotions(history(*ends[:3]), RUNGS, 3))) == "1"
    assert name(first(due_promotions(history(*ends), RUNGS, 3))) == "3"
    six = [*ends, (1, 0.7, None)]
    assert name(first(due_promotions(history(*six, (3, "runs", "3")), RUNGS, 3))) == "1"
    assert name(first(due_promotions(history(*six, (3, "runs", "3"), (3, "runs", "1")), RUNGS, 3))) is None


def test_a_failed_trial_fills_its_rung_and_a_running_one_does_not() -> None:
    two: list[tuple[int, float | str | None, str | None]] = [(1, 0.5, None), (1, 0.3, None)]
    assert first(due_promotions(history(*two, (1, "runs", None)), RUNGS, 3)) is None
    assert name(first(due_promotions(history(*two, (1, None, None)), RUNGS, 3))) == "1"
    assert first(due_promotions(history(*[(1, None, None)] * 9), RUNGS, 3)) is None


def test_the_highest_rung_is_served_first() -> None:
    lower = [(1, loss / 10, None) for loss in range(12)]
    second = [(3, loss, str(number)) for number, loss in enumerate((0.3, 0.2, 0.4))]
    assert name(first(due_promotions(history(*lower, *second), RUNGS, 3))) == "13"
    assert name(first(due_promotions(history(*lower, *second, (9, "runs", "13")), RUNGS, 3))) == "3"


def test_equal_trials_go_on_in_the_order_of_their_start() -> None:
    known = history(*[(1, "runs", None)] * 3)
    for trial in ("2", "1", "0"):
        known.end(trial, 0.5)
    assert name(first(due_promotions(known, RUNGS, 3))) == "0"
    assert [entry.trial for entry in known.finished(1)] == ["0", "1", "2"]


def test_trials_of_other_spaces_are_not_promoted() -> None:
    known = history(*[(1, 0.5, None)] * 2)
    known.add(Entry("9", 1, None))
    known.end("9", 0.1)
    assert first(due_promotions(known, RUNGS, 2)) == known.entries["0"]
    assert [entry.trial for entry in known.all_finished()] == ["9", "0", "1"]


def test_the_leader_is_the_best_of_the_highest_rung_that_can_still_climb() -> None:
    ends: list[tuple[int, float | str | None, str | None]] = [(1, 0.5, None), (1, 0.3, None), (1, 0.1, None)]
    assert name(first(leaders(history(*ends), RUNGS))) == "2"
    assert name(first(leaders(history(*ends, (3, "runs", "2")), RUNGS))) == "1"
    assert name(first(leaders(history(*ends, (3, 0.9, "2")), RUNGS))) == "3"
    assert name(first(leaders(history(*ends, (3, None, "2")), RUNGS))) == "1"
    assert first(leaders(history((9, 0.1, None)), RUNGS)) is None


def test_missing_steps_are_those_of_the_foremost_that_can_still_climb() -> None:
    assert missing_steps(history(), RUNGS) == 3
    assert missing_steps(history((1, "runs", None)), RUNGS) == 2
    assert missing_steps(history((1, None, None)), RUNGS) == 3
    assert missing_steps(history((1, 0.1, None), (3, "runs", "0")), RUNGS) == 1
    assert missing_steps(history((1, 0.1, None), (3, None, "0")), RUNGS) == 3
    assert missing_steps(history((1, 0.1, None), (1, 0.2, None), (3, 0.1, "0"), (9, None, "2")), RUNGS) == 2
    assert missing_steps(history((1, 0.1, None), (3, 0.1, "0"), (9, "runs", "1")), RUNGS) == 0
    assert missing_steps(history((9, 0.1, None)), (9,)) == 0


def test_steps_lead_from_a_rung_to_the_top() -> None:
    assert climbs(RUNGS, 1) == [(1, 3), (3, 9)]
    assert climbs(RUNGS, 9) == []
    assert climbs(RUNGS, 3)[0] == (3, 9)
    assert climbs(RUNGS, 4) == [(4, 9)], "a trial between two rungs climbs on"


def test_promotable_are_those_whom_coming_trials_could_bring_up() -> None:
    ends = [(1, loss / 10, None) for loss in range(6)]
    assert set(promotable(history(*ends), RUNGS, 3, left=0)) == {"0", "1"}
    assert set(promotable(history(*ends), RUNGS, 3, left=math.inf)) == {"0", "1", "2", "3", "4", "5"}
    assert set(promotable(history(*ends), RUNGS, 3, left=12)) == {"0", "1", "2", "3", "4", "5"}
    assert set(promotable(history(*ends), RUNGS, 3, left=3)) == {"0", "1", "2"}
    assert promotable(history(*ends), RUNGS, 3, left=3)["2"] == pytest.approx(2 / 6)
    running: list[tuple[int, float | str | None, str | None]] = [(1, "runs", None)] * 3
    assert set(promotable(history(*ends, *running), RUNGS, 3, left=1)) == {"0", "1", "2"}
    assert set(promotable(history(*ends, (3, "runs", "0")), RUNGS, 3, left=0)) == {"1"}


def test_the_last_trials_of_a_budget_are_promotable_beyond_the_quota() -> None:
    known = history((1, 0.1, None), (1, 0.2, None), (1, 0.3, None), (1, 0.4, None), (3, "runs", "0"))
    assert set(promotable(known, RUNGS, 3, left=1)) == {"1"}
    assert set(promotable(known, RUNGS, 3, left=2)) == {"1", "2"}


def test_the_last_trials_bring_the_leader_to_full_length() -> None:
    ended = Search(4).run(0.5, 0.3, 0.6, 0.2)
    assert [(entry.epochs, entry.parent) for entry in ended] == [(1, None), (1, None), (3, "1"), (9, "2")]


def test_when_the_leader_fails_on_the_way_the_next_one_is_brought_up() -> None:
    search = Search(6)
    ended = search.run(0.5, 0.3, 0.4, None)
    assert (ended[3].epochs, ended[3].parent) == (3, "1")
    assert [(entry.epochs, entry.parent) for entry in search.run(0.6, 0.7)] == [(3, "2"), (9, "4")]
    assert search.start() == "no_room"


def test_when_the_only_one_near_the_top_fails_there_another_climbs_all_the_way() -> None:
    search = Search(7)
    ended = search.run(0.5, 0.3, 0.4, 0.3)
    assert (ended[3].epochs, ended[3].parent) == (3, "1")
    search.run(0.6)
    known = search.history
    known.add(Entry("top", 9, known.entries["3"].configuration, "3"))
    known.end("top", None)
    rest = [(entry.epochs, entry.parent) for entry in search.run(0.5)]
    assert rest == [(3, "2")], "with two trials left and two steps missing nothing else is tried"


def test_when_nobody_can_climb_any_more_new_ones_are_tried() -> None:
    search = Search(5)
    assert [entry.epochs for entry in search.run(None, None, None, None, None)] == [1] * 5
    assert search.start() == "no_room"


def test_a_straggler_holds_no_promotion_back() -> None:
    search = Search(60)
    straggler = search.start()
    ended = search.run(*[float(loss) for loss in range(30, 0, -1)])
    assert isinstance(straggler, Entry)
    assert search.history.entries[straggler.trial].state == "running"
    assert max(entry.epochs for entry in ended) == 9, "the others went to the top without it"


def test_a_worker_waits_for_the_one_that_must_climb() -> None:
    search = Search(4)
    first, second = search.start(), search.start()
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    assert search.start() == "wait"
    search.history.end(second.trial, 0.9)
    assert search.start() == "wait", "the other one may be better"
    search.history.end(first.trial, 0.1)
    third = search.start()
    assert isinstance(third, Entry)
    assert (third.epochs, third.parent) == (3, "0")
    assert search.start() == "wait"


def test_one_rung_is_a_plain_search() -> None:
    search = Search(5, epochs=1)
    assert search.rungs == (1,)
    assert [(entry.epochs, entry.parent) for entry in search.run(0.5, 0.4, None, 0.3, 0.2)] == [(1, None)] * 5
    assert search.start() == "no_room"


def test_in_an_exhausted_space_what_is_left_of_a_budget_is_climbed_with() -> None:
    def two(trial: Suggests) -> Drawn:
        return {"x": trial.suggest_categorical("x", ["a", "b"])}

    search = Search(9, draw=two)
    assert [(entry.epochs, entry.parent) for entry in search.run(0.5, 0.3, 0.2, 0.1, 0.6, 0.7)] == [
        (1, None), (1, None), (3, "1"), (9, "2"), (3, "0"), (9, "4"),
    ]  # fmt: skip
    assert search.start() == "exhausted"


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_run_whose_trials_do_not_fail_ends_with_one_of_full_length(workers: int) -> None:
    for seed in range(60):
        random = np.random.default_rng([workers, seed])
        eta = int(random.integers(2, 6))
        search = Search(1, epochs=int(random.integers(1, 30)), eta=eta, seed=seed)
        search.trials = len(search.rungs) + int(random.integers(0, 25))
        ended = list(search.race(workers, random))
        assert len(ended) == search.trials
        assert search.history.finished(search.rungs[-1])
        _check_parents(search)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_failures_waste_no_trial_and_promote_nobody_twice(workers: int) -> None:
    reached = 0
    for seed in range(60):
        random = np.random.default_rng([workers, seed, 1])
        search = Search(12, seed=seed)
        assert len(list(search.race(workers, random, failing=0.2))) == 12
        _check_parents(search)
        reached += bool(search.history.finished(9))
    assert reached > 30


def _check_parents(search: Search) -> None:
    """Every child stands one rung above a finished parent of the same configuration, which has no other child."""
    entries = search.history.entries
    children = [entry for entry in entries.values() if entry.parent is not None]
    assert max(Counter(entry.parent for entry in children).values(), default=1) == 1
    for child in children:
        parent = entries[str(child.parent)]
        assert parent.state == "finished"
        assert child.epochs == climbs(search.rungs, parent.epochs)[0][1]
        assert child.configuration is parent.configuration


def test_until_the_budget_ends_only_the_best_third_of_a_rung_goes_on() -> None:
    promotions = 0
    for seed in range(40):
        search, random = Search(60, seed=seed), np.random.default_rng(seed)
        running: list[Entry] = []
        while search.trials - len(search.history.entries) >= len(search.rungs):
            ended = {epochs: sum(e.state != "running" for e in search.history.at(epochs)) for epochs in search.rungs}
            best = {e.trial for epochs in RUNGS for e in search.history.finished(epochs)[: ended[epochs] // 3]}
            entry = search.start()
            assert isinstance(entry, Entry)
            assert entry.parent is None or entry.parent in best
            promotions += entry.parent is not None
            running.append(entry)
            if len(running) == 3:
                ends = running.pop(int(random.integers(3)))
                search.history.end(ends.trial, float(random.random()) if random.random() < 0.9 else None)
    assert promotions > 40 * 10

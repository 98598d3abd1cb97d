"""New configurations: reproducible, spread, never twice, allowed, and better where a model knows better."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from books import FINITE, PARAMETERS, cube, make_space

from ichsearch.search.combinations import allowed
from ichsearch.search.drawing import Configuration, Draw, Drawn, Suggests, replayed
from ichsearch.search.history import Entry, History, known
from ichsearch.search.near import Neighbourhood
from ichsearch.search.proposals import FEWEST_RESULTS, Proposal, Proposer, Sampler
from ichsearch.search.space import Space

Loss = Callable[[Drawn], float | None]


def proposer(draw: Draw, names: Iterable[str], history: History, **settings: Any) -> Proposer:
    defaults: dict[str, Any] = {"sampler": "tpe", "seed": 0, "random_share": 1 / 3}
    return Proposer(draw, sorted(names), history, **defaults | settings)


def of_space(space: Space, history: History, **settings: Any) -> Proposer:
    return proposer(
        space.draw,
        space.parameters,
        history,
        allowed=lambda made: space.allows(made.drawn) is None,
        first=space.first_trials,
        grid=space.grid() if space.strategy == "grid" else None,
        combinations=lambda: allowed(space.parameters, space.constraints, space.task, space.parameters),
        **settings,
    )


def run(asked: Proposer, history: History, number: int, loss: Loss = lambda drawn: 0.0) -> list[Proposal]:
    """Proposals, each of which runs and ends before the next; fewer if there are no more."""
    made = []
    for _ in range(number):
        trial = len(history.entries)
        if (proposal := asked.propose(trial)) is None:
            break
        history.add(Entry(str(trial), 1, proposal.configuration, point=proposal.point))
        history.end(str(trial), loss(proposal.configuration.drawn))
        made.append(proposal)
    return made


def searched(number: int, loss: Loss = lambda drawn: 0.0, draw: Draw | None = None, **settings: Any) -> list[Drawn]:
    history = History()
    asked = proposer(draw or cube("x", "y"), ["x", "y"], history, **settings)
    return [proposal.configuration.drawn for proposal in run(asked, history, number, loss)]


def bowl(drawn: Drawn) -> float:
    return float((drawn["x"] - 0.3) ** 2 + (drawn["y"] - 0.7) ** 2)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_the_same_history_and_seed_give_the_same_proposal(sampler: Sampler) -> None:
    once = searched(25, bowl, sampler=sampler)
    assert once == searched(25, bowl, sampler=sampler)
    other = searched(25, bowl, sampler=sampler, seed=1)
    assert not [drawn for drawn in once if drawn in other]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_asking_changes_nothing_and_a_new_proposer_knows_what_the_old_one_did(sampler: Sampler) -> None:
    history = History()
    asked = proposer(cube("x", "y"), "xy", history, sampler=sampler)
    for _ in range(30):
        first = asked.propose(len(history.entries))
        assert asked.propose(len(history.entries)) == first
        assert proposer(cube("x", "y"), "xy", history, sampler=sampler).propose(len(history.entries)) == first
        run(asked, history, 1, bowl)


def test_the_model_waits_for_enough_results_and_then_follows_them() -> None:
    spread = searched(FEWEST_RESULTS, sampler="qmc")
    assert searched(FEWEST_RESULTS, bowl, random_share=0) == spread
    modelled = searched(40, bowl, random_share=0)[FEWEST_RESULTS:]
    assert modelled != searched(40, lambda drawn: -bowl(drawn), random_share=0)[FEWEST_RESULTS:]


def test_no_evenly_spread_point_comes_twice() -> None:
    history = History()
    made = run(proposer(cube("x", "y"), "xy", history), history, 60, bowl)
    points = [proposal.point for proposal in made if proposal.point is not None]
    assert points == sorted(set(points))
    again = proposer(cube("x", "y"), "xy", history, sampler="qmc").propose(60)
    assert again is not None
    assert again.point is not None
    assert again.point > points[-1]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_configurations_is_not_the_models(share: float) -> None:
    history = History()
    made = run(proposer(cube("x", "y"), "xy", history, random_share=share), history, 160, bowl)
    spread = [proposal.point is not None for proposal in made[FEWEST_RESULTS:]]
    assert np.mean(spread) == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_proposals_are_configurations_of_the_space(sampler: Sampler) -> None:
    conditional: dict[str, Any] = PARAMETERS | {
        "augment": {"float": [0, 1], "step": 0.25},
        "augmentations": {"choice": ["flip", "rotation"]},
        "label_smoothing": {
            "float": [0.001, 0.1],
            "log": True,
            "when": [{"if": {"backbone": "test_efficientnet"}, "remove": True}],
        },
        "lr_schedule": {"choice": ["one_cycle", "fine_tune"]},
        "rise": {"float": [0.1, 0.5]},
        "frozen_epochs": {"int": [1, 3]},
        "lr": {"factor": [0.3, 3.0], "when": [{"if": {"backbone": "test_efficientnet"}, "float": [1e-4, 1e-2]}]},
    }
    space, history = make_space(conditional, pretrained="auto"), History()
    made = run(of_space(space, history, sampler=sampler), history, 60, lambda drawn: abs(drawn["augment"] - 0.5))
    assert len(made) == 60
    kinds = set()
    for proposal in made:
        drawn = proposal.configuration.drawn
        assert replayed(space.draw, drawn) == proposal.configuration
        assert ("augmentations" in drawn) == (drawn["augment"] > 0)
        assert ("label_smoothing" in drawn) == (drawn["backbone"] == "test_resnet")
        assert ("rise" in drawn) == (drawn["lr_schedule"] == "one_cycle")
        kinds.add((drawn["backbone"], drawn["batch_size"], drawn["lr_schedule"], drawn["augment"] > 0))
    assert len(kinds) >= 10, "of 12"


def test_configurations_stay_apart_unless_the_model_insists() -> None:
    history, tried, near = History(), Neighbourhood(), []
    for proposal in run(proposer(cube("x", "y"), "xy", history), history, 120, bowl):
        near.append(proposal.point is None and tried.is_near(proposal.configuration))
        assert proposal.point is None or not tried.is_near(proposal.configuration)
        assert not tried.is_near(proposal.configuration, 0.05)
        tried.add(proposal.configuration)
    assert sum(near) < 90


def test_a_continuous_space_has_no_end() -> None:
    history = History()
    run(proposer(cube("x"), "x", history), history, 300, lambda drawn: float(drawn["x"]))
    assert len({known(entry).drawn["x"] for entry in history.entries.values()}) == 300


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 27),
        ({"augment": {"float": [0, 1], "step": 0.02}, "lr": {"factor": 1}}, 153),
        ({"augment": {"choice": [round(index / 40, 3) for index in range(41)]}}, 369),
    ],
)
def test_each_configuration_of_a_finite_space_is_tried_once(
    sampler: Sampler, changes: dict[str, Any], number: int
) -> None:
    space, history = make_space(FINITE | changes), History()
    made = run(of_space(space, history, sampler=sampler), history, number + 1, lambda drawn: drawn["augment"])
    assert len(made) == number
    assert Counter(_key(proposal.configuration) for proposal in made) == Counter(map(_values_key, space.grid()))


def _key(made: Configuration) -> str:
    return _values_key(made.drawn)


def _values_key(drawn: Drawn) -> str:
    return str(sorted((name, str(float(v)) if isinstance(v, int | float) else v) for name, v in drawn.items()))


def test_what_a_constraint_forbids_is_never_proposed() -> None:
    forbidden = [{"backbone": "test_resnet", "batch_size": 16}, {"augment": 0.5}]
    space, history = make_space(FINITE, constraints={"forbidden": forbidden}), History()
    made = run(of_space(space, history), history, 40)
    assert len(made) == 12
    assert all(space.allows(proposal.configuration.drawn) is None for proposal in made)


def test_what_hardly_any_point_meets_is_found_all_the_same() -> None:
    steps = {"float": [0, 1], "step": 0.002}
    forbidden = [{"augment": [index / 500 for index in range(501) if index != 317]}]
    space = make_space(FINITE | {"augment": steps}, constraints={"forbidden": forbidden})
    history = History()
    made = run(of_space(space, history), history, 10)
    assert len({_key(proposal.configuration) for proposal in made}) == 9
    assert [proposal.configuration.drawn["augment"] for proposal in made] == pytest.approx([0.634] * 9)


def test_first_trials_come_first_however_near_they_are() -> None:
    first: list[dict[str, Any]] = [
        {"backbone": "test_resnet", "batch_size": 8, "lr": 1.0, "augment": 0.5},
        {"backbone": "test_resnet", "batch_size": 8, "lr": 1.01, "augment": 0.5},
        {"backbone": "test_resnet", "batch_size": 8, "lr": 1, "augment": 0.5},
        {"batch_size": 16},
        {"lr": 2.5},
    ]
    space, history = make_space(first_trials=first), History()
    asked = of_space(space, history)
    drawn = [proposal.configuration.drawn for proposal in run(asked, history, 30, lambda drawn: drawn["augment"])]
    assert [{name: one[name] for name in wanted} for one, wanted in zip(drawn, [*first[:2], *first[3:]], strict=False)]
    assert [one["lr"] for one in drawn[:2]] == [1.0, 1.01]
    assert (drawn[2]["batch_size"], drawn[2]["backbone"]) == (16, "test_resnet"), "the other one cannot have 16"
    assert drawn[3]["lr"] == 2.5
    assert [one["lr"] for one in drawn].count(1.0) == 1
    assert all(replayed(space.draw, one) for one in drawn)


def test_what_a_first_trial_leaves_open_keeps_to_the_constraints() -> None:
    forbidden = [{"lr": 2, "augment": [0, 0.5]}, {"lr": 2, "backbone": "test_resnet"}]
    space = make_space(FINITE, constraints={"forbidden": forbidden}, first_trials=[{"lr": 2}])
    history = History()
    (made,) = run(of_space(space, history), history, 1)
    assert (made.configuration.drawn["backbone"], made.configuration.drawn["augment"]) == ("test_efficientnet", 1)


def test_a_grid_is_tried_in_its_order_with_every_point_of_long_axes() -> None:
    steps = {"float": [0, 1], "step": 0.05}
    space, history = make_space(FINITE | {"augment": steps}, strategy="grid"), History()
    asked = of_space(space, history)
    made = run(asked, history, 50)
    history.end("7", None)
    made += run(of_space(space, history), history, 1000)
    assert [_key(proposal.configuration) for proposal in made] == list(map(_values_key, space.grid()))
    assert len(made) == 21 * 9


def test_the_model_finds_better_configurations_than_chance() -> None:
    def loss(drawn: Drawn) -> float:
        return float(0.3 * (drawn["kind"] != "b") + (drawn["x"] - 0.31) ** 2 + (drawn["y"] - 0.77) ** 2)

    def draw(trial: Suggests) -> Drawn:
        return {"kind": trial.suggest_categorical("kind", ["a", "b", "c", "d"])} | cube("x", "y")(trial)

    def best(sampler: Sampler, seed: int) -> float:
        history = History()
        asked = proposer(draw, ["kind", "x", "y"], history, sampler=sampler, seed=seed)
        return min(loss(proposal.configuration.drawn) for proposal in run(asked, history, 40, loss))

    pairs = [(best("tpe", seed), best("random", seed)) for seed in range(20)]
    assert sum(tpe < random for tpe, random in pairs) >= 15, "by chance alone with p = 0.02"
    assert np.median([tpe for tpe, _ in pairs]) < 0.5 * np.median([random for _, random in pairs])


def test_a_kind_that_always_fails_gets_less_than_its_share() -> None:
    def draw(trial: Suggests) -> Drawn:
        return {"kind": trial.suggest_categorical("kind", ["a", "b", "c", "d"])} | cube("x", "y")(trial)

    def fails(drawn: Drawn) -> float | None:
        return None if drawn["kind"] == "a" else bowl(drawn)

    shares = []
    for seed in range(8):
        history = History()
        asked = proposer(draw, ["kind", "x", "y"], history, seed=seed)
        kinds = [proposal.configuration.drawn["kind"] for proposal in run(asked, history, 60, fails)]
        shares.append(np.mean([kind == "a" for kind in islice(kinds, 15, None)]))
    assert np.mean(shares) < 0.7 * 0.25, "the third that no model proposes alone has 0.08"


def test_what_still_runs_is_not_proposed_again() -> None:
    history = History()
    asked = proposer(cube("x", "y"), "xy", history, random_share=0)
    run(asked, history, 20, bowl)
    running = []
    for number in range(20, 26):
        proposal = asked.propose(number)
        assert proposal is not None
        history.add(Entry(str(number), 1, proposal.configuration))
        running.append(np.array([*proposal.configuration.drawn.values()]))
    gaps = [np.abs(one - other).max() for index, one in enumerate(running) for other in running[:index]]
    assert min(gaps) > 0.05


def test_the_model_learns_from_the_highest_rung_that_has_enough() -> None:
    def filled(higher: int) -> Drawn:
        history = History()
        asked = proposer(cube("x", "y"), "xy", history, random_share=0)
        run(asked, history, 30, bowl)
        for number in range(higher):
            parent = history.entries[str(number)]
            history.add(Entry(f"1{number:02d}", 3, parent.configuration, parent.trial))
            assert parent.configuration is not None
            history.end(f"1{number:02d}", -bowl(parent.configuration.drawn))
        proposal = asked.propose(200)
        assert proposal is not None
        return proposal.configuration.drawn

    assert filled(0) == filled(FEWEST_RESULTS - 1)
    assert filled(0) != filled(FEWEST_RESULTS)

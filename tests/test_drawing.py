"""Values and their shares, configurations that are drawn, replayed and near one another, and the Parzen estimator."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from books import FINITE, cube, make_space
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from ichsearch.search.drawing import (
    Configuration,
    at_share,
    cells,
    chosen_by,
    drawn_by,
    has_values,
    own_value,
    replayed,
    share_of,
)
from ichsearch.search.near import Neighbourhood
from ichsearch.search.parzen import Failures, Mixture, better_ones
from ichsearch.train.config import TrialConfig

LAST = float(np.nextafter(1.0, 0.0))


def distributions() -> Iterator[BaseDistribution]:
    """Of every kind, with bounds that rounding is hard on."""
    random = np.random.default_rng(0)
    for number in range(1, 8):
        yield CategoricalDistribution([*range(number)])
        yield CategoricalDistribution([f"choice {index}" for index in range(number)])
    for _ in range(60):
        low = float(random.choice([-1.0, 0.0, 0.1, 0.3, 1e-5, random.random()]))
        step = float(random.choice([0.1, 0.05, 0.3, 1e-3, 1 / 3]))
        yield FloatDistribution(low, low + float(random.choice([1e-9, 0.7, 3.0])))
        yield FloatDistribution(low, round(low + step * int(random.integers(1, 40)), 12), step=step)
        yield FloatDistribution(abs(low) + 1e-6, (abs(low) + 1e-6) * float(random.choice([1.1, 3.0, 1e5])), log=True)
        start, stride = int(random.integers(-5, 50)), int(random.integers(1, 9))
        yield IntDistribution(start, start + stride * int(random.integers(1, 30)), step=stride)
        yield IntDistribution(abs(start) + 1, abs(start) + 1 + int(random.integers(1, 1000)), log=True)


@pytest.mark.filterwarnings("ignore:The distribution is specified")  # a bound that its steps miss by rounding
def test_a_share_gives_a_value_of_its_distribution_and_the_value_its_share() -> None:
    random = np.random.default_rng(1)
    for distribution in distributions():
        for share in (0.0, LAST, *random.random(20).tolist()):
            value = at_share(distribution, share)
            assert distribution._contains(distribution.to_internal_repr(value)), (distribution, share, value)
            create_trial(value=0.0, params={"x": value}, distributions={"x": distribution})  # as the journal does
            back = share_of(distribution, value)
            assert 0 <= back <= 1
            again = at_share(distribution, min(back, LAST))
            if cells(distribution):
                assert again == value
                assert abs(back - share) <= 1 / cells(distribution) or getattr(distribution, "log", False)
            else:
                assert again == pytest.approx(value, rel=1e-9, abs=1e-12)
                assert back == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    "distribution",
    [CategoricalDistribution("abc"), IntDistribution(2, 14, step=4), FloatDistribution(0.0, 0.3, step=0.1)],
)
def test_every_value_of_a_finite_distribution_has_the_same_share(distribution: BaseDistribution) -> None:
    number = cells(distribution)
    counts = Counter(at_share(distribution, (index + 0.5) / (10 * number)) for index in range(10 * number))
    assert set(counts.values()) == {10}
    assert len(counts) == number


def test_the_shares_of_a_log_scale_are_those_of_its_logarithm() -> None:
    assert at_share(FloatDistribution(0.01, 100, log=True), 0.5) == pytest.approx(1.0)
    assert share_of(FloatDistribution(0.01, 100, log=True), 10.0) == pytest.approx(0.75)
    drawn = Counter(at_share(IntDistribution(1, 100, log=True), share) for share in np.linspace(0, LAST, 10_000))
    assert drawn[1] / 10_000 == pytest.approx(math.log(3) / math.log(201), abs=0.01)
    assert set(drawn) == set(range(1, 101))


def test_a_value_is_the_distributions_own() -> None:
    choice = CategoricalDistribution([0, 0.5, 1])
    assert repr(own_value(choice, 0.0)) == "0"
    assert own_value(choice, 0.25) is None
    step = FloatDistribution(0.0, 1.0, step=0.1)
    assert own_value(step, 0.3) == at_share(step, 0.35)
    assert own_value(step, 0.35) is None
    assert own_value(FloatDistribution(0.0, 1.0), 1.5) is None
    assert own_value(FloatDistribution(0.0, 1.0), "fast") is None
    assert own_value(IntDistribution(1, 9, step=2), 4) is None


def test_has_values_knows_rounding_and_nothing_else() -> None:
    assert has_values({"a": 0.1 + 0.2, "b": "x"}, {"a": 0.3})
    assert not has_values({"a": 0.3001}, {"a": 0.3})
    assert not has_values({"a": 0.3}, {"c": 0.3})
    assert not has_values({"b": "x"}, {"b": "y"})


def configuration(*values: float) -> Configuration:
    names = [f"x{index}" for index in range(len(values))]
    return drawn_by(cube(*names), chosen_by(dict(zip(names, values, strict=True))))


def test_a_space_replays_what_it_drew() -> None:
    space = make_space(FINITE | {"weight_decay": {"float": [1e-5, 0.1], "log": True}, "rise": {"float": [0.1, 0.5]}})
    random = np.random.default_rng(0)
    for _ in range(50):
        point = dict(zip(space.parameters, random.random(len(space.parameters)).tolist(), strict=True))
        made = drawn_by(space.draw, chosen_by(point))
        again = replayed(space.draw, made.drawn)
        assert again == made
        assert [repr(value) for value in again.drawn.values()] == [repr(value) for value in made.drawn.values()]


def test_a_space_does_not_replay_what_it_could_not_draw() -> None:
    space = make_space()
    drawn = drawn_by(space.draw, chosen_by(dict.fromkeys(space.parameters, 0.2))).drawn
    assert replayed(space.draw, drawn) is not None
    for change in ({"augment": 1.5}, {"backbone": "resnet10t"}, {"size": 64}, {"batch_size": 12}):
        assert replayed(space.draw, drawn | change) is None
    other = drawn | {"backbone": "test_efficientnet", "batch_size": 16}
    assert replayed(space.draw, other) is None, "this backbone has a batch size of 8 alone"
    assert replayed(space.draw, {name: value for name, value in drawn.items() if name != "augment"}) is None


def test_wanted_values_are_taken_where_they_can_be_had() -> None:
    space = make_space()
    point = dict.fromkeys(space.parameters, 0.2)
    first = drawn_by(space.draw, chosen_by(point, {"lr": 1, "batch_size": 16})).drawn
    assert (first["backbone"], first["batch_size"], first["lr"]) == ("test_resnet", 16, 1.0)
    other = drawn_by(space.draw, chosen_by(point, {"backbone": "test_efficientnet", "batch_size": 16})).drawn
    assert other["batch_size"] == 8


def test_near_is_what_is_closer_than_evenly_spread_ones_would_be() -> None:
    tried = Neighbourhood()
    assert not tried.is_near(configuration(0.5, 0.5))
    tried.add(configuration(0.5, 0.5))
    assert tried.is_near(configuration(0.0, 1.0)), "one alone stands for the whole square"
    assert tried.is_near(configuration(0.7, 0.3), share=0.5)
    assert not tried.is_near(configuration(0.8, 0.5), share=0.5)
    for place in (0.1, 0.3, 0.9):
        tried.add(configuration(place, place))
    assert tried.is_near(configuration(0.74, 0.26))
    assert not tried.is_near(configuration(0.76, 0.24))
    assert not tried.has(configuration(0.5, 0.51))
    assert tried.has(configuration(0.5, 0.5))


def test_other_choices_and_few_numbers_are_never_near() -> None:
    space = make_space(FINITE)
    tried = Neighbourhood()
    grid = space.grid()
    for values in grid[:-1]:
        tried.add(drawn_by(space.draw, chosen_by(dict.fromkeys(space.parameters, 0.0), values)))
    last = drawn_by(space.draw, chosen_by(dict.fromkeys(space.parameters, 0.0), grid[-1]))
    assert not tried.is_near(last)
    tried.add(last)
    assert tried.is_near(last)


def test_a_configuration_read_back_from_a_trial_is_known_as_the_same() -> None:
    space, tried = make_space(FINITE), Neighbourhood()
    made = drawn_by(space.draw, chosen_by(dict.fromkeys(space.parameters, 0.0)))
    assert repr(made.drawn["augment"]) == "0"
    tried.add(made)
    config = TrialConfig.model_validate({**made.drawn, "epochs": 1})
    values = {name: getattr(config, name) for name in made.drawn}
    assert repr(values["augment"]) == "0.0"
    again = replayed(space.draw, values)
    assert again is not None
    assert tried.has(again)
    assert tried.is_near(again)


@pytest.mark.parametrize("centres", [[], [0.0], [0.5, 1.0], [0.2, 0.21, 0.22, 0.9, 0.95]])
def test_a_mixture_is_a_density_that_its_draws_follow(centres: list[float]) -> None:
    mixture = Mixture([configuration(centre) for centre in centres])
    edges = np.linspace(0, 1, 2001)
    middles = (edges[:-1] + edges[1:]) / 2
    density = np.exp(mixture.log_densities([configuration(share) for share in middles.tolist()]))
    assert density.mean() == pytest.approx(1.0, abs=1e-3)
    random = np.random.default_rng(0)
    drawn = np.array([mixture.draw(cube("x0"), random).drawn["x0"] for _ in range(4000)])
    found = np.histogram(drawn, bins=10, range=(0, 1))[0] / 4000
    assert found == pytest.approx(density.reshape(10, 200).mean(axis=1) / 10, abs=0.03)


def test_a_mixture_over_choices_is_a_density_too() -> None:
    space = make_space(FINITE)
    random = np.random.default_rng(0)

    def drawn() -> Configuration:
        point = dict(zip(space.parameters, random.random(len(space.parameters)).tolist(), strict=True))
        return drawn_by(space.draw, chosen_by(point))

    mixture, uniform = Mixture([drawn() for _ in range(4)]), [drawn() for _ in range(4000)]
    assert np.exp(mixture.log_densities(uniform)).mean() == pytest.approx(1.0, abs=0.05)


def test_centres_without_a_parameter_say_nothing_about_it() -> None:
    space = make_space(FINITE)
    point = dict.fromkeys(space.parameters, 0.0)
    one = drawn_by(space.draw, chosen_by(point, {"backbone": "test_resnet"}))
    other = drawn_by(space.draw, chosen_by(point, {"backbone": "test_efficientnet"}))
    both = Mixture([one, other]).log_densities([one, other])
    assert both[0] > both[1], "the batch size of test_resnet is known from its own trial alone"
    assert np.isfinite(both).all()


def test_better_ones_are_like_the_best_and_unlike_the_failed() -> None:
    random = np.random.default_rng(0)
    points = sorted(random.random((60, 2)).tolist(), key=lambda point: (point[0] - 0.2) ** 2)
    ranked = [configuration(*point) for point in points]
    draw = cube("x0", "x1")
    found = [next(better_ones(draw, ranked, [], Failures([], ranked), random)).drawn for _ in range(60)]
    assert np.mean([abs(drawn["x0"] - 0.2) < 0.2 for drawn in found]) > 0.8
    failed = [configuration(x, y) for x in (0.15, 0.2, 0.25) for y in np.linspace(0.5, 1, 30).tolist()]
    found = [next(better_ones(draw, ranked, failed, Failures(failed, ranked), random)).drawn for _ in range(60)]
    assert np.mean([drawn["x1"] < 0.5 for drawn in found]) > 0.8


def test_what_failed_is_likely_to_fail_again() -> None:
    ran, failed = [[configuration(x, y) for x in (0.2, 0.8) for y in places] for places in ((0.1, 0.2), (0.8, 0.9))]
    assert Failures([], ran).chances(ran).tolist() == [0.0] * 4
    chances = Failures(failed, ran).chances([configuration(0.5, 0.15), configuration(0.5, 0.85)])
    assert chances[0] < 0.3
    assert 0.7 < chances[1] < 1

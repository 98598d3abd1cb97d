"""The LR finder: its suggestions against slow references, its curve, when it stops, and that it is deterministic."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from slice_sets import make_slices, split_of

from ichsearch.data.cache import SliceSet
from ichsearch.train import lr_finder
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_finder import FALLBACK_LR, consensus, find_lr, read_curve, suggestions, valley

CONFIG = InputConfig(backbone="resnet10t", batch_size=8, size=32, channels="hu")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices() -> SliceSet:
    return make_slices(patients=20, slices=6, size=32)


def random_curves() -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Falling, rising and noisy curves, some with equal values."""
    rng = np.random.default_rng(2)
    for number in range(60):
        length = int(rng.integers(1, 40))
        trend = rng.choice([-0.3, 0.0, 0.3]) * np.arange(length)
        curve = trend + rng.normal(0, 1, length)
        yield np.round(curve) if number % 3 == 0 else curve


def fastai_valley(losses: list[float]) -> int:
    """Index by fastai 2.8.12's rule, pair by pair: the fall starts its length before its end, as if it had no gap.

    Where fastai's index is -1 (the only fall is from the first point to the second) it means the first point here.
    """
    lengths, end, start = [1] * len(losses), 0, 0
    for here in range(1, len(losses)):
        for before in range(here):
            if losses[here] < losses[before] and lengths[here] < lengths[before] + 1:
                lengths[here] = lengths[before] + 1
        if lengths[end] < lengths[here]:
            end, start = here, here - lengths[here]
    third = (end - start) / 3
    return max(0, start + int(third) + int(third / 2))


def test_valley_is_fastais_on_any_curve() -> None:
    for curve in random_curves():
        assert valley(curve) == fastai_valley(curve.tolist())


@pytest.mark.parametrize(("flat", "fall", "rise"), [(0, 85, 0), (20, 45, 20), (50, 30, 5), (7, 31, 40)])
def test_valley_lies_half_way_down_the_fall_and_not_on_the_plateau_before(flat: int, fall: int, rise: int) -> None:
    curve = np.concatenate([np.zeros(flat), -np.arange(1.0, fall + 1), np.arange(rise) - fall + 1.0])
    assert valley(curve) == fastai_valley(curve.tolist())
    assert valley(curve) == pytest.approx(flat + fall / 2, abs=3)


def test_valley_of_a_curve_that_never_falls_is_its_first_point() -> None:
    assert valley(np.arange(10.0)) == 0
    assert valley(np.zeros(10)) == 0


def test_minimum_is_a_tenth_of_the_rate_at_the_lowest_loss() -> None:
    lrs = np.logspace(-6, 0, 61)
    losses = (np.log10(lrs) + 2) ** 2
    assert suggestions(lrs, losses)["minimum"] == pytest.approx(1e-3)


def test_steep_is_the_steepest_over_the_logarithm_of_the_rate() -> None:
    lrs = np.logspace(-6, 0, 61)
    losses = -np.tanh(3 * (np.log10(lrs) + 2.95))  # falls most between 10^-3 and 10^-2.9
    assert suggestions(lrs, losses)["steep"] == pytest.approx(1e-3)
    slopes = [(losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i])) for i in range(60)]
    assert suggestions(lrs, losses)["steep"] == pytest.approx(lrs[slopes.index(min(slopes))])


def test_steep_is_not_drawn_to_tiny_rates() -> None:
    lrs = np.logspace(-7, 0, 71)
    losses = 1 - 0.001 * np.arange(71) - 0.5 / (1 + np.exp(-4 * (np.log10(lrs) + 2)))
    by_rate = lrs[np.argmin(np.diff(losses) / np.diff(lrs))]
    assert by_rate < 2e-7  # what a slope over the plain rate would say
    assert 1e-3 < suggestions(lrs, losses)["steep"] < 1e-1


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_curve_of_few_points_suggests_nothing(points: int) -> None:
    assert suggestions(np.full(points, 0.1), np.full(points, 1.0)) == {}


def test_the_consensus_is_the_median_on_a_log_scale() -> None:
    assert consensus({"a": 1e-4, "b": 2e-3, "c": 1e-1}) == (pytest.approx(2e-3), False)
    lr, guarded = consensus({"a": 1e-4, "b": 1e-2})
    assert (lr, guarded) == (pytest.approx(1e-3), False)


def test_implausible_suggestions_have_no_vote() -> None:
    assert consensus({"a": 6.3e-7, "b": 2e-3, "c": 5.0}) == (pytest.approx(2e-3), False)
    assert consensus({"a": 1e-5, "b": 9e-6}) == (pytest.approx(1e-5), False)
    assert consensus({"a": 1.0, "b": 1.1}) == (pytest.approx(1.0), False)


@pytest.mark.parametrize("found", [{}, {"a": 1e-7}, {"a": 9e-6, "b": 8.0}])
def test_with_no_plausible_suggestion_the_fallback_is_flagged(found: dict[str, float]) -> None:
    assert consensus(found) == (FALLBACK_LR, True)


def test_suggestions_look_past_the_first_tenth_and_the_last_five_points() -> None:
    lrs = np.logspace(-5, 0, 50)
    losses = (np.log10(lrs) + 2) ** 2
    losses[:5] = -100  # of 50 steps, 5 at the start
    losses[-5:] = -100
    curve = read_curve(CONFIG, lrs.tolist(), losses.tolist(), steps=50)
    assert curve.suggestions == suggestions(lrs[5:-5], losses[5:-5])
    assert curve.suggestions["minimum"] == pytest.approx(1e-3, rel=0.15)
    assert (curve.lr, curve.guarded) == consensus(curve.suggestions)


def test_a_curve_that_ends_at_once_falls_back() -> None:
    curve = read_curve(CONFIG, [1e-7, 2e-7], [0.7, 3.0], steps=100)
    assert (curve.suggestions, curve.lr, curve.guarded) == ({}, FALLBACK_LR, True)


def test_the_curve_is_the_same_each_time_whatever_was_drawn_before(slices: SliceSet) -> None:
    config = CONFIG.model_copy(update={"augment": 0.5})
    first = find_lr(config, slices, split_of(slices), device=CPU, steps=24)
    torch.rand(7)
    assert find_lr(config, slices, split_of(slices), device=CPU, steps=24) == first
    assert len(first.lrs) == len(first.losses) >= 16
    assert first.lrs[0] == pytest.approx(1e-7)
    ratios = np.diff(np.log(first.lrs))
    assert ratios == pytest.approx(math.log(1e8) / 23)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[float]]:
    """Replace training: step i costs losses[i], whatever the model; returns the rates that were asked for."""

    def script(losses: list[float]) -> list[float]:
        asked: list[float] = []

        def step(*arguments: object) -> torch.Tensor:
            asked.append(float(str(arguments[-1])))
            return torch.tensor(losses[len(asked) - 1], dtype=torch.float64)

        monkeypatch.setattr(lr_finder, "train_step", step)
        monkeypatch.setattr(lr_finder, "make_model", lambda *_: torch.nn.Linear(1, 1))
        return asked

    return script


def test_losses_are_smoothed_as_fastai_does(slices: SliceSet, scripted: Callable[[list[float]], list[float]]) -> None:
    raw = [1.0, 0.9, 1.3, 0.4, 0.8, 0.7, 0.6, 0.5]
    asked = scripted(raw)
    curve = find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=8)
    weights = [[0.98 ** (n - i) for i in range(n + 1)] for n in range(8)]
    means = [np.average(raw[: n + 1], weights=weights[n]) for n in range(8)]
    assert curve.losses == pytest.approx(means)
    assert curve.lrs == pytest.approx(asked)
    assert asked[-1] == pytest.approx(10)


def test_the_test_stops_when_the_loss_is_four_times_its_best(
    slices: SliceSet, scripted: Callable[[list[float]], list[float]]
) -> None:
    asked = scripted([1.0] * 20 + [30.0] * 80)
    curve = find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=100)
    assert len(asked) == len(curve.losses) == 22
    assert curve.losses[-2] <= 4 * min(curve.losses) < curve.losses[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_curve_ends_before_a_loss_that_is_not_finite(
    slices: SliceSet, scripted: Callable[[list[float]], list[float]], value: float
) -> None:
    asked = scripted([1.0] * 30 + [value] * 70)
    curve = find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=100)
    assert len(asked) == 31
    assert len(curve.losses) == 30
    assert all(map(math.isfinite, curve.losses))


def test_more_steps_than_an_epoch_has_go_on_with_the_next(slices: SliceSet) -> None:
    config = CONFIG.model_copy(update={"batch_size": 64})  # one step an epoch
    assert len(find_lr(config, slices, split_of(slices), device=CPU, steps=3).lrs) == 3

"""The LR finder: fastai's curve and suggestions on the same steps, and a consensus that spikes do not move."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from slice_sets import make_slices, split_of
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ichsearch.data.cache import SliceSet
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_finder import FALLBACK_LR, find_lr, range_test, read_curve
from ichsearch.train.lr_suggestions import consensus, smoothed, suggestions, unsmoothed, valley, vote
from ichsearch.train.steps import Stepper

CONFIG = InputConfig(backbone="resnet10t", batch_size=8, size=32, channels="hu")
CPU = torch.device("cpu")
TIMES = {"seconds", "images_per_s"}
FASTAIS = ("minimum", "steep", "valley", "slide")
Curve = tuple[list[float], list[float]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slices() -> SliceSet:
    return make_slices(patients=20, slices=6, size=32)


@pytest.fixture(scope="module")
def fastai() -> Iterator[ModuleType]:
    """Fastai, whose warnings are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fastai")
        import fastai.vision.all as everything  # noqa: PLC0415

        yield everything


def as_step(losses: list[float]) -> Callable[[float], float]:
    """A training step that costs what the list says, whatever the rate."""
    following = iter(losses)
    return lambda _: next(following)


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 6),
    )


def timm_net() -> nn.Module:
    net: nn.Module = timm.create_model("test_resnet", in_chans=1, num_classes=6)
    return net


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (80, 1, 32, 32) whose brightness tells their labels (80, 6)."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(80, 6, generator=generator) < 0.4).float()
    return torch.randn(80, 1, 32, 32, generator=generator) + labels.sum(dim=1)[:, None, None, None], labels


def our_test(model: nn.Module, steps: int) -> Curve:
    images, labels = make_data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, eps=1e-5)
    index = 0

    def step(lr: float) -> float:
        nonlocal index
        batch = slice(16 * (index % 5), 16 * (index % 5) + 16)
        index += 1
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        return loss.item()

    return range_test(step, steps)


def fastais_test(fastai: ModuleType, model: nn.Module, steps: int, folder: Path) -> tuple[Curve, dict[str, float]]:
    data = fastai.DataLoader(list(zip(*make_data(), strict=True)), bs=16, shuffle=False)
    optimizer = partial(fastai.OptimWrapper, opt=torch.optim.AdamW, weight_decay=0.01, eps=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = fastai.Learner(
            fastai.DataLoaders(data, data),
            model,
            loss_func=binary_cross_entropy_with_logits,
            opt_func=optimizer,
            path=folder,
            cbs=fastai.CudaCallback() if torch.cuda.is_available() else None,
        )
        functions = [getattr(fastai, name) for name in FASTAIS]
        with learner.no_bar():
            found = learner.lr_find(num_it=steps, suggest_funcs=functions, show_plot=False)
    recorded = learner.recorder
    return (recorded.lrs, [float(loss) for loss in recorded.losses]), found._asdict()


@pytest.mark.parametrize(("make", "steps"), [(small_net, 100), (timm_net, 100), (timm_net, 60)])
def test_curve_and_suggestions_are_fastais(
    fastai: ModuleType, tmp_path: Path, make: Callable[[], nn.Module], steps: int
) -> None:
    torch.manual_seed(1)
    model = make()
    ours = our_test(deepcopy(model).train(), steps)
    theirs, found = fastais_test(fastai, model, steps, tmp_path)
    assert len(ours[0]) == len(theirs[0]) == len(ours[1])
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    assert suggestions(*ours, steps) == pytest.approx(found, rel=1e-6)


def random_curves() -> Iterator[tuple[list[float], int]]:
    """Losses of falling, rising, noisy and stepped curves, some that stop early, some with equal values."""
    rng = np.random.default_rng(2)
    for number in range(200):
        steps = int(rng.choice([40, 60, 100]))
        curve = rng.choice([-0.3, 0.0, 0.3]) * np.arange(steps) + rng.normal(0, 1, steps) + 20
        yield (
            (np.round(curve) if number % 3 == 0 else curve)[: rng.integers(steps // 10 + 21, steps + 1)].tolist(),
            steps,
        )


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # of fastai's `slide`
def test_suggestions_are_fastais_on_any_curve(fastai: ModuleType) -> None:
    for losses, steps in random_curves():
        lrs = [1e-7 * 1e8 ** (i / steps) for i in range(len(losses))]
        part = torch.tensor(lrs[steps // 10 : -5]), torch.tensor(losses[steps // 10 : -5])
        expected = {name: getattr(fastai, name)(*part, steps)[0] for name in FASTAIS}
        assert suggestions(lrs, losses, steps) == pytest.approx(expected, rel=1e-6)


def test_smoothing_and_stop_are_fastais(fastai: ModuleType) -> None:
    rng = np.random.default_rng(0)
    stops = set()
    for _ in range(20):
        raw = (rng.uniform(0.3, 1, 50) * np.where(np.arange(50) > rng.integers(20, 60), 40, 1)).tolist()
        smooth, expected, best = fastai.AvgSmoothLoss(), [], math.inf
        for loss in raw:
            smooth.accumulate(type("Learner", (), {"loss": torch.tensor(loss)}))
            expected.append(float(smooth.value))
            best = min(best, expected[-1])
            if expected[-1] > 4 * best:
                break
        assert range_test(as_step(raw), 50)[1] == expected
        stops.add(len(expected))
    assert len(stops) > 5


def test_rates_rise_to_one_step_below_the_last() -> None:
    lrs, _ = range_test(as_step([1.0] * 20), 20, start_lr=1e-5, end_lr=1e-1)
    assert lrs == pytest.approx([1e-5 * 10 ** (4 * i / 20) for i in range(20)])


def test_a_loss_that_is_no_number_ends_the_test_at_once_and_is_read_as_by_fastai() -> None:
    raw = [1 - 0.01 * i for i in range(40)] + [math.nan] * 60
    lrs, losses = range_test(as_step(raw), 100)
    assert len(lrs) == len(losses) == 41
    whole = [1e-7 * 1e8 ** (i / 100) for i in range(100)], losses + [math.nan] * 59
    assert suggestions(lrs, losses, 100) == suggestions(*whole, 100)
    assert suggestions(lrs, losses, 100)["minimum"] == pytest.approx(lrs[39] / 10)  # not cut by another five
    curve = read_curve(CONFIG, lrs, losses, 100)
    assert len(curve.lrs) == len(curve.losses) == 40


def test_an_infinite_loss_ends_the_test_too() -> None:
    curve = read_curve(CONFIG, *range_test(as_step([1.0] * 30 + [math.inf] * 70), 100), 100)
    assert len(curve.losses) == 30
    assert curve.guarded


@pytest.mark.parametrize("points", [0, 1, 6, 11])
def test_a_short_curve_suggests_nothing(points: int) -> None:
    lrs = [1e-7 * 1e8 ** (i / 60) for i in range(points)]
    assert suggestions(lrs, [1.0] * points, 60) == {}
    assert consensus(lrs, [1.0 - 0.1 * i for i in range(points)], 60) is None


@pytest.mark.parametrize(("flat", "fall", "rise"), [(0, 85, 0), (20, 45, 20), (50, 30, 5), (7, 31, 40)])
def test_valley_lies_half_way_down_the_fall_and_not_on_the_plateau_before(flat: int, fall: int, rise: int) -> None:
    curve = np.concatenate([np.zeros(flat), -np.arange(1.0, fall + 1), np.arange(rise) - fall + 1.0])
    assert valley(curve.astype(np.float32)) == pytest.approx(flat + fall / 2, abs=3)


PAPERS = {  # minimum/10 and steep, as its notebooks logged them
    "resnet18": (5.8e-3, 6.3e-7),
    "resnet50": (1.0e-2, 3.3e-2),
    "resnet101": (1.2e-2, 2.8e-2),
    "densenet121": (1.4e-2, 5.8e-2),
    "alexnet": (3.3e-3, 3.3e-6),
}


@pytest.mark.parametrize("backbone", PAPERS)
@pytest.mark.parametrize("valley_lr", [None, 1e-3, 6e-3])
def test_the_papers_suggestions_end_in_a_usable_rate(backbone: str, valley_lr: float | None) -> None:
    minimum, steep = PAPERS[backbone]
    found = {"minimum": minimum, "steep": steep} | ({} if valley_lr is None else {"valley": valley_lr})
    lr = vote(found)
    assert lr is not None
    assert 1e-3 < lr < 4e-2
    if steep < 1e-5:
        assert lr == vote({name: value for name, value in found.items() if name != "steep"})


def test_the_vote_is_the_median_on_a_log_scale() -> None:
    assert vote({"minimum": 1e-4, "steep": 2e-3, "valley": 1e-1}) == pytest.approx(2e-3)
    assert vote({"minimum": 1e-4, "valley": 1e-2, "slide": 0.9}) == pytest.approx(1e-3)
    assert vote({"minimum": 1e-4, "steep": 1e-3, "valley": 0.5}, rises_at=0.1) == pytest.approx(10**-3.5)
    assert vote({"minimum": 1e-5, "steep": 9e-6, "valley": 1.1}) == pytest.approx(1e-5)
    assert vote({"minimum": 9e-6, "steep": 8.0}) is None
    assert vote({}) is None


def make_losses(rng: np.random.Generator, steps: int) -> list[float]:
    """Raw losses of a test: a plateau, a fall at some rate and a steep rise some decades later, under noise."""
    decade = np.linspace(-7, 1, steps, endpoint=False)
    knee, width, base = rng.uniform(-4, -2), rng.uniform(0.15, 0.4), rng.uniform(0.5, 1)
    fall = base * rng.uniform(0.3, 0.8) / (1 + np.exp(-(decade - knee) / width))
    rise = base * np.exp(np.clip(4 * (decade - knee - rng.uniform(1.7, 2.7)), -50, 8))
    losses: list[float] = ((base - fall + rise) * (1 + rng.normal(0, rng.uniform(0, 0.02), steps))).tolist()
    return losses


def with_spike(rng: np.random.Generator, raw: list[float]) -> list[float]:
    """The same losses, one of them 1.5 to 200 times as high, or a fraction of what it was."""
    place, factor = int(rng.integers(len(raw))), math.exp(rng.uniform(math.log(1.5), math.log(200)))
    factor = rng.uniform(0, 0.3) if rng.random() < 0.2 else factor
    return [loss * factor if index == place else loss for index, loss in enumerate(raw)]


def moves(steps: int, read: Callable[[list[float], list[float], int], float | None]) -> list[float]:
    """By which factor random spikes move the rate that `read` finds in random curves, where it still finds one."""
    factors = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        raw = make_losses(rng, steps)
        calm = read(*range_test(as_step(raw), steps), steps)
        assert calm is not None, "a calm curve always says something"
        for _ in range(8):
            spiked = read(*range_test(as_step(with_spike(rng, raw)), steps), steps)
            factors += [] if spiked is None else [max(spiked / calm, calm / spiked)]
    return factors


@pytest.mark.parametrize("steps", [60, 100])
def test_one_wild_loss_moves_the_consensus_by_less_than_three(steps: int) -> None:
    factors = moves(steps, consensus)
    assert len(factors) > 0.75 * 480, "few spikes leave nothing to say"
    assert max(factors) < 3


def test_one_wild_loss_moves_fastais_suggestions_by_powers_of_ten() -> None:
    factors = moves(60, lambda *curve: suggestions(*curve).get("steep"))
    assert np.mean(np.array(factors) > 3) > 0.2
    assert max(factors) > 1e3


def test_a_spike_in_the_smoothed_curve_is_no_step_down() -> None:
    lrs, losses = range_test(as_step(make_losses(np.random.default_rng(4), 100)), 100)
    calm = consensus(lrs, losses, 100)
    losses[25] *= 3  # the steepest fall is now from here to the next point
    assert suggestions(lrs, losses, 100)["steep"] == pytest.approx(lrs[25])
    assert calm is not None
    assert consensus(lrs, losses, 100) == pytest.approx(calm, rel=0.5)


def test_a_wild_loss_that_stops_the_test_is_told_from_a_divergence() -> None:
    raw = make_losses(np.random.default_rng(5), 60)
    raw[41] = 500.0  # at 0.03, just before the loss would rise
    curve = read_curve(CONFIG, *range_test(as_step(raw), 60), 60)
    assert len(curve.lrs) == 42
    assert (curve.lr, curve.guarded) == (FALLBACK_LR, True)
    raw[39:41] = [9.0, 40.0]
    assert not read_curve(CONFIG, *range_test(as_step(raw), 60), 60).guarded


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.003])
def test_a_flat_curve_suggests_nothing(noise: float) -> None:
    raw = (0.7 + np.random.default_rng(0).normal(0, noise, 60)).tolist()
    curve = read_curve(CONFIG, *range_test(as_step(raw), 60), 60)
    assert (len(curve.lrs), curve.lr, curve.guarded) == (60, FALLBACK_LR, True)


def test_noise_is_seldom_taken_for_a_fall() -> None:
    rng = np.random.default_rng(0)
    curves = [range_test(as_step((0.7 + rng.normal(0, 0.1, 60)).tolist()), 60) for _ in range(100)]
    assert sum(consensus(*curve, 60) is not None for curve in curves) <= 5


def test_a_rate_at_which_the_loss_rises_is_not_taken() -> None:
    for seed in range(20):
        lrs, losses = range_test(as_step(make_losses(np.random.default_rng(seed), 100)), 100)
        lr = consensus(lrs, losses, 100)
        assert lr is not None
        assert lr <= lrs[int(np.argmin(losses))]
    rising = range_test(as_step(np.linspace(0.7, 1.5, 60).tolist()), 60)
    assert consensus(*rising, 60) is None


def test_unsmoothed_is_the_inverse_of_smoothed() -> None:
    raw = np.random.default_rng(0).uniform(0, 2, 60)
    np.testing.assert_allclose(unsmoothed(smoothed(raw)), raw, rtol=1e-9)
    np.testing.assert_allclose(smoothed(raw), range_test(as_step(raw.tolist()), 60)[1], rtol=1e-6)


def test_a_curve_without_a_number_falls_back() -> None:
    curve = read_curve(CONFIG, *range_test(as_step([math.nan]), 100), 100)
    assert (curve.lrs, curve.suggestions, curve.lr, curve.guarded) == ([], {}, FALLBACK_LR, True)


def test_the_curve_is_the_same_each_time_whatever_was_drawn_before(slices: SliceSet) -> None:
    config = CONFIG.model_copy(update={"augment": 0.5})
    first = find_lr(config, slices, split_of(slices), device=CPU, steps=24)
    torch.rand(7)
    second = find_lr(config, slices, split_of(slices), device=CPU, steps=24)
    assert second.model_dump(exclude=TIMES) == first.model_dump(exclude=TIMES)
    assert len(first.lrs) == len(first.losses) >= 16
    assert first.lrs[0] == pytest.approx(1e-7)
    assert np.diff(np.log(first.lrs)) == pytest.approx(math.log(1e8) / 24)


def test_momentum_is_adams_own_throughout(slices: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = Stepper.step

    def noted(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        seen.extend(group["betas"][0] for group in self._optimizer.param_groups)
        return real(self, *batch)

    monkeypatch.setattr(Stepper, "step", noted)
    find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=3)
    assert set(seen) == {0.9}


def test_more_steps_than_an_epoch_has_go_on_with_the_next(slices: SliceSet) -> None:
    config = CONFIG.model_copy(update={"batch_size": 48})  # one step an epoch
    assert len(find_lr(config, slices, split_of(slices), device=CPU, steps=3).lrs) == 3


def test_the_first_step_does_not_count_as_speed(slices: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = Stepper.step, [0]

    def slow_at_first(self: Stepper, *batch: torch.Tensor) -> torch.Tensor:
        steps[0] += 1
        time.sleep(0.5 if steps[0] == 1 else 0.01)
        return real(self, *batch)

    monkeypatch.setattr(Stepper, "step", slow_at_first)
    curve = find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=5)
    assert curve.images_per_s is not None
    assert 4 * 8 / (curve.seconds - 0.5) < curve.images_per_s < 8 / 0.01


def test_one_step_has_no_speed(slices: SliceSet) -> None:
    assert find_lr(CONFIG, slices, split_of(slices), device=CPU, steps=1).images_per_s is None

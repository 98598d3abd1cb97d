"""Schedules against torch's one-cycle and fastai's fine_tune."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch.optim.lr_scheduler import OneCycleLR

from ichsearch.train.config import TrialConfig
from ichsearch.train.schedule import Shape, one_cycle, phase_of, phases, step_at

FASTAI = Shape(rise=0.25, start_divisor=25.0, end_divisor=1e5)
CONFIG = TrialConfig(backbone="resnet10t", batch_size=8, size=32, epochs=4, lr=0.03)


def torch_schedule(total: int, shape: Shape) -> list[tuple[float, float]]:
    """Share of the highest rate, and momentum, of every step, from torch."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    schedule = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total,
        pct_start=shape.rise,
        div_factor=shape.start_divisor,
        final_div_factor=shape.end_divisor / shape.start_divisor,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    steps = []
    for step in range(total):
        steps.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        if step + 1 < total:
            schedule.step()
    return steps


@pytest.mark.parametrize("shape", [FASTAI, Shape(0.3, 5.0, 1e5), Shape(0.9, 25.0, 1e3)])
@pytest.mark.parametrize("total", [1, 2, 3, 5, 6, 7, 8, 12, 40, 99, 640])  # at 4, torch divides by zero
def test_every_step_equals_torch(total: int, shape: Shape) -> None:
    ours = [one_cycle(step, total, shape) for step in range(total)]
    theirs = torch_schedule(total, shape)
    assert [share for share, _ in ours] == pytest.approx([share for share, _ in theirs], rel=1e-9)
    assert [momentum for _, momentum in ours] == pytest.approx([momentum for _, momentum in theirs], rel=1e-9)


@pytest.mark.parametrize("total", range(1, 30))
def test_every_total_gives_rates_that_rise_to_the_peak_and_fall_to_the_end(total: int) -> None:
    steps = [one_cycle(step, total, FASTAI) for step in range(total)]
    rates = [rate for rate, _ in steps]
    top = rates.index(max(rates))
    assert all(1e-5 * (1 - 1e-9) <= rate <= 1 + 1e-9 for rate in rates)
    assert all(later > earlier for earlier, later in itertools.pairwise(rates[: top + 1]))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(1e-5)
    assert all(0.85 - 1e-9 <= momentum <= 0.95 + 1e-9 for _, momentum in steps)


def test_a_cycle_starts_at_a_twenty_fifth_and_peaks_at_a_quarter() -> None:
    assert one_cycle(0, 100, FASTAI) == pytest.approx((1 / 25, 0.95))
    assert one_cycle(24, 100, FASTAI) == pytest.approx((1.0, 0.85))
    assert math.isclose(one_cycle(12, 100, FASTAI)[0], (1 / 25 + 1) / 2)  # half-way up


def test_one_cycle_is_one_phase_with_one_rate_for_all_layers() -> None:
    plan = phases(CONFIG)
    assert len(plan) == 1
    rates = [step_at(plan, epoch, step, 5) for epoch in range(4) for step in range(5)]
    expected = [one_cycle(step, 20, FASTAI) for step in range(20)]
    assert [step.lrs for step in rates] == [(0.03 * share,) * 3 for share, _ in expected]
    assert [step.momentum for step in rates] == [momentum for _, momentum in expected]


def test_the_shape_of_a_cycle_is_a_choice() -> None:
    plan = phases(CONFIG.model_copy(update={"rise": 0.5, "start_divisor": 10.0, "end_divisor": 100.0}))
    rates = [step_at(plan, 0, step, 20).lrs[0] for step in range(20)]
    assert rates[0] == pytest.approx(0.003)
    assert phase_of(plan, 3) == (plan[0], 3)


def test_fine_tune_is_fastais() -> None:
    """Its rates are read off fastai's own learner: the head alone, then geometric over the groups at half the rate."""
    vision = pytest.importorskip("fastai.vision.all", reason="needs the extra bench")
    seen: list[tuple[list[float], float, bool]] = []

    class Watch(vision.Callback):  # type: ignore[misc, name-defined]
        order = 70  # after the schedule has set the rates

        def before_batch(self) -> None:
            frozen = not next(iter(self.learn.model[0].parameters())).requires_grad
            seen.append(([hyper["lr"] for hyper in self.opt.hypers], self.opt.hypers[0]["mom"], frozen))

    model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    points = [(torch.zeros(1), torch.zeros(1))] * 100
    data = vision.DataLoaders(vision.DataLoader(points, bs=1), vision.DataLoader(points[:1], bs=1))
    learner = vision.Learner(
        data, model, loss_func=torch.nn.MSELoss(), splitter=lambda net: [list(part.parameters()) for part in net]
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(3, base_lr=0.03, freeze_epochs=1, cbs=[Watch()])

    plan = phases(CONFIG.model_copy(update={"lr_schedule": "fine_tune"}))
    seen = [item for item in seen if len(item[0]) == 3]
    training = [item for number, item in enumerate(seen) if number % 101 != 100]  # the last is a validation batch
    assert len(training) == 400
    for number, (lrs, momentum, frozen) in enumerate(training):
        ours = step_at(plan, number // 100, number % 100, 100)
        assert phase_of(plan, number // 100)[0].body_frozen is frozen
        if number in (98, 99):  # Torch's and fastai's cycles are a step apart: these fall from the peak to the end.
            continue
        assert ours.momentum == pytest.approx(momentum, abs=0.006)
        assert [lr / max(ours.lrs) for lr in ours.lrs] == pytest.approx([lr / max(lrs) for lr in lrs], rel=1e-6)
        assert max(ours.lrs) == pytest.approx(max(lrs), rel=0.06, abs=2e-4)


def test_fine_tune_needs_an_epoch_that_is_not_frozen() -> None:
    with pytest.raises(ValidationError, match="more epochs than frozen ones, but has 4 and 4"):
        TrialConfig.model_validate(CONFIG.model_dump() | {"lr_schedule": "fine_tune", "frozen_epochs": 4})

"""The one-cycle schedule against torch's."""

import itertools
import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from ichsearch.train.one_cycle import one_cycle

LR_MAX = 0.03


def torch_schedule(total: int) -> list[tuple[float, float]]:
    """Learning rate and momentum of every step, from torch."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    schedule = OneCycleLR(
        optimizer,
        max_lr=LR_MAX,
        total_steps=total,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=4000,
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


@pytest.mark.parametrize("total", [1, 2, 3, 5, 6, 7, 8, 12, 40, 99, 100, 640])  # at 4, torch divides by zero
def test_every_step_equals_torch(total: int) -> None:
    ours = [one_cycle(step, total, LR_MAX) for step in range(total)]
    theirs = torch_schedule(total)
    assert [step.lr for step in ours] == pytest.approx([lr for lr, _ in theirs], rel=1e-9)
    assert [step.momentum for step in ours] == pytest.approx([momentum for _, momentum in theirs], rel=1e-9)


@pytest.mark.parametrize("total", range(1, 30))
def test_every_total_gives_rates_that_rise_to_the_peak_and_fall_to_the_end(total: int) -> None:
    steps = [one_cycle(step, total, LR_MAX) for step in range(total)]
    rates = [step.lr for step in steps]
    top = rates.index(max(rates))
    assert all(LR_MAX / 1e5 * (1 - 1e-9) <= rate <= LR_MAX * (1 + 1e-9) for rate in rates)
    assert all(later > earlier for earlier, later in itertools.pairwise(rates[: top + 1]))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(LR_MAX / 1e5)
    assert all(0.85 - 1e-9 <= step.momentum <= 0.95 + 1e-9 for step in steps)


@pytest.mark.parametrize("total", [4, 8, 100, 640])
def test_the_peak_is_the_highest_rate_at_a_quarter_with_the_lowest_momentum(total: int) -> None:
    lr, momentum = one_cycle(total // 4 - 1, total, LR_MAX)
    assert lr == pytest.approx(LR_MAX)
    assert momentum == pytest.approx(0.85)


def test_the_cycle_starts_at_a_twenty_fifth() -> None:
    lr, momentum = one_cycle(0, 100, LR_MAX)
    assert lr == pytest.approx(LR_MAX / 25)
    assert momentum == pytest.approx(0.95)
    assert math.isclose(one_cycle(12, 100, LR_MAX).lr, (LR_MAX / 25 + LR_MAX) / 2)  # half-way up

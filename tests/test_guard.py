"""The guard of the loss: it ends what runs away, and nothing else."""

import math

import pytest
import torch

from ichsearch.train.config import TrialFailedError
from ichsearch.train.guard import DIVERGED_STEPS, STEPS_BETWEEN_LOOKS, LossGuard


def feed(guard: LossGuard, *losses: float) -> int:
    """How many losses were taken before the guard ended it, or all."""
    for number, loss in enumerate(losses, start=1):
        try:
            guard.watch(torch.tensor(loss))
        except TrialFailedError:
            return number
    return len(losses)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_a_trial_within_a_few_steps(bad: float) -> None:
    assert feed(LossGuard(), *[0.7] * 20, *[bad] * 20) <= 20 + STEPS_BETWEEN_LOOKS
    guard = LossGuard()
    guard.watch(torch.tensor(bad))
    with pytest.raises(TrialFailedError, match="diverged: the loss is not finite") as caught:
        guard.look()
    assert caught.value.reason == "diverged"


def test_a_loss_above_ten_times_its_start_for_fifty_steps_has_diverged() -> None:
    assert (
        10 + DIVERGED_STEPS <= feed(LossGuard(), *[0.7] * 10, *[7.1] * 100) <= 10 + DIVERGED_STEPS + STEPS_BETWEEN_LOOKS
    )


@pytest.mark.parametrize("losses", [[0.7, *[6.9] * 200], [0.7, *([9.0] * 49 + [0.7]) * 5], [0.7] * 200])
def test_a_loss_that_only_visits_the_heights_goes_on(losses: list[float]) -> None:
    guard = LossGuard()
    assert feed(guard, *losses) == len(losses)
    guard.look()


def test_a_child_may_start_so_low_that_ten_times_its_start_says_nothing() -> None:
    assert feed(LossGuard(), 0.01, *[6.9] * 200) == 201
    assert feed(LossGuard(), 0.01, *[7.0] * 200) < 201


def test_a_guard_goes_on_from_its_state() -> None:
    first, second = LossGuard(), LossGuard()
    feed(first, 0.7, *[8.0] * 39)
    first.look()
    second.restore(first.state())
    assert feed(second, *[8.0] * 40) == 16

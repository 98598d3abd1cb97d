"""Learning rates and momentum as a function of the step: nothing to save, nothing to restore.

In: a `TrialConfig` and steps an epoch. Out: phases, and what each step uses. Source: Smith and Topin 2018 in fastai's
form (`fit_one_cycle`, `fine_tune`): cosine from lr_max/25 up to lr_max over the first quarter, cosine down to
lr_max/1e5; momentum mirrored, .95 → .85 → .95.
"""

import math
from typing import Final, NamedTuple

from ichsearch.train.config import TrialConfig

HIGH_MOMENTUM: Final = 0.95
LOW_MOMENTUM: Final = 0.85
GROUPS: Final = 3
"""Early body, late body, head: see `model.groups.layer_groups`."""
FROZEN_BODY_DIVISOR: Final = 10.0
"""The norms of a frozen body train at a tenth of the head's rate: fastai's `slice(lr)`."""


class Shape(NamedTuple):
    """Of a cycle: the share of steps in which the rate rises, and lr_max over the first and over the last rate."""

    rise: float
    start_divisor: float
    end_divisor: float


FROZEN: Final = Shape(rise=0.99, start_divisor=25.0, end_divisor=1e5)
UNFROZEN: Final = Shape(rise=0.3, start_divisor=5.0, end_divisor=1e5)
"""The two cycles of fastai's `fine_tune`."""


class Step(NamedTuple):
    """What an optimizer uses at one step: the learning rate of each layer group, and momentum."""

    lrs: tuple[float, ...]
    momentum: float


class Phase(NamedTuple):
    """One cycle of some epochs."""

    epochs: int
    lrs_max: tuple[float, ...]
    shape: Shape
    body_frozen: bool = False


def phases(config: TrialConfig) -> list[Phase]:
    """One cycle for all layers; or fastai's two: the head alone, then all at half the rate, early layers slower."""
    if config.lr_schedule == "one_cycle":
        shape = Shape(config.rise, config.start_divisor, config.end_divisor)
        return [Phase(config.epochs, (config.lr,) * GROUPS, shape)]
    body = config.lr / FROZEN_BODY_DIVISOR
    spread = [config.lr_spread ** (group / (GROUPS - 1) - 1) for group in range(GROUPS)]  # geometric, 1 for the head
    return [
        Phase(config.frozen_epochs, (body, body, config.lr), FROZEN, body_frozen=True),
        Phase(config.epochs - config.frozen_epochs, tuple(config.lr / 2 * share for share in spread), UNFROZEN),
    ]


def phase_of(plan: list[Phase], epoch: int) -> tuple[Phase, int]:
    """The phase of an epoch, both counted from 0, and how many epochs of it came before."""
    for phase in plan:
        if epoch < phase.epochs:
            return phase, epoch
        epoch -= phase.epochs
    raise AssertionError("an epoch after the last phase")


def step_at(plan: list[Phase], epoch: int, step: int, steps: int) -> Step:
    """What step `step` of `steps` in an epoch uses."""
    phase, before = phase_of(plan, epoch)
    share, momentum = one_cycle(before * steps + step, phase.epochs * steps, phase.shape)
    return Step(tuple(lr * share for lr in phase.lrs_max), momentum)


def one_cycle(step: int, total_steps: int, shape: Shape) -> tuple[float, float]:
    """Share of lr_max, and momentum, of step 0 … total_steps - 1; equal to torch's `OneCycleLR`."""
    peak = shape.rise * total_steps - 1
    start, end = 1 / shape.start_divisor, 1 / shape.end_divisor
    if step < peak:
        share = step / peak
        return _cosine(start, 1.0, share), _cosine(HIGH_MOMENTUM, LOW_MOMENTUM, share)
    share = (step - peak) / (total_steps - 1 - peak)
    return _cosine(1.0, end, share), _cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

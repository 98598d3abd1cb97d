"""The one-cycle schedule as a function of the step: nothing to save, nothing to restore.

Source: Smith and Topin 2018 in fastai's form (`fit_one_cycle`): cosine from lr_max/25 up to lr_max over the first
quarter, cosine down to lr_max/1e5; momentum mirrored, .95 → .85 → .95.
"""

import math
from typing import Final, NamedTuple

RISE: Final = 0.25
START_DIVISOR: Final = 25.0
END_DIVISOR: Final = 1e5
HIGH_MOMENTUM: Final = 0.95
LOW_MOMENTUM: Final = 0.85


class Step(NamedTuple):
    """What an optimizer uses at one step."""

    lr: float
    momentum: float


def one_cycle(step: int, total_steps: int, lr_max: float) -> Step:
    """Learning rate and momentum of step 0 ... total_steps - 1; equal to torch's `OneCycleLR` with fastai's shape."""
    peak = RISE * total_steps - 1
    if step < peak:
        share = step / peak
        return Step(_cosine(lr_max / START_DIVISOR, lr_max, share), _cosine(HIGH_MOMENTUM, LOW_MOMENTUM, share))
    share = (step - peak) / (total_steps - 1 - peak)
    return Step(_cosine(lr_max, lr_max / END_DIVISOR, share), _cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

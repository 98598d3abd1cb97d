"""Scales of a chart: where a value lies between its ends, and which ticks say so.

In: values. Out: a `Scale`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

LOG_RATIO: Final = 30
"""Positive values that differ by more are easier told apart on a log scale."""


@dataclass(frozen=True)
class Scale:
    """From a value to its share of an axis, 0 at the low end and 1 at the high one; what lies beyond is held there."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, in [0, 1]."""
        low, high, value = (math.log10(max(one, 1e-300)) if self.log else one for one in (self.low, self.high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def linear(values: Iterable[float], label: str = "", *, low: float | None = None, high: float | None = None) -> Scale:
    """A linear scale with round ends about `values`, or with the ends that are given."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    least, most = min(known) if low is None else low, max(known) if high is None else high
    if most <= least:
        pad = abs(least) * 0.1 or 0.5
        least, most = least - pad * (low is None), most + pad
    step = _round_step((most - least) / 4)
    start = math.floor(least / step + 1e-9) * step if low is None else least
    end = math.ceil(most / step - 1e-9) * step if high is None else most
    first = math.ceil(start / step - 1e-9)
    places = [number * step for number in range(first, math.floor(end / step + 1e-9) + 1)]
    return Scale(start, end, [(place, number_text(place, step)) for place in places], label)


def logarithmic(values: Iterable[float], label: str = "") -> Scale:
    """A log scale about the positive ones of `values`; ticks at powers of ten, between them too where there are few."""
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0, 10.0]
    least, most = math.log10(min(known)), math.log10(max(known))
    pad = max(0.05 * (most - least), 0.05)
    low, high = 10 ** (least - pad), 10 ** (most + pad)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(decades) // 4)
    within = (1,) if most - least > 1.7 else (1, 2, 5)
    places = [digit * 10.0**decade for decade in decades[::every] for digit in within]
    within_ends = [place for place in places if low <= place <= high] or [10 ** ((least + most) / 2)]
    return Scale(low, high, [(place, power_text(place)) for place in within_ends], label, log=True)


def fitting(values: Sequence[float], label: str = "") -> Scale:
    """A log scale for positive values that differ by much, else a linear one."""
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0 and max(known) / min(known) > LOG_RATIO:
        return logarithmic(known, label)
    return linear(known, label)


def categories(names: Sequence[str], label: str = "") -> Scale:
    """A place for each name, evenly spread: the n-th is the value n."""
    return Scale(-0.5, max(len(names), 1) - 0.5, list(enumerate(names)), label)


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * (1 - 1e-9))


def number_text(value: float, step: float) -> str:
    """A tick's value with as many decimals as tell it from its neighbours."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += round(step * 10**decimals, 6) % 1 != 0  # steps of 2.5
    return f"{value if abs(value) > step / 1e6 else 0:,.{decimals}f}"


def power_text(value: float) -> str:
    """A tick of a log scale: 0.01, 1, 300, 1e-05."""
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.3g}"

"""What the curve of a learning-rate range test suggests.

In: learning rates and smoothed losses. Out: fastai's four suggestions, exactly; one consensus
that a wild loss does not move, or none. Source: fastai 2.8.12 `callback/schedule.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

SMOOTHING: Final = 0.98
PLAUSIBLE_LR: Final = (1e-5, 1.0)
VOTERS: Final = ("minimum", "steep", "valley")
FEWEST_POINTS: Final = 8
"""Of a shorter curve only the first steps are left: it stopped before it said anything."""
SLIDE_POINTS: Final = 15
SLIDE_THRESHOLD: Final = 0.005
HIGH: Final = 10.0
"""A loss so many typical differences above the lowest before it has risen by more than noise."""
LEAST_FALL: Final = 0.01
"""A loss that falls by less than this share of itself has learnt nothing at any rate."""

Losses = npt.NDArray[np.float32]


class _Part(NamedTuple):
    """The points of a curve that suggestions look at."""

    lrs: npt.NDArray[np.float64]
    losses: Losses


def suggestions(lrs: Sequence[float], losses: Sequence[float], steps: int) -> dict[str, float]:
    """Fastai's suggestions for a curve of a range test of `steps` steps; those that need more points are left out.

    `minimum`: a tenth of the rate with the lowest loss. `steep`: where the loss falls most over the rate's logarithm.
    `valley`: half-way down the longest fall. `slide`: where, from the end, the slope stops to differ from that 15
    points on.
    """
    part = _part(lrs, losses, steps)
    found: dict[str, float] = {}
    if len(part.lrs) >= 2:
        found["minimum"] = float(part.lrs[np.argmin(part.losses)]) / 10
        found["steep"] = float(part.lrs[_steep(part)])
        found["valley"] = float(part.lrs[valley(part.losses)])
    if len(part.lrs) > SLIDE_POINTS:
        found["slide"] = float(part.lrs[_slide(part.losses)])
    return found


def _part(lrs: Sequence[float], losses: Sequence[float], steps: int) -> _Part:
    """Points from the tenth of the steps to the fifth from the end, and none from the first NaN on.

    Fastai goes on through NaN to the last step; a curve that ends at its first NaN is read as if it had.
    """
    values = np.asarray(losses, np.float32)
    unknown = np.flatnonzero(np.isnan(values))
    end = min(int(unknown[0]), steps - 5) if len(unknown) else len(values) - 5
    read = slice(steps // 10, max(end, 0))
    return _Part(np.asarray(lrs, np.float64)[read], values[read])


def _steep(part: _Part) -> int:
    logarithms = torch.from_numpy(part.lrs).float().log()  # as fastai: in float32, and with torch's logarithm
    losses = torch.from_numpy(part.losses)
    return int(((losses[1:] - losses[:-1]) / (logarithms[1:] - logarithms[:-1])).argmin())


def valley(losses: Losses) -> int:
    """Index half-way down the longest strictly decreasing subsequence, as if it had no gaps.

    Fastai's index to the letter: -1, the last point, where the only fall is that of the first two points.
    """
    lengths = np.ones(len(losses), np.int64)
    for end in range(1, len(losses)):
        lengths[end] += lengths[:end][losses[:end] > losses[end]].max(initial=0)
    end = int(np.argmax(lengths))
    start = end - int(lengths[end]) if lengths[end] > 1 else end
    third = (end - start) / 3
    return start + int(third) + int(third / 2)


def _slide(losses: Losses) -> int:
    slopes = np.gradient(losses)
    index = len(losses) - 1 - SLIDE_POINTS
    found = index
    while index >= 0 and abs(slopes[index + SLIDE_POINTS] - slopes[index]) > SLIDE_THRESHOLD:
        found = index
        index -= 1
    return found


def consensus(lrs: Sequence[float], losses: Sequence[float], steps: int) -> float | None:
    """The learning rate that `minimum`, `steep` and `valley` agree on; None if the curve says nothing.

    They are asked about the curve without lone wild losses. It says nothing if it is too short, if it ended at a rate
    that is still plausible though no loss but the last was high, if it falls no further than noise does, or if no
    suggestion is plausible.
    """
    known = np.asarray(losses, np.float64)
    known = known[np.isfinite(known)]
    if len(known) < FEWEST_POINTS:
        return None
    raw = unsmoothed(known)
    before_end = raw[:-1] if len(known) == len(losses) else raw
    if len(known) < steps and lrs[-1] <= PLAUSIBLE_LR[1] and not _diverges(before_end):
        return None
    calm = [*smoothed(without_spikes(raw)), *losses[len(known) :]]
    part = _part(lrs, calm, steps)
    if len(part.losses) < FEWEST_POINTS:
        return None
    lowest = int(np.argmin(part.losses))
    fall = part.losses[: lowest + 1].max() - part.losses[lowest]
    if fall <= max(LEAST_FALL * abs(part.losses[0]), typical_difference(raw)):
        return None
    return vote(suggestions(lrs, calm, steps), float(part.lrs[lowest]))


def vote(found: Mapping[str, float], rises_at: float = math.inf) -> float | None:
    """The median on a log scale of the plausible suggestions among `VOTERS`; None if there are none.

    Implausible is what lies outside `PLAUSIBLE_LR` or where the loss already rises. One method fooled is outvoted: each
    alone returns garbage on some backbone.
    """
    low, high = PLAUSIBLE_LR
    votes = [math.log(found[name]) for name in VOTERS if name in found and low <= found[name] <= min(high, rises_at)]
    return math.exp(float(np.median(votes))) if votes else None


def smoothed(raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The running means of losses as fastai reports them: v = .98 v + .02 loss, over 1 - .98^n."""
    running, means = 0.0, np.empty(len(raw))
    for index, loss in enumerate(raw):
        running = SMOOTHING * running + (1 - SMOOTHING) * loss
        means[index] = running / (1 - SMOOTHING ** (index + 1))
    return means


def unsmoothed(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The losses of which `means` are the running means: the inverse of `smoothed`."""
    running = means * (1 - SMOOTHING ** np.arange(1, len(means) + 1))
    losses: npt.NDArray[np.float64] = np.diff(running, prepend=0.0) / (1 - SMOOTHING) + np.r_[0.0, running[:-1]]
    return losses


def without_spikes(raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each loss, three or more, replaced by the median of itself and its neighbours: a lone wild one is gone."""
    before, after = np.r_[raw[2], raw[:-1]], np.r_[raw[1:], raw[-3]]
    medians: npt.NDArray[np.float64] = np.median([before, raw, after], axis=0)
    return medians


def typical_difference(raw: npt.NDArray[np.float64]) -> float:
    """How much neighbouring losses differ by noise: the median, which a spike or a divergence does not move."""
    return float(np.median(np.abs(np.diff(raw))))


def _diverges(raw: npt.NDArray[np.float64]) -> bool:
    """Whether one of the last five losses has risen far already: then it was not one wild loss that ended the curve."""
    risen = raw - np.minimum.accumulate(raw)
    return bool(risen[-5:].max() > HIGH * typical_difference(raw))

"""The learning-rate range test: one short run from a tiny to a huge rate, and one suggestion from its curve.

In: an `InputConfig` and data. Out: an `LrCurve`. Source: fastai 2.8 `lr_find` and its suggestion functions.
"""

import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.train.config import InputConfig
from ichsearch.train.setup import make_batches, make_model, make_optimizer, parts_of, pick_device, train_step

START_LR: Final = 1e-7
END_LR: Final = 10.0
STEPS: Final = 100
SMOOTHING: Final = 0.98
STOP_FACTOR: Final = 4.0
PLAUSIBLE_LR: Final = (1e-5, 1.0)
FALLBACK_LR: Final = 1e-3
"""AdamW's usual rate, for a curve that suggests nothing plausible."""


class LrCurve(BaseModel):
    """The curve and what it suggests.

    `guarded` says that nothing plausible was found and the fallback stands in; `failure` that the test could not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: InputConfig
    lrs: list[float]
    losses: list[float]
    suggestions: dict[str, float]
    lr: float
    guarded: bool
    failure: str = ""


def find_lr(
    config: InputConfig,
    slices: SliceSet,
    split: Split,
    *,
    weights: Path | None = None,
    device: torch.device | None = None,
    steps: int = STEPS,
) -> LrCurve:
    """Run the range test on a model of its own, which is thrown away; a trial's state is never touched."""
    device = device or pick_device()
    batches = make_batches(slices, parts_of(slices, split, config.min_brain).train, config, device)
    model = make_model(config, weights, device).train()
    optimizer = make_optimizer(model, config)
    lrs: list[float] = []
    losses: list[float] = []
    running, best = 0.0, math.inf
    for step, (inputs, labels) in enumerate(islice(_endless(batches), steps)):
        lr = START_LR * (END_LR / START_LR) ** (step / max(1, steps - 1))
        loss = float(train_step(model, optimizer, inputs, labels, lr))
        running = SMOOTHING * running + (1 - SMOOTHING) * loss
        smooth = running / (1 - SMOOTHING ** (step + 1))
        if not math.isfinite(smooth):
            break
        lrs.append(lr)
        losses.append(smooth)
        best = min(best, smooth)
        if smooth > STOP_FACTOR * best:
            break
    return read_curve(config, lrs, losses, steps)


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        yield from batches.train(epoch)


def read_curve(config: InputConfig, lrs: list[float], losses: list[float], steps: int) -> LrCurve:
    """The curve with its suggestions, which look at points steps // 10 to the fifth from the end."""
    part = slice(steps // 10, -5)
    found = suggestions(np.array(lrs[part]), np.array(losses[part]))
    lr, guarded = consensus(found)
    return LrCurve(config=config, lrs=lrs, losses=losses, suggestions=found, lr=lr, guarded=guarded)


def suggestions(lrs: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> dict[str, float]:
    """Fastai's three: `minimum` (a tenth of the rate of the lowest loss), `steep`, `valley`; none for a short curve."""
    if len(losses) < 3:
        return {}
    steepest = int(np.argmin(np.diff(losses) / np.diff(np.log(lrs))))
    return {
        "minimum": float(lrs[np.argmin(losses)]) / 10,
        "steep": float(lrs[steepest]),
        "valley": float(lrs[valley(losses)]),
    }


def valley(losses: npt.NDArray[np.float64]) -> int:
    """A point half-way down the longest falling part of the curve: fastai's `valley`."""
    end, length = longest_decrease(losses)
    start = end - length if length > 1 else end
    third = (end - start) / 3
    return max(0, start + int(third) + int(third / 2))


def longest_decrease(values: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Last index and length of the longest strictly decreasing subsequence; of equally long ones the first."""
    lengths = np.ones(len(values), np.int64)
    for end in range(1, len(values)):
        lengths[end] += lengths[:end][values[:end] > values[end]].max(initial=0)
    end = int(np.argmax(lengths))
    return end, int(lengths[end])


def consensus(found: dict[str, float]) -> tuple[float, bool]:
    """The median of the plausible suggestions on a log scale, and whether the fallback had to stand in.

    One method fooled by a spike is outvoted; each alone returns garbage on some backbone of the paper.
    """
    low, high = PLAUSIBLE_LR
    plausible = [math.log(lr) for lr in found.values() if low <= lr <= high]
    if not plausible:
        return FALLBACK_LR, True
    return math.exp(float(np.median(plausible))), False

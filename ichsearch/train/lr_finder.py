"""The learning-rate range test: one short run from a tiny to a huge rate, and one suggestion from its curve.

In: an `InputConfig` and data, or one's own training step. Out: an `LrCurve`. Source: fastai 2.8.12 `lr_find`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_suggestions import SMOOTHING, consensus, suggestions
from ichsearch.train.optimizer import MOMENTUM, set_step
from ichsearch.train.schedule import GROUPS
from ichsearch.train.setup import make_training, parts_of, pick_device

START_LR: Final = 1e-7
END_LR: Final = 10.0
STEPS: Final = 100
"""As fastai's."""
FEWEST_STEPS: Final = 20
SEARCH_STEPS: Final = 60
"""Of the stage in a search, which must cost little beside its trials."""
STOP_FACTOR: Final = 4.0
FALLBACK_LR: Final = 1e-3
"""AdamW's usual rate, for a curve that suggests nothing plausible."""


class LrCurve(BaseModel):
    """The curve, fastai's suggestions for it, and the rate to take.

    `guarded` says that nothing plausible was found and the fallback stands in; `failure` that the test could not run.
    `seconds` are those of the whole test; `images_per_s` leaves out its first step, and is None if it had no other.
    `memory_mb` is the most memory of the GPU that tensors took, in 1e6 bytes; None on a CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: InputConfig
    lrs: list[float]
    losses: list[float]
    suggestions: dict[str, float]
    lr: float
    guarded: bool
    pretrained: bool = False
    failure: str = ""
    seconds: float = 0.0
    images_per_s: float | None = None
    memory_mb: float | None = None


def find_lr(
    config: InputConfig,
    slices: SliceSet,
    split: Split,
    *,
    weights: Path | None = None,
    device: torch.device | None = None,
    steps: int = STEPS,
) -> LrCurve:
    """Run the range test on a model of its own, which is thrown away; random states come back to the bit."""
    with torch.random.fork_rng():
        return _find_lr(config, slices, split, weights, device or pick_device(), steps)


def _find_lr(
    config: InputConfig, slices: SliceSet, split: Split, weights: Path | None, device: torch.device, steps: int
) -> LrCurve:
    start_s, ended_s = time.monotonic(), list[float]()
    rows = parts_of(slices, split, config.min_brain, config.task).train
    training = make_training(config, slices, rows, weights, device)
    training.model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of batches that proved too large
    torch.manual_seed(config.seed)  # whatever was drawn before: dropout is the same
    batches = _endless(training.batches)

    def step(lr: float) -> float:
        set_step(training.optimizer, (lr,) * GROUPS, MOMENTUM)  # Adam's usual one, as in fastai: no cycle yet
        loss = float(training.stepper.step(*next(batches)))
        ended_s.append(time.monotonic())
        return loss

    curve = read_curve(config, *range_test(step, steps), steps)
    measured = {
        "seconds": time.monotonic() - start_s,
        "images_per_s": _images_per_s(config.batch_size, ended_s),
        "memory_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
    }
    return curve.model_copy(update={"pretrained": weights is not None, **measured})


def _images_per_s(batch_size: int, ended_s: Sequence[float]) -> float | None:
    """Of steps that ended at these times, but for the first, which pays for buffers and kernels."""
    return batch_size * (len(ended_s) - 1) / (ended_s[-1] - ended_s[0]) if len(ended_s) > 1 else None


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        yield from batches.train(epoch)


def range_test(
    step: Callable[[float], float],
    steps: int,
    *,
    start_lr: float = START_LR,
    end_lr: float = END_LR,
    stop_factor: float = STOP_FACTOR,
) -> tuple[list[float], list[float]]:
    """Train at exponentially rising rates; returns the rates and the smoothed losses, at most `steps` of each.

    It ends with the first loss that is more than `stop_factor` times the best or no number, which is still returned.

    Args:
        step: does one training step at a learning rate and returns the loss before it.
        steps: how many there are at most; rates are start_lr · (end_lr / start_lr)^(i / steps).
        start_lr: the first rate.
        end_lr: the rate that the step after the last would have.
        stop_factor: inf never stops but at a loss that is no number.
    """
    lrs: list[float] = []
    losses: list[float] = []
    running, best = torch.zeros(()), math.inf  # float32 and `lerp` as fastai's, to the same bits
    for index in range(steps):
        lrs.append(start_lr * (end_lr / start_lr) ** (index / steps))
        running = torch.lerp(torch.tensor(step(lrs[-1]), dtype=torch.float32), running, SMOOTHING)
        losses.append(float(running / (1 - SMOOTHING ** (index + 1))))
        best = min(best, losses[-1])
        if math.isnan(losses[-1]) or losses[-1] > stop_factor * best:
            break
    return lrs, losses


def read_curve(config: InputConfig, lrs: Sequence[float], losses: Sequence[float], steps: int) -> LrCurve:
    """The finite part of a curve, with fastai's suggestions and the consensus or the fallback."""
    lr = consensus(lrs, losses, steps)
    points = [(rate, loss) for rate, loss in zip(lrs, losses, strict=True) if math.isfinite(loss)]
    return LrCurve(
        config=config,
        lrs=[rate for rate, _ in points],
        losses=[loss for _, loss in points],
        suggestions=suggestions(lrs, losses, steps),
        lr=FALLBACK_LR if lr is None else lr,
        guarded=lr is None,
    )

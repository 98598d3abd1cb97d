"""Ends a trial whose loss runs away.

In: the loss of every step. Out: `TrialFailedError` within a few steps.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor

from ichsearch.train.config import TrialFailedError

STEPS_BETWEEN_LOOKS: Final = 8
"""Looking at the loss waits for the GPU, so it is looked at every few steps."""
DIVERGED_FACTOR: Final = 10.0
DIVERGED_STEPS: Final = 50
LOSS_OF_IGNORANCE: Final = math.log(2)
"""Of a model that says one half everywhere: a child that starts below it may rise to it without having diverged."""


class LossGuard:
    """Watches the loss: not finite once, or for fifty steps above ten times its start, and the trial has diverged.

    A start below that of a model that knows nothing counts as that one's.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._start: float | None = None
        self._high_steps = 0

    def watch(self, loss: Tensor) -> None:
        """Take one step's loss, a scalar on any device, and look at the last ones now and then."""
        self._waiting.append(loss)
        if len(self._waiting) >= STEPS_BETWEEN_LOOKS:
            self.look()

    def look(self) -> None:
        """Look at all that came since the last look.

        Raises:
            TrialFailedError: `diverged`.
        """
        if not self._waiting:
            return
        losses = torch.stack(self._waiting).tolist()
        self._waiting.clear()
        if self._start is None:
            self._start = max(losses[0], LOSS_OF_IGNORANCE)
        for loss in losses:
            if not math.isfinite(loss):
                raise TrialFailedError("diverged", "the loss is not finite")
            self._high_steps = self._high_steps + 1 if loss > DIVERGED_FACTOR * self._start else 0
            if self._high_steps >= DIVERGED_STEPS:
                raise TrialFailedError(
                    "diverged", f"the loss was above {DIVERGED_FACTOR:g} × its start for {DIVERGED_STEPS} steps"
                )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"start": self._start, "high_steps": self._high_steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._start, self._high_steps = state["start"], state["high_steps"]

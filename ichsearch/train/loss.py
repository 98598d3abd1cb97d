"""The loss that a trial minimises: the challenge's weighted log loss, with what a recipe adds to it.

In: logits and labels. Out: a scalar that can be differentiated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ichsearch.labels import LABELS, LOSS_WEIGHTS

MAX_POSITIVE_WEIGHT: Final = 20.0
"""Of a label: rarer ones than 1 in 21 would else be learned from a handful of slices with huge gradients."""


@dataclass(frozen=True)
class TrainLoss:
    """Weighted log loss; with no smoothing and no positive weights it equals `metrics.weighted_log_loss`.

    Attributes:
        weights: (L,) of each label, of sum 1.
        positive_weights: (L,) of positive slices against negative ones, or None.
        smoothing: share of a label's truth that is spread evenly: 0 and 1 become ε/2 and 1 - ε/2.
    """

    weights: Tensor
    positive_weights: Tensor | None
    smoothing: float

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over (B, L) logits and labels, in float32."""
        target = labels * (1 - self.smoothing) + self.smoothing / 2
        losses = binary_cross_entropy_with_logits(
            logits.float(), target, reduction="none", pos_weight=self.positive_weights
        )
        return losses.mean(dim=0) @ self.weights


def make_loss(names: Sequence[str], truth: Tensor, *, balanced: bool, smoothing: float) -> TrainLoss:
    """The loss of a task; `balanced` weighs positive slices by negatives/positives of (N, L) training labels."""
    weights = torch.tensor([LOSS_WEIGHTS[LABELS.index(name)] for name in names], device=truth.device)
    positive_weights = None
    if balanced:
        positives = truth.sum(dim=0)
        positive_weights = ((len(truth) - positives) / positives.clamp(min=1)).clamp(max=MAX_POSITIVE_WEIGHT)
    return TrainLoss(weights / weights.sum(), positive_weights, smoothing)

"""Scores of predicted probabilities; a label of which the slices show one class only has no score, never a made-up one.

In: (N, 6) labels in {0, 1} and probabilities. Out: numbers by name, None where undefined.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from ichsearch.labels import ANY, LABELS, LOSS_WEIGHTS

Metric = Literal["auroc_any", "average_precision_any", "log_loss", "accuracy_multi"]
Scores = dict[str, float | None]
FloatArray = npt.NDArray[np.floating]

LOWER_IS_BETTER: Final = frozenset({"log_loss"})
CLIP: Final = 1e-7


def better(metric: Metric, new: float, old: float | None) -> bool:
    """Whether `new` beats `old`; anything beats None."""
    if old is None:
        return True
    return new < old if metric in LOWER_IS_BETTER else new > old


def score(labels: FloatArray, probabilities: FloatArray) -> Scores:
    """All metrics of (N, 6) labels and probabilities in the order of `LABELS`."""
    scores: Scores = {
        "log_loss": weighted_log_loss(labels, probabilities),
        "accuracy_multi": float(((probabilities > 0.5) == (labels > 0.5)).mean()),
    }
    for name, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        for column, label in enumerate(LABELS):
            truth = labels[:, column]
            defined = truth.min() != truth.max()
            scores[f"{name}_{label}"] = float(function(truth, probabilities[:, column])) if defined else None
    assert scores[f"auroc_{ANY}"] is not None, "the split guarantees slices of both kinds"
    return scores


def weighted_log_loss(labels: FloatArray, probabilities: FloatArray) -> float:
    """The challenge's metric: binary cross-entropy per label, `any` with weight 2, averaged over weights and slices."""
    p = np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)
    losses = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return float(np.average(losses.mean(axis=0), weights=LOSS_WEIGHTS))

"""Rules that see no image: what a model must beat before its score means anything.

In: positions and labels of training slices. Out: probabilities for other slices.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from ichsearch.train.metrics import FloatArray

BINS: Final = 20
PRIOR_SLICES: Final = 10
"""Weight of the overall prevalence in every bin, in slices."""


def position_baseline(train_position: FloatArray, train_labels: FloatArray, position: FloatArray) -> FloatArray:
    """Probabilities (N, L) from the slice's relative position alone: the prevalence in its twentieth of the head.

    Args:
        train_position: (M,) in [0, 1], 0 at the feet's end of the series.
        train_labels: (M, L) in {0, 1}.
        position: (N,) in [0, 1], of the slices to predict.
    """
    prevalence = train_labels.mean(axis=0)
    at = _bins(train_position)
    slices = np.bincount(at, minlength=BINS)
    positives = np.stack([np.bincount(at, weights=column, minlength=BINS) for column in train_labels.T], axis=1)
    rates: FloatArray = (positives + PRIOR_SLICES * prevalence) / (slices + PRIOR_SLICES)[:, None]
    return rates[_bins(position)]


def _bins(position: FloatArray) -> npt.NDArray[np.int64]:
    return np.minimum((position * BINS).astype(np.int64), BINS - 1)

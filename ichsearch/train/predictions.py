"""A model's predictions as a table.

In: slices, truth and probabilities. Out: a row a slice; tables averaged, and their scores.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.data.cache import SliceSet
from ichsearch.labels import LABELS
from ichsearch.train.metrics import FloatArray, Scores, score


def truth_of(slices: SliceSet, rows: npt.NDArray[np.int64], labels: Sequence[str]) -> FloatArray:
    """(N, L) float32 in {0, 1}: the labels of the slices in `rows`."""
    return slices.labels[rows][:, [LABELS.index(name) for name in labels]]


def prediction_table(
    slices: SliceSet, rows: npt.NDArray[np.int64], labels: Sequence[str], probabilities: FloatArray
) -> pd.DataFrame:
    """Of each slice in `rows`: the slice, whose it is, its place in its series, and truth and probability by label."""
    table, truth = slices.table.iloc[rows], truth_of(slices, rows, labels)
    frame = table[["slice", "patient", "series", "series_index"]].reset_index(drop=True)
    for column, label in enumerate(labels):
        frame[f"label_{label}"] = truth[:, column].astype(np.int8)
        frame[f"probability_{label}"] = probabilities[:, column].astype(np.float32)
    return frame


def labels_of(predictions: pd.DataFrame) -> list[str]:
    """The labels that a table of predictions has, in order."""
    return [label for label in LABELS if f"label_{label}" in predictions]


def mean_of(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of several models' probabilities of the same slices."""
    first, *others = tables
    truth = ["slice", *(f"label_{label}" for label in labels_of(first))]
    assert all(table[truth].equals(first[truth]) for table in others), "models are averaged on the same slices"
    mean = first.copy()
    for label in labels_of(first):
        name = f"probability_{label}"
        mean[name] = np.mean([table[name].to_numpy(np.float64) for table in tables], axis=0).astype(np.float32)
    return mean


def scores_of(predictions: pd.DataFrame) -> Scores:
    """All metrics of a table of predictions."""
    labels = labels_of(predictions)
    truth, probabilities = (
        predictions[[f"{kind}_{label}" for label in labels]].to_numpy(np.float32) for kind in ("label", "probability")
    )
    return score(truth, probabilities, labels, predictions["patient"].to_numpy(np.object_))

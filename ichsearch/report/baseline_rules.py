"""The rules that see no image, and what each looks at.

In: metadata and labels of training slices. Out: probabilities for other slices.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from ichsearch.data.cache import relative_position
from ichsearch.train.metrics import FloatArray

BINS: Final = 20
ROUNDING: Final = 1e-5
PRIOR_SLICES: Final = 10
"""Weight of the overall prevalence in every bin, in slices."""
TREES: Final = 200
LEAF_SLICES: Final = 10
"""A tree with smaller leaves is surer than it should be, which the log loss punishes."""
SLICES_A_TREE: Final = 20_000

POSITION: Final = "relative_position"
WHERE: Final = (POSITION, "series_index", "position_mm", *(f"image_position_{axis}_mm" for axis in "xyz"))
"""Where a slice lies."""
METADATA: Final = (
    "series_slices", "tilt_degrees", "spacing_row_mm", "spacing_column_mm", "brain_share",
    "crop_top", "crop_left", "crop_side", "transfer_syntax", "rows", "columns", "bits_allocated", "bits_stored",
    "signed", "inverted", "rescale_slope", "rescale_intercept", "padding_value", "window_level_hu", "window_width_hu",
    "pixel_spacing_row_mm", "pixel_spacing_column_mm",
    *(f"image_{edge}_{axis}" for edge in ("row", "column") for axis in "xyz"),
    "slice_thickness_mm", "gantry_tilt_degrees", "reconstruction_diameter_mm", "tube_voltage_kv", "tube_current_ma",
    "exposure_mas", "stored_min", "stored_max", "stored_mean", "stored_std", "clipped_low", "clipped_high",
    "fixed_wrap",
)  # fmt: skip
"""What the header says of the scan, and counts of stored values, brain and crop; not where the slice lies."""

Rule = Callable[[pd.DataFrame, FloatArray, pd.DataFrame], FloatArray]
"""Probabilities (N, L) from features of M training slices, their labels (M, L), and features of N other slices."""


def features_of(metadata: pd.DataFrame) -> pd.DataFrame:
    """All columns that a rule may look at, as numbers; NaN for what a header does not say."""
    table = metadata.assign(**{POSITION: relative_position(metadata)})[[*WHERE, *METADATA]]
    table["transfer_syntax"] = pd.factorize(table["transfer_syntax"], sort=True)[0]
    return table.astype(np.float64).replace([np.inf, -np.inf], np.nan)


def prevalence(training: pd.DataFrame, labels: FloatArray, asked: pd.DataFrame) -> FloatArray:  # noqa: ARG001 - a rule
    """The same for every slice: how many training slices are positive."""
    return np.tile(labels.mean(axis=0), (len(asked), 1))


def position(training: pd.DataFrame, labels: FloatArray, asked: pd.DataFrame) -> FloatArray:
    """The prevalence in the slice's twentieth of the head."""
    return position_baseline(training[POSITION].to_numpy(), labels, asked[POSITION].to_numpy())


def random_forest(training: pd.DataFrame, labels: FloatArray, asked: pd.DataFrame) -> FloatArray:
    """A Random Forest of probabilities: on labels in {0, 1}, squared error splits as Gini impurity does."""
    share = min(1.0, SLICES_A_TREE / len(training))
    forest = RandomForestRegressor(
        TREES, min_samples_leaf=LEAF_SLICES, max_features="sqrt", max_samples=share, random_state=0
    )
    forest.fit(training, labels[:, 0] if labels.shape[1] == 1 else labels)
    predicted: FloatArray = forest.predict(asked).reshape(len(asked), -1)
    return predicted


RULES: Final[dict[str, tuple[Rule, tuple[str, ...]]]] = {
    "prevalence": (prevalence, ()),
    "position": (position, (POSITION,)),
    "metadata": (random_forest, METADATA),
    "position_metadata": (random_forest, (*WHERE, *METADATA)),
}
"""Each baseline with the columns that it looks at."""


def position_baseline(train_position: FloatArray, train_labels: FloatArray, position: FloatArray) -> FloatArray:
    """Probabilities (N, L) from the slice's relative position alone: the prevalence in its twentieth of the head.

    Args:
        train_position: (M,) in [0, 1], 0 at the feet's end of the series.
        train_labels: (M, L) in {0, 1}.
        position: (N,) in [0, 1], of the slices to predict.
    """
    overall = train_labels.mean(axis=0)
    at = _bins(train_position)
    slices = np.bincount(at, minlength=BINS)
    positives = np.stack([np.bincount(at, weights=column, minlength=BINS) for column in train_labels.T], axis=1)
    rates: FloatArray = (positives + PRIOR_SLICES * overall) / (slices + PRIOR_SLICES)[:, None]
    return rates[_bins(position)]


def _bins(position: FloatArray) -> npt.NDArray[np.int64]:
    """The bin of each position; one on an edge belongs to the bin above, however it was rounded."""
    return np.minimum((position * BINS + ROUNDING).astype(np.int64), BINS - 1)

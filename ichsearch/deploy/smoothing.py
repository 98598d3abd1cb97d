"""Probabilities averaged over neighbouring slices: blood seldom ends between two of them.

In: probabilities of slices, and which slices are neighbours. Out: smoothed ones, and what that gains on the validation
patients. Source of the weights: solutions of the RSNA 2019 challenge.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.deploy.ensemble_record import Gain
from ichsearch.deploy.gains import gain_over, gain_text
from ichsearch.deploy.models import Predictor
from ichsearch.errors import ConfigError, DataError
from ichsearch.report.bootstrap import MIN_PATIENTS
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.statistics import Predictions, read_predictions
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.shards.manifest import read_manifest
from ichsearch.train.metrics import FloatArray

OWN: Final = 0.6
"""Weight of the slice itself; the ones below and above share the rest."""
PLACE: Final = ["series", "series_index"]

Neighbours = npt.NDArray[np.int64]


def smoothed(probabilities: FloatArray, neighbours: Neighbours) -> FloatArray:
    """Weighted means (N, L) of (M, L) probabilities.

    (N, 3) `neighbours` are the places of the slice below, the slice, the slice above; the slice itself stands in for
    one that is not there.
    """
    below, own, above = (probabilities[places] for places in neighbours.T)
    mean: FloatArray = OWN * own + (1 - OWN) / 2 * (below + above)
    return mean


def neighbours_in(table: pd.DataFrame) -> Neighbours:
    """(N, 3) rows of the neighbours of each slice of a table with `series` and `series_index`, in any order."""
    series, index = pd.factorize(table["series"])[0], table["series_index"].to_numpy(np.int64)
    order = np.lexsort((index, series))
    joined = (np.diff(series[order]) == 0) & (np.diff(index[order]) == 1)  # a slice with the one before it
    places = np.repeat(np.arange(len(table))[:, None], 3, axis=1)
    places[order[1:][joined], 0] = order[:-1][joined]
    places[order[:-1][joined], 2] = order[1:][joined]
    return places


def smoothed_validation(validation: Path, shards: Path | None) -> Predictions:
    """Predictions of the validation slices, smoothed over those that were predicted.

    Args:
        validation: their file.
        shards: the run's data; needed only where the file does not tell where slices lie, as older runs' do not.

    Raises:
        ConfigError: neither tells it.
        DataError: the file is damaged.
    """
    given = read_predictions(validation)
    return given._replace(
        probabilities=smoothed(given.probabilities, neighbours_in(_places(validation, given, shards)))
    )


def _places(validation: Path, given: Predictions, shards: Path | None) -> pd.DataFrame:
    table = pd.read_parquet(validation)
    if set(PLACE) <= set(table.columns):
        return table[PLACE]
    if shards is None:
        raise ConfigError(
            "smoothing needs to know which validation slices are neighbours, but this run is too old to tell; "
            "name its shards with --data (of evaluate: --run-data)"
        )
    known = read_metadata(shards, read_manifest(shards)).set_index("slice")[PLACE]
    if not set(given.slices) <= set(known.index):
        raise DataError("the shards must hold the run's validation slices, but some are missing; name the run's")
    return known.loc[list(given.slices)]


def smoothing_gains(validation: Path, shards: Path | None, metric: str) -> dict[str, Gain]:
    """What smoothing gains by the run's metric and by log loss, where they are defined."""
    new, old = smoothed_validation(validation, shards), read_predictions(validation)
    gains = {name: gain_over(new, old, name) for name in dict.fromkeys([metric, "log_loss"])}
    return {name: gain for name, gain in gains.items() if gain}


def smoothing_text(folder: RunFolder, predictor: Predictor, shards: Path | None) -> str:
    """The gains in a line, and whether they are more than chance."""
    gains = smoothing_gains(predictor.validation, shards, load_space(folder.space).metric)
    told = "; ".join(f"{metric} better by {gain_text(gain)}" for metric, gain in gains.items())
    shown = all(gain.low > 0 for gain in gains.values())
    verdict = "" if shown else "; where the interval holds 0, not shown to help"
    if len(read_predictions(predictor.validation).patients) < MIN_PATIENTS:
        verdict = f"; fewer than {MIN_PATIENTS} patients, so no interval is to be believed"
    return f"smoothed over three slices: {told} on the validation patients{verdict}"

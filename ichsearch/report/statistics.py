"""The scores of a trial's predictions with their intervals over patients.

In: the predictions of a trial or a baseline. Out: intervals by name, kept beside the trial in `statistics.json`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.errors import DataError
from ichsearch.files import read_json, sha256_of, write_json
from ichsearch.report import bootstrap
from ichsearch.report.bootstrap import SEED, Interval, Resampled, Statistic, resample
from ichsearch.report.weighted_scores import RANKED, PatientNumbers, ranked_scores, weighted_means
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.lineage import PREDICTIONS, recorded_sha256
from ichsearch.train.metrics import BoolArray, FloatArray, patient_level, slice_losses

VERSION: Final = 2
"""Raised when the same predictions would give other numbers."""
AVERAGED: Final = ("auroc", "average_precision")
PROBABILITY: Final = "probability_"

Intervals = dict[str, Interval | None]
"""By the metric's name; None where the patients do not define it."""


class Predictions(NamedTuple):
    """What a trial or a baseline says of the validation slices.

    Attributes:
        labels: names of the L labels.
        slices: (N,) ids.
        patients: names of the P patients, sorted.
        of_patient: (N,) the patient's place among them.
        positive: (N, L) the truth.
        probabilities: (N, L) float64.
    """

    labels: tuple[str, ...]
    slices: npt.NDArray[np.object_]
    patients: npt.NDArray[np.object_]
    of_patient: PatientNumbers
    positive: BoolArray
    probabilities: FloatArray


class TrialStatistics(NamedTuple):
    """All scores of a trial with their intervals."""

    predictions: str  # SHA-256 of the file
    intervals: Intervals


class _Level(NamedTuple):
    """Slices, or patients: the prefix of their scores' names, and what is scored."""

    prefix: str
    positive: BoolArray
    scores: FloatArray
    of_patient: PatientNumbers


def read_predictions(path: Path) -> Predictions:
    """The predictions in a Parquet file.

    Raises:
        DataError: the file is missing, damaged or of another form.
    """
    try:
        return as_predictions(pd.read_parquet(path))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(
            f"a finished trial has predictions, but {path.parent.name}/{path.name} cannot be read "
            f"({type(error).__name__}); restore the file from a copy: its run cannot be ranked without it"
        ) from error


def as_predictions(frame: pd.DataFrame) -> Predictions:
    """The predictions of a frame with the columns `slice`, `patient`, `label_<label>` and `probability_<label>`."""
    labels = tuple(name.removeprefix(PROBABILITY) for name in frame.columns if name.startswith(PROBABILITY))
    of_patient, patients = pd.factorize(frame["patient"].to_numpy(np.object_), sort=True)
    return Predictions(
        labels=labels,
        slices=frame["slice"].to_numpy(np.object_),
        patients=patients,
        of_patient=of_patient,
        positive=frame[[f"label_{label}" for label in labels]].to_numpy() == 1,
        probabilities=frame[[f"{PROBABILITY}{label}" for label in labels]].to_numpy(np.float64),
    )


def trial_statistics(folder: RunFolder, trial: str) -> TrialStatistics:
    """All scores of a finished trial with their intervals, from its `statistics.json` unless that is out of date.

    Raises:
        DataError: the trial's predictions cannot be read, or are not those that it wrote.
    """
    path = folder.trial(trial) / PREDICTIONS
    found = kept_statistics(path, folder.statistics(trial))
    if found.predictions != (recorded_sha256(path.parent, PREDICTIONS) or found.predictions):
        raise DataError(f"trials/{trial}/{PREDICTIONS} must be as the trial wrote it, but was changed; restore it")
    return found


def predictions_sha256(folder: RunFolder, trial: str) -> str | None:
    """The SHA-256 of a trial's predictions without reading them: the leaderboard asks it of every trial, often."""
    path = folder.trial(trial) / PREDICTIONS
    if not path.is_file():
        return None
    return recorded_sha256(path.parent, PREDICTIONS) or sha256_of(path)


def kept_statistics(path: Path, kept: Path) -> TrialStatistics:
    """All scores of the predictions in `path` with their intervals, from the file `kept` unless that is out of date.

    Raises:
        DataError: the predictions cannot be read.
    """
    predictions = read_predictions(path)
    digest = sha256_of(path)
    known = known_statistics(kept, digest)
    if known is not None:
        return known
    found = TrialStatistics(digest, intervals(predictions))
    write_json(kept, _as_json(found))
    return found


def known_statistics(path: Path, digest: str) -> TrialStatistics | None:
    """What a file says of predictions with this SHA-256; None if it says nothing of them."""
    saved = read_json(path) if path.is_file() else {}
    if {name: saved.get(name) for name in (*settings(), "predictions")} != settings() | {"predictions": digest}:
        return None
    return TrialStatistics(digest, as_intervals(saved["intervals"]))


def intervals(predictions: Predictions) -> Intervals:
    """All scores with their 95 % intervals."""
    return {name: score.interval for name, score in resampled_scores(predictions).items()}


def resampled_scores(predictions: Predictions, only: str | None = None, seed: int = SEED) -> dict[str, Resampled]:
    """The scores by name, of slices and, with `patient_` before the name, of patients; or one of them alone.

    `log_loss` and `accuracy_multi` of all labels; `log_loss_<label>`, `auroc_<label>`, `average_precision_<label>`,
    `sensitivity_at_90_<label>` and `_95_`; `auroc_mean` and `average_precision_mean`, over the labels that both classes
    occur of. A resample in which one of these has one class only has no mean.
    """
    scores: dict[str, Resampled] = {}
    for level in _levels(predictions):
        for names, statistic in _statistics(level, predictions.labels):
            if only is None or _gives(names, only):
                scores |= dict(zip(names, resample(statistic, len(predictions.patients), seed), strict=True))
        for name in (f"{level.prefix}{averaged}" for averaged in AVERAGED):
            of_labels = [scores[f"{name}_{label}"] for label in predictions.labels if f"{name}_{label}" in scores]
            if of_labels:
                scores[f"{name}_mean"] = _mean(of_labels)
    return scores if only is None else {only: scores[only]}


def _levels(predictions: Predictions) -> list[_Level]:
    labels, of_patient = predictions.labels, predictions.of_patient
    assert labels, "predictions have labels"
    truth, tops = patient_level(predictions.positive, predictions.probabilities, of_patient.astype(np.object_))
    return [
        _Level("", predictions.positive, predictions.probabilities, of_patient),
        _Level("patient_", truth, tops, pd.unique(of_patient)),
    ]


def _statistics(level: _Level, labels: tuple[str, ...]) -> Iterator[tuple[list[str], Statistic]]:
    """Statistics that are computed together, with the names of their scores."""
    truth = level.positive.astype(np.float64)
    columns = [
        slice_losses(truth, level.scores, labels),
        ((level.scores > 0.5) == level.positive).mean(axis=1),
        *(slice_losses(truth[:, [i]], level.scores[:, [i]], [label]) for i, label in enumerate(labels)),
    ]
    names = ["log_loss", "accuracy_multi", *(f"log_loss_{label}" for label in labels)]
    yield [f"{level.prefix}{name}" for name in names], weighted_means(np.stack(columns, axis=1), level.of_patient)
    for i, label in enumerate(labels):
        names = [f"{level.prefix}{name}_{label}" for name in RANKED]
        yield names, ranked_scores(level.positive[:, i], level.scores[:, i], level.of_patient)


def _gives(names: list[str], wanted: str) -> bool:
    """Whether a score is among these, or is a mean over labels that needs one of them."""
    stem = wanted.removesuffix("_mean")
    return wanted in names or (stem != wanted and any(name.startswith(f"{stem}_") for name in names))


def _mean(of_labels: list[Resampled]) -> Resampled:
    defined = [score for score in of_labels if not np.isnan(score.value)]
    if not defined:
        return of_labels[0]
    value = float(np.mean([score.value for score in defined]))
    return Resampled(value, np.mean([score.draws for score in defined], axis=0), defined[0].patients)


def settings() -> dict[str, Any]:
    """What intervals depend on beside the predictions."""
    return {"version": VERSION, "resamples": bootstrap.RESAMPLES, "seed": SEED}


def _as_json(found: TrialStatistics) -> dict[str, Any]:
    return {"predictions": found.predictions, **settings(), "intervals": intervals_as_json(found.intervals)}


def intervals_as_json(found: Intervals) -> dict[str, Any]:
    """Intervals as JSON has them; null where a score is undefined."""
    return {name: interval and interval._asdict() for name, interval in found.items()}


def as_intervals(saved: dict[str, Any]) -> Intervals:
    """Intervals from JSON."""
    return {name: Interval(**interval) if interval else None for name, interval in saved.items()}

"""What a run's model is worth on labelled slices: other patients, or the run's own test fold.

In: a `Predictor`, shards. Out: an `Evaluation`, kept with its predictions in the run folder. Thresholds come from the
validation patients and from nobody else; patients whom the run knows are never judged on as if they were new.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch import __version__
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.data.tasks import task_rows
from ichsearch.deploy.evaluation_record import AppliedPoint, Evaluation, Part, Points
from ichsearch.deploy.exported_record import OperatingPoint
from ichsearch.deploy.models import Predictor
from ichsearch.deploy.smoothing import neighbours_in, smoothed, smoothed_validation
from ichsearch.deploy.stored_slices import predict_rows, stored_slices
from ichsearch.deploy.thresholds import points_of
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json, write_json, written_aside
from ichsearch.report.bootstrap import Interval, Statistic, resample
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.report import shards_of
from ichsearch.report.statistics import Predictions, as_predictions, intervals, read_predictions
from ichsearch.report.weighted_scores import PatientNumbers
from ichsearch.search.driving import driving
from ichsearch.search.openings import note_opening
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.shards.manifest import read_manifest
from ichsearch.train.held_out import held_out_rows
from ichsearch.train.metrics import BoolArray, FloatArray, patient_level
from ichsearch.train.predictions import prediction_table
from ichsearch.train.setup import parts_of

NAME_DIGITS: Final = 12
Rows = npt.NDArray[np.int64]


class _Chosen(NamedTuple):
    """Which slices are judged on; how many patients are not because the run knows them; how these were recognised."""

    rows: Rows
    left_out: int = 0
    other_key: bool = False
    images_compared: bool = False


class _How(NamedTuple):
    """What was judged, and in which way."""

    part: Part
    smooth: bool
    label_level: str | None


def evaluate(
    folder: RunFolder,
    predictor: Predictor,
    shards: Path,
    *,
    part: Part = "all",
    smooth: bool = False,
    run_shards: Path | None = None,
    command: Sequence[str] = (),
) -> tuple[Evaluation, Path]:
    """Judge a model, and keep the result: `evaluations/<name>.json`, and its predictions beside it.

    Args:
        folder: the run's.
        predictor: of a trial or its ensemble.
        shards: labelled slices, made as the run's were.
        part: of the run's own data `validation` or `test`; of others `all`.
        smooth: average over neighbouring slices, in choosing thresholds too.
        run_shards: the run's own; its patients are recognised by their images, too, and an older run needs them to
            smooth.
        command: what was typed, for the record of who opened the test fold.

    Raises:
        ConfigError: the slices were made otherwise, or the part would judge the model on what it learned from.
        DataError: shards or predictions are damaged, or no labelled slice of new patients is left.
        AlreadyRunningError: the test fold is wanted while a driver is at work on the run.
    """
    _require_same_preprocessing(predictor, shards)
    slices = stored_slices(shards)
    chosen = _chosen(folder, predictor, slices, part, shards, run_shards)
    validation = read_predictions(predictor.validation)
    if smooth:
        validation = smoothed_validation(predictor.validation, run_shards)
    if part == "test":
        with driving(folder):
            note_opening(folder, command, predictor.trials)
    probabilities = _probabilities(predictor, slices, chosen.rows, smooth=smooth)
    table = prediction_table(slices, chosen.rows, predictor.labels, probabilities)
    how = _How(part, smooth, read_manifest(shards).label_level)
    evaluation = _judged(folder, predictor, slices.fingerprint, table, validation, chosen, how)
    return evaluation, _keep(folder, evaluation, table)


def own_shards(folder: RunFolder, shards: Path, named: str | None) -> Path | None:
    """The run's own shards: those that are named, or `shards` where these are its own, or its phantom's; else None."""
    if named is None and folder.split.is_file():
        split = Split.model_validate(read_json(folder.split))
        return shards_of(folder, shards if read_manifest(shards).fingerprint == split.fingerprint else None)
    return shards_of(folder, named)


def _require_same_preprocessing(predictor: Predictor, shards: Path) -> None:
    settings, needed = read_manifest(shards).settings, predictor.preprocessing
    if (settings.size, settings.crop) != (needed.size, needed.crop):
        raise ConfigError(
            f"the shards must be made as the run's were, --size {needed.size} --crop {needed.crop}, "
            f"but have --size {settings.size} --crop {settings.crop}; preprocess those files again"
        )


def _chosen(
    folder: RunFolder, predictor: Predictor, slices: SliceSet, part: Part, shards: Path, run_shards: Path | None
) -> _Chosen:
    split, task = Split.model_validate(read_json(folder.split)), predictor.configs[0].task
    if split.fingerprint == slices.fingerprint:
        return _Chosen(_own_rows(slices, split, predictor, part))
    if part != "all":
        raise ConfigError(f"only the run's own data have a {part} fold, but these are others; leave --split out")
    wanted = task_rows(task, slices.labels)
    if not wanted.any():
        raise DataError("an evaluation needs labelled slices, but these shards have none; preprocess with --labels")
    known = _known(slices.table, split, run_shards)
    left_out = int(slices.table["patient"][known & wanted].nunique())
    rows = np.flatnonzero(wanted & ~known)
    if not len(rows):
        raise DataError(
            f"an evaluation needs labelled slices of patients that the run does not know, but of {int(wanted.sum())} "
            f"labelled slices all are of patients that it does ({left_out}); give others"
        )
    own_key = predictor.preprocessing.key_id
    other_key = own_key is not None and own_key != read_manifest(shards).settings.key_id
    return _Chosen(rows, left_out, other_key, images_compared=run_shards is not None)


def _known(table: pd.DataFrame, split: Split, run_shards: Path | None) -> BoolArray:
    """Which slices are of patients whom the run knows: by their hash, or because one of their images is the run's."""
    known = table["patient"].isin(split.patients.keys())
    if run_shards is not None:
        own = read_metadata(run_shards, read_manifest(run_shards))["stored_hash"]
        same_image = table["patient"][table["stored_hash"].isin(own)]
        known |= table["patient"].isin(same_image)
    return np.asarray(known, np.bool_)


def _own_rows(slices: SliceSet, split: Split, predictor: Predictor, part: Part) -> Rows:
    config = predictor.configs[0]
    if part == "all":
        raise ConfigError(
            "a model must not be judged on what it learned from, but these are the run's own data; "
            "--split test opens their test fold, which is noted for good; --split validation shows what is known"
        )
    if part == "test":
        return held_out_rows(slices, split, config.task)
    return parts_of(slices, split, config.min_brain, config.task).validation


def _probabilities(predictor: Predictor, slices: SliceSet, rows: Rows, *, smooth: bool) -> FloatArray:
    if not smooth:
        return predict_rows(predictor, slices, rows)
    neighbours = neighbours_in(slices.table)[rows]  # unlabelled ones, too
    needed, places = np.unique(neighbours, return_inverse=True)
    return smoothed(predict_rows(predictor, slices, needed), places.reshape(neighbours.shape))


def _judged(
    folder: RunFolder,
    predictor: Predictor,
    fingerprint: str,
    table: pd.DataFrame,
    validation: Predictions,
    chosen: _Chosen,
    how: _How,
) -> Evaluation:
    given = as_predictions(table)
    (truth, tops), (chosen_truth, chosen_tops) = (_of_patients(one) for one in (given, validation))
    of_patients = np.arange(len(given.patients))
    return Evaluation(
        ichsearch=__version__,
        run=load_space(folder.space).name,
        trials=list(predictor.trials),
        weights=list(predictor.weights),
        flip=predictor.flip,
        smoothed=how.smooth,
        fingerprint=fingerprint,
        part=how.part,
        slices=len(given.slices),
        patients=len(given.patients),
        patients_left_out=chosen.left_out,
        other_key=chosen.other_key,
        images_compared=chosen.images_compared,
        label_level=how.label_level,
        positive_slices=_counts(given.labels, given.positive),
        positive_patients=_counts(given.labels, truth),
        scores=intervals(given),
        slice_thresholds=_applied(
            points_of(validation.labels, validation.positive, validation.probabilities),
            given.labels, given.positive, given.probabilities, given.of_patient,
        ),
        patient_thresholds=_applied(
            points_of(validation.labels, chosen_truth, chosen_tops), given.labels, truth, tops, of_patients
        ),
    )  # fmt: skip


def _of_patients(given: Predictions) -> tuple[BoolArray, FloatArray]:
    return patient_level(given.positive, given.probabilities, given.of_patient.astype(np.object_))


def _counts(labels: Sequence[str], positive: BoolArray) -> dict[str, int]:
    return dict(zip(labels, positive.sum(axis=0).tolist(), strict=True))


def _applied(
    points: dict[str, dict[str, OperatingPoint | None]],
    labels: Sequence[str],
    positive: BoolArray,
    scores: FloatArray,
    of_patient: PatientNumbers,
) -> Points:
    """What each threshold gives on these slices, or patients."""
    return {
        label: {
            name: _applied_point(point, positive[:, column], scores[:, column], of_patient) if point else None
            for name, point in points[label].items()
        }
        for column, label in enumerate(labels)
    }


def _applied_point(
    point: OperatingPoint, positive: BoolArray, scores: FloatArray, of_patient: PatientNumbers
) -> AppliedPoint:
    alarm = scores >= point.threshold
    sensitivity, specificity = _shares([alarm & positive, ~alarm & ~positive], [positive, ~positive], of_patient)
    return AppliedPoint(
        threshold=point.threshold,
        chosen_sensitivity=point.sensitivity,
        chosen_specificity=point.specificity,
        sensitivity=sensitivity,
        specificity=specificity,
    )


def _shares(right: Sequence[BoolArray], of: Sequence[BoolArray], of_patient: PatientNumbers) -> list[Interval | None]:
    """The share of `of` that is `right`, with intervals over patients; None where there is none of it."""
    patients = int(of_patient.max()) + 1
    tops, bottoms = ([np.bincount(of_patient[part], minlength=patients) for part in parts] for parts in (right, of))

    def shares(weights: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):  # 0 / 0: a resample without any
            return np.stack([(weights @ top) / (weights @ bottom) for top, bottom in zip(tops, bottoms, strict=True)])

    statistic: Statistic = shares
    return [share.interval for share in resample(statistic, patients)]


def _keep(folder: RunFolder, evaluation: Evaluation, table: pd.DataFrame) -> Path:
    model = evaluation.trials[0] if len(evaluation.trials) == 1 and not evaluation.flip else "ensemble"
    parts = [
        model,
        evaluation.fingerprint[:NAME_DIGITS],
        evaluation.part,
        *(["smoothed"] if evaluation.smoothed else []),
    ]
    path = folder.evaluations / f"{'-'.join(parts)}.json"
    with written_aside(path.with_suffix(".parquet")) as aside:
        table.to_parquet(aside, index=False)
    write_json(path, evaluation.model_dump())
    return path

"""A run's model at work on raw DICOM: series by series, so that memory does not grow with the folder.

In: a `Predictor`, a folder of DICOM files. Out: tables of probabilities, Kaggle's form, overlays; every file accounted
for.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from ichsearch.deploy.models import BATCH, Predictor, series_neighbours
from ichsearch.deploy.outcome import Outcome, Targets
from ichsearch.deploy.overlays import Overlays
from ichsearch.deploy.prediction_files import (
    AddRefused,
    AddSeries,
    AddStudy,
    Scored,
    kaggle_form,
    slice_table,
    study_table,
)
from ichsearch.deploy.series import DicomFolder, Progress, Refused, Series, open_dicom_folder
from ichsearch.deploy.smoothing import smoothed
from ichsearch.deploy.targets import folder_aside
from ichsearch.report.statistics import read_predictions
from ichsearch.shards.accounting import nothing_readable, quarantine_rejected, write_quarantine
from ichsearch.shards.identity import home_folder, load_key
from ichsearch.shards.manifest import Settings
from ichsearch.shards.plan import Rejection
from ichsearch.storage import FoundFile, open_folder, with_state

TOGETHER: Final = 2 * BATCH
"""Series are predicted together until they have so many slices: short ones would leave a GPU idle."""

Item = TypeVar("Item")


class _Tables(NamedTuple):
    """Open files, each as a function that adds to it."""

    add_slices: list[AddSeries]
    add_study: AddStudy
    add_guessed: AddRefused
    overlays: Overlays | None


def predict_folder(
    predictor: Predictor, dicom: str, targets: Targets, *, smooth: bool = False, on_progress: Progress = lambda *_: None
) -> Outcome:
    """Predict all slices below a DICOM folder; the files are whole, or absent.

    Args:
        predictor: of a run.
        dicom: folder or URI.
        targets: what is written.
        smooth: average over neighbouring slices.
        on_progress: called with a stage's name, what is done of it, and how much there is.

    Raises:
        ConfigError: the model cannot give what is wanted.
        DataError: the folder cannot be read, or holds no usable slice.
    """
    targets.check(predictor)
    found = open_dicom_folder(dicom, on_progress)
    outcome = Outcome(found.files, found.duplicates, refused=list(found.refused))
    with ExitStack() as stack:
        tables = _opened(stack, predictor, targets)
        outcome.guessed = tables.add_guessed(found.refused)
        for study, of_study in groupby(_scored(predictor, found, smooth), lambda one: one.series.study):
            _add_study(tables, study, of_study, outcome)
            on_progress("slices", outcome.slices, found.slices)
        rejections = [Rejection(file.location, _n_bytes(file), file.reason) for file in outcome.refused]
        if not outcome.slices:
            raise nothing_readable(quarantine_rejected(rejections, load_key(home_folder())))
        on_progress("slices", found.slices, found.slices)
        outcome.drawn = tables.overlays.drawn if tables.overlays else 0
        _write_quarantine(predictor, dicom, targets.quarantine, rejections)
    return outcome


def _opened(stack: ExitStack, predictor: Predictor, targets: Targets) -> _Tables:
    labels, overlays = predictor.labels, None
    add_slices = [stack.enter_context(slice_table(targets.table, labels))]
    add_study = stack.enter_context(study_table(targets.studies, labels))
    add_guessed: AddRefused = _none_guessed
    if targets.kaggle is not None:
        prevalence = read_predictions(predictor.validation).positive.mean(axis=0)
        add, add_guessed = stack.enter_context(kaggle_form(targets.kaggle, prevalence))
        add_slices.append(add)
    if targets.overlays is not None:
        overlays = Overlays(stack.enter_context(folder_aside(targets.overlays, "--overlays")), predictor)
        add_slices.append(overlays.add)
    return _Tables(add_slices, add_study, add_guessed, overlays)


def _none_guessed(_: Sequence[Refused]) -> int:
    return 0


def _add_study(tables: _Tables, study: str, of_study: Iterable[Scored], outcome: Outcome) -> None:
    probabilities = []
    for scored in of_study:
        for add in tables.add_slices:
            add(scored)
        outcome.guessed += tables.add_guessed(scored.series.refused)
        outcome.refused += scored.series.refused
        outcome.slices += len(scored.series.slices)
        probabilities.append(scored.probabilities)
    of_slices = np.concatenate(probabilities)
    if len(of_slices):
        tables.add_study(study, of_slices)
        outcome.studies += 1
    if tables.overlays:
        tables.overlays.end_study()


def _scored(predictor: Predictor, found: DicomFolder, smooth: bool) -> Iterator[Scored]:
    """All series with what is said of them."""
    preprocessing, first = predictor.preprocessing, 1
    for group in _together(_ahead(found.series(preprocessing.size, preprocessing.crop))):
        lengths = [len(series.slices) for series in group]
        starts = np.cumsum([0, *lengths[:-1]])
        places = [series_neighbours(length) for length in lengths]
        neighbours = np.concatenate([start + own for start, own in zip(starts, places, strict=True)])
        hu = np.concatenate([series.hu for series in group]) if len(group) > 1 else group[0].hu
        probabilities = predictor.predict(hu, neighbours)
        probabilities = smoothed(probabilities, neighbours) if smooth else probabilities
        for series, start, own in zip(group, starts, places, strict=True):
            yield Scored(series, first, probabilities[start : start + len(own)], own)
            first += len(own)


def _together(series: Iterable[Series]) -> Iterator[list[Series]]:
    group: list[Series] = []
    for one in series:
        group.append(one)
        if sum(len(each.slices) for each in group) >= TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, the next one made in a thread while this one is used: a GPU need not wait for DICOM."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        future = thread.submit(next, items, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def _n_bytes(file: Refused) -> int:
    return with_state(FoundFile(file.location, 0, 0)).n_bytes


def _write_quarantine(predictor: Predictor, dicom: str, path: Path, rejections: list[Rejection]) -> None:
    """As preprocessing does: names are keyed hashes, and the list that tells which file is which stays private."""
    if not rejections:
        path.unlink(missing_ok=True)
        return
    key, preprocessing = load_key(home_folder()), predictor.preprocessing
    source = key.hash("predicted", open_folder(dicom).location)
    settings = Settings(size=preprocessing.size, crop=preprocessing.crop, key_id=key.id, source_id=source)
    locations = [item.location for item in rejections]
    quarantined = quarantine_rejected(rejections, key)
    write_quarantine(open_folder(path.parent), quarantined, locations, key, settings, name=path.name)

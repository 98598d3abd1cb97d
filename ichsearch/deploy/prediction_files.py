"""The tables of a prediction: a row a slice, a row a study, and Kaggle's form.

In: scored series, study by study. Out: CSV files of mode 0600, because they name studies and slices by their UIDs: that
is how an image is found again. They name no patient, no path and no other text of a header.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ichsearch.deploy.series import Refused, Series
from ichsearch.deploy.smoothing import Neighbours
from ichsearch.deploy.targets import private_csv
from ichsearch.errors import ConfigError
from ichsearch.files import as_cell
from ichsearch.labels import LABELS
from ichsearch.train.metrics import TOP_SLICES, FloatArray

DIGITS: Final = 8


class Scored(NamedTuple):
    """A series with what is said of it.

    Attributes:
        first: number of its first slice among all.
        probabilities: (N, L).
        neighbours: (N, 3) places of the slice below each, the slice, the slice above.
    """

    series: Series
    first: int
    probabilities: FloatArray
    neighbours: Neighbours


AddSeries = Callable[[Scored], None]
AddStudy = Callable[[str, FloatArray], None]
AddRefused = Callable[[Sequence[Refused]], int]


def study_probabilities(of_slices: FloatArray) -> FloatArray:
    """(L,) of a study from (N, L) of its slices: the mean of the three highest, as patients are judged by."""
    highest: FloatArray = np.sort(of_slices, axis=0)[-TOP_SLICES:].mean(axis=0)
    return highest


@contextmanager
def slice_table(path: Path, labels: Sequence[str]) -> Iterator[AddSeries]:
    """`number,study,series,slice,position_mm,probability_<label>…`; an overlay's name is its slice's number."""
    with private_csv(path, ["number", "study", "series", "slice", "position_mm", *_columns(labels)]) as write:

        def add(scored: Scored) -> None:
            series, names = scored.series, (as_cell(scored.series.study), as_cell(scored.series.series))
            rows = zip(series.slices, series.positions_mm, scored.probabilities, strict=True)
            for number, (uid, position_mm, values) in enumerate(rows, start=scored.first):
                write([number, *names, as_cell(uid), f"{position_mm:.2f}", *_texts(values)])

        yield add


@contextmanager
def study_table(path: Path, labels: Sequence[str]) -> Iterator[AddStudy]:
    """`study,slices,probability_<label>…`."""
    with private_csv(path, ["study", "slices", *_columns(labels)]) as write:

        def add(study: str, of_slices: FloatArray) -> None:
            write([as_cell(study), len(of_slices), *_texts(study_probabilities(of_slices))])

        yield add


def require_all_labels(labels: Sequence[str]) -> None:
    """Refuse Kaggle's form for a model that does not know all its labels.

    Raises:
        ConfigError: with what to do.
    """
    if tuple(labels) != LABELS:
        raise ConfigError(
            f"Kaggle's form has six labels, but this model knows {', '.join(labels)}; "
            "take a run with task: multilabel, or leave --kaggle out"
        )


@contextmanager
def kaggle_form(path: Path, prevalence: FloatArray) -> Iterator[tuple[AddSeries, AddRefused]]:
    """`ID,Label`, six rows `<SOPInstanceUID>_<label>` a slice in the order of `LABELS`, each slice once.

    Kaggle refuses a file that lacks a slice. So one that cannot be read, but whose header can, gets the `prevalence`
    (6,): the best guess of whoever has not seen it. The second function adds those, and returns how many they are.
    """
    with private_csv(path, ["ID", "Label"]) as write:

        def add_slice(uid: str, values: FloatArray) -> None:
            for label, text in zip(LABELS, _texts(values), strict=True):
                write([as_cell(f"{uid}_{label}"), text])

        def add(scored: Scored) -> None:
            for uid, values in zip(scored.series.slices, scored.probabilities, strict=True):
                add_slice(uid, values)

        def add_refused(files: Sequence[Refused]) -> int:
            named = [file.slice for file in files if file.slice]
            for uid in named:
                add_slice(uid, prevalence)
            return len(named)

        yield add, add_refused


def _columns(labels: Sequence[str]) -> list[str]:
    return [f"probability_{label}" for label in labels]


def _texts(values: FloatArray) -> list[str]:
    return [f"{value:.{DIGITS}g}" for value in values]

"""Raw DICOM files as the slices that models see, series by series.

In: a folder of DICOM files, how slices are to be made. Out: `Series` in HU, and the files that are no usable slices
with the reason: ok + duplicate + refused = found. Memory is bounded by some 400 bytes a file and, beside the slices of
the largest series, `FRAMES_BYTES`: of a longer series frames are decoded twice, first for their common box.
It knows neither torch nor the search.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ichsearch.dicom.brain import CropBox, cropped, locate_brain, union_box
from ichsearch.dicom.find import find_files
from ichsearch.dicom.header import read_header, slice_header
from ichsearch.dicom.memory import keep_freed_memory
from ichsearch.dicom.pixels import Int16Image, hash_of, read_image
from ichsearch.dicom.reasons import RejectedError
from ichsearch.errors import DataError

HEADERS: Final = "headers"
SAID_EVERY: Final = 256
FRAMES_BYTES: Final = 128 * 2**20
"""Of whole frames that wait for their series' box: 256 of 512 x 512."""
Crop = Literal["series", "slice"]
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, what is done of it, and how much there is."""


class Place(NamedTuple):
    """A file that has a header: which slice it holds, and where that lies in its series."""

    study: str
    series: str
    position_mm: float
    slice: str
    location: str


class Refused(NamedTuple):
    """A file that is no usable slice; `slice` is its SOPInstanceUID where it is the only file of it that is known."""

    location: str
    reason: str
    slice: str = ""


@dataclass(frozen=True)
class Series:
    """The usable slices of one series, from foot to head.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        slices: SOPInstanceUIDs of the N slices.
        positions_mm: (N,) of each on the series' normal.
        hu: (N, size, size) int16.
        refused: the series' files whose pixels are no use.
    """

    study: str
    series: str
    slices: tuple[str, ...]
    positions_mm: npt.NDArray[np.float64]
    hu: Int16Image
    refused: tuple[Refused, ...]


class _Decoded(NamedTuple):
    place: Place
    side: int
    box: CropBox | None
    hu: Int16Image | None  # None: to be decoded again


@dataclass(frozen=True)
class DicomFolder:
    """All files of a folder whose headers tell a series, one a slice, and those that do not.

    Attributes:
        refused: files without a usable header, and of slices that have several files those that are no use.
        duplicates: files that hold a slice which another one holds as well.
    """

    refused: tuple[Refused, ...]
    duplicates: int
    _places: tuple[Place, ...]

    @property
    def files(self) -> int:
        """How many files there are in all."""
        return len(self.refused) + self.duplicates + len(self._places)

    @property
    def slices(self) -> int:
        """How many of them may hold a slice."""
        return len(self._places)

    def series(self, size: int, crop: Crop) -> Iterator[Series]:
        """Each series, decoded when it is asked for and made as shards hold slices; those of a study together."""
        keep_freed_memory()
        for (study, series), places in groupby(self._places, key=lambda place: (place.study, place.series)):
            yield _made(study, series, list(places), size, crop)


def open_dicom_folder(folder: str, on_progress: Progress = lambda *_: None) -> DicomFolder:
    """Read the headers of all files below a folder.

    Raises:
        DataError: the folder is missing or cannot be listed.
    """
    refused: list[Refused] = []
    places: list[Place] = []
    shared: dict[str, str] = {}  # one copy of what the slices of a series have in common
    for number, file in enumerate(find_files(folder), start=1):
        try:
            header = read_header(file.location)
        except RejectedError as error:
            refused.append(Refused(file.location, error.reason))
        else:
            study, series = (shared.setdefault(uid, uid) for uid in (header.study_uid, header.series_uid))
            places.append(Place(study, series, header.position_mm, header.sop_uid, file.location))
        if number % SAID_EVERY == 0:
            on_progress(HEADERS, number, number + 1)
    on_progress(HEADERS, len(refused) + len(places), len(refused) + len(places))
    kept, duplicates, useless = _one_a_slice(places)
    return DicomFolder((*refused, *useless), duplicates, tuple(sorted(kept)))


def _one_a_slice(places: Iterable[Place]) -> tuple[list[Place], int, list[Refused]]:
    """The files that are kept, one for each SOPInstanceUID, the number of their duplicates, and what is refused."""
    kept: list[Place] = []
    refused: list[Refused] = []
    duplicates = 0
    by_slice = sorted(places, key=lambda place: (place.slice, place.location))
    for _, group in groupby(by_slice, key=lambda place: place.slice):
        copies = list(group)
        chosen, surplus, useless = _chosen(copies) if len(copies) > 1 else (copies, 0, [])
        kept += chosen
        duplicates += surplus
        refused += useless
    return kept, duplicates, refused


def _chosen(copies: list[Place]) -> tuple[list[Place], int, list[Refused]]:
    """Of the readable files of one slice the first, as preprocessing keeps it; none of them if their images differ.

    Where none is readable the first is kept: it is refused when it is decoded.
    """
    images = [_image_hash(place.location) for place in copies]
    readable = [place for place, image in zip(copies, images, strict=True) if isinstance(image, str)]
    useless = [
        Refused(place.location, image.reason)
        for place, image in zip(copies, images, strict=True)
        if isinstance(image, RejectedError)
    ]
    if not readable:
        return copies[:1], 0, useless[1:]
    if len({image for image in images if isinstance(image, str)}) == 1:
        return readable[:1], len(readable) - 1, useless
    names = [copies[0].slice, *[""] * (len(readable) - 1)]  # the slice is missing once
    conflicting = [
        Refused(place.location, "conflicting_duplicate", name) for place, name in zip(readable, names, strict=True)
    ]
    return [], 0, conflicting + useless


def _image_hash(location: str) -> str | RejectedError:
    try:
        image = read_image(location)
    except RejectedError as error:
        return error
    return f"{len(image.hu)} {hash_of(image.hu)}"


def _made(study: str, series: str, places: list[Place], size: int, crop: Crop) -> Series:
    decoded: list[_Decoded] = []
    refused: list[Refused] = []
    held_bytes = 0
    for place in places:
        try:
            item = _decoded(place)
        except RejectedError as error:
            refused.append(Refused(place.location, error.reason, place.slice))
            continue
        held_bytes += 2 * item.side**2
        decoded.append(item if held_bytes <= FRAMES_BYTES else item._replace(hu=None))
    hu = np.empty((len(decoded), size, size), np.int16)
    for row, (item, box) in enumerate(zip(decoded, _boxes(decoded, crop), strict=True)):
        hu[row] = cropped(_frame(item), box, size)
    return Series(
        study=study,
        series=series,
        slices=tuple(item.place.slice for item in decoded),
        positions_mm=np.array([item.place.position_mm for item in decoded], np.float64),
        hu=hu,
        refused=tuple(refused),
    )


def _decoded(place: Place) -> _Decoded:
    image = read_image(place.location)
    header = slice_header(image.elements)
    if (header.sop_uid, header.position_mm) != (place.slice, place.position_mm):  # replaced since its header was read
        raise RejectedError("unreadable")
    return _Decoded(place, len(image.hu), locate_brain(image.hu)[1], image.hu)


def _frame(item: _Decoded) -> Int16Image:
    if item.hu is not None:
        return item.hu
    try:
        return read_image(item.place.location).hu
    except RejectedError as error:
        raise DataError(
            f"files must stay as they are while they are predicted, but one became unusable ({error.reason}); "
            "predict again"
        ) from error


def _boxes(decoded: list[_Decoded], crop: Crop) -> list[CropBox]:
    """As preprocessing chooses them: one of the series for each size of frame, or each slice's own."""
    if crop == "slice":
        return [union_box([item.box], item.side) for item in decoded]
    sides = {item.side for item in decoded}
    common = {side: union_box([item.box for item in decoded if item.side == side], side) for side in sides}
    return [common[item.side] for item in decoded]

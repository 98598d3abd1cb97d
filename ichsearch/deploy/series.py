"""Raw DICOM files as the slices that models see, series by series.

In: a folder of DICOM files, how slices are to be made. Out: `Series` in HU, and the files that are no usable slices
with the reason. Memory is bounded by the largest series and the files' headers. It knows neither torch nor the search.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ichsearch.dicom.brain import CropBox, cropped, locate_brain, union_box
from ichsearch.dicom.find import find_files
from ichsearch.dicom.header import SliceHeader, read_header, slice_header
from ichsearch.dicom.pixels import Int16Image, read_image
from ichsearch.dicom.reasons import RejectedError


class Place(NamedTuple):
    """A file that has a header: where it lies in its series."""

    position_mm: float
    slice: str
    location: str


class Refused(NamedTuple):
    """A file that is no usable slice."""

    location: str
    reason: str


@dataclass(frozen=True)
class Series:
    """The usable slices of one series, from foot to head.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        slices: SOPInstanceUIDs of the N slices.
        hu: (N, size, size) int16.
        refused: the series' files whose pixels are no use.
        duplicates: files that hold a slice which is there already.
    """

    study: str
    series: str
    slices: tuple[str, ...]
    hu: Int16Image
    refused: tuple[Refused, ...]
    duplicates: int


class _Decoded(NamedTuple):
    place: Place
    hu: Int16Image
    stored_hash: str
    box: CropBox | None


@dataclass(frozen=True)
class DicomFolder:
    """All files of a folder whose headers tell a series, and those that do not."""

    refused: tuple[Refused, ...]
    _by_series: dict[tuple[str, str], list[Place]]

    @property
    def files(self) -> int:
        """How many files there are in all."""
        return len(self.refused) + sum(map(len, self._by_series.values()))

    def series(self, size: int, crop: Literal["series", "slice"]) -> Iterator[Series]:
        """Each series, decoded when it is asked for and made as shards hold slices."""
        for (study, series), places in sorted(self._by_series.items()):
            yield _made(study, series, sorted(places), size, crop)


def open_dicom_folder(folder: str) -> DicomFolder:
    """Read the headers of all files below a folder.

    Raises:
        DataError: the folder is missing or cannot be listed.
    """
    refused: list[Refused] = []
    by_series: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
    for file in find_files(folder):
        try:
            header = read_header(file.location)
        except RejectedError as error:
            refused.append(Refused(file.location, error.reason))
            continue
        place = Place(header.position_mm, header.sop_uid, file.location)
        by_series[header.study_uid, header.series_uid].append(place)
    return DicomFolder(tuple(refused), dict(by_series))


def _made(study: str, series: str, places: list[Place], size: int, crop: Literal["series", "slice"]) -> Series:
    decoded: list[_Decoded] = []
    refused: list[Refused] = []
    for place in places:
        try:
            decoded.append(_decoded(place))
        except RejectedError as error:
            refused.append(Refused(place.location, error.reason))
    kept, conflicting = _one_a_slice(decoded)
    refused += [Refused(item.place.location, "conflicting_duplicate") for item in conflicting]
    images = [cropped(item.hu, box, size) for item, box in zip(kept, _boxes(kept, crop), strict=True)]
    return Series(
        study=study,
        series=series,
        slices=tuple(item.place.slice for item in kept),
        hu=np.stack(images) if images else np.empty((0, size, size), np.int16),
        refused=tuple(refused),
        duplicates=len(decoded) - len(kept) - len(conflicting),
    )


def _decoded(place: Place) -> _Decoded:
    image = read_image(place.location)
    header: SliceHeader = slice_header(image.elements)
    if (header.sop_uid, header.position_mm) != (place.slice, place.position_mm):  # replaced since its header was read
        raise RejectedError("unreadable")
    return _Decoded(place, image.hu, image.stored_hash, locate_brain(image.hu)[1])


def _one_a_slice(decoded: list[_Decoded]) -> tuple[list[_Decoded], list[_Decoded]]:
    """One file for each SOPInstanceUID, and all files of those whose images differ."""
    images: defaultdict[str, set[str]] = defaultdict(set)
    first: dict[str, _Decoded] = {}
    for item in decoded:
        images[item.place.slice].add(item.stored_hash)
        first.setdefault(item.place.slice, item)
    conflicting = [item for item in decoded if len(images[item.place.slice]) > 1]
    return [item for uid, item in first.items() if len(images[uid]) == 1], conflicting


def _boxes(decoded: list[_Decoded], crop: Literal["series", "slice"]) -> list[CropBox]:
    """As preprocessing chooses them: one of the series for each size of frame, or each slice's own."""
    if crop == "slice":
        return [union_box([item.box], len(item.hu)) for item in decoded]
    sides = {len(item.hu) for item in decoded}
    common = {side: union_box([item.box for item in decoded if len(item.hu) == side], side) for side in sides}
    return [common[len(item.hu)] for item in decoded]

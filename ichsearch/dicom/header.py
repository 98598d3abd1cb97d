"""What a file's header says: who the slice belongs to and where it lies; or why it cannot be used.

In: a location. Out: a `SliceHeader`, or `RejectedError` with a reason from the fixed list.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ichsearch.dicom.decoder import DECODER
from ichsearch.dicom.elements import Elements, NotPlainError, walk
from ichsearch.dicom.find import read_content
from ichsearch.dicom.reasons import RejectedError

CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MIN_AXIAL_COSINE: Final = 0.5
MAX_COORDINATE_MM: Final = 1e5
"""A hundred metres: no scanner is larger."""
HEADER_BYTES: Final = 16 * 2**10
"""The first piece of a file that is read for its header; it holds all of most headers."""


class SliceHeader(NamedTuple):
    """Identifiers and place of one slice; `patient_id` is empty when the file has none."""

    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    position_mm: float


def read_header(location: str | Path) -> SliceHeader:
    """Read one file's header without its pixels.

    Raises:
        RejectedError: the file is no axial CT slice, or lacks what is needed to place it.
    """
    return slice_header(_read_elements(str(location)))


def slice_header(elements: Elements) -> SliceHeader:
    """Identifiers and place from the elements of a file; errors as of `read_header`."""
    if (elements.optional_text("Modality") or "CT") != "CT":
        raise RejectedError("not_ct_image")
    if (elements.optional_text("SOPClassUID") or CT_IMAGE_STORAGE) != CT_IMAGE_STORAGE:
        raise RejectedError("not_ct_image")
    kinds = [value.strip() for value in elements.optional_text("ImageType").split("\\")]
    if kinds[2:3] == ["LOCALIZER"]:  # PS3.3 C.8.2.1.1.1
        raise RejectedError("not_axial")
    if elements.optional_text("NumberOfFrames") and elements.numbers("NumberOfFrames", count=1) != [1]:
        raise RejectedError("multi_frame")
    return SliceHeader(
        sop_uid=elements.text("SOPInstanceUID"),
        study_uid=elements.text("StudyInstanceUID"),
        series_uid=elements.text("SeriesInstanceUID"),
        patient_id=elements.optional_text("PatientID"),
        position_mm=position_mm(_origin_mm(elements), elements.numbers("ImageOrientationPatient", count=6)),
    )


def _origin_mm(elements: Elements) -> list[float]:
    origin_mm = elements.numbers("ImagePositionPatient", count=3)
    if max(map(abs, origin_mm)) > MAX_COORDINATE_MM:
        raise RejectedError("bad_value", "ImagePositionPatient")
    return origin_mm


def _read_elements(location: str) -> Elements:
    with suppress(NotPlainError):
        elements = walk(read_content(location, HEADER_BYTES))
        if elements.pixels is not None:
            return elements
    content = read_content(location)
    try:
        return walk(content)
    except NotPlainError:
        return DECODER.read(content, pixels=False)[0]


def unit_normal(orientation: list[float]) -> tuple[float, float, float]:
    """The unit normal of a slice, pointing to the head's end of the body (PS3.3 C.7.6.2.1.1).

    Raises:
        RejectedError: the orientation is no pair of directions.
    """
    a, b, c, d, e, f = orientation
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = math.sqrt(x * x + y * y + z * z)
    if not MIN_AXIAL_COSINE <= length <= 1 / MIN_AXIAL_COSINE:
        raise RejectedError("bad_value", "ImageOrientationPatient")
    upward = length if z >= 0 else -length
    return x / upward, y / upward, z / upward


def position_mm(origin_mm: list[float], orientation: list[float]) -> float:
    """Projection of a slice's origin on its normal, growing towards the head (PS3.3 C.7.6.2.1.1).

    Raises:
        RejectedError: the orientation is no pair of directions, or the slice is not axial.
    """
    normal = unit_normal(orientation)
    if normal[2] < MIN_AXIAL_COSINE:
        raise RejectedError("not_axial")
    return sum(along * length_mm for along, length_mm in zip(normal, origin_mm, strict=True))

"""What a file's header says: who the slice belongs to and where it lies; or why it cannot be used.

In: a path. Out: a `SliceHeader`, or `RejectedError` with a reason from the fixed list in `REASONS`.
"""

import math
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

# Identifiers of real cohorts are no valid UIDs (RSNA: ID_12cadc6af): they are opaque text, so checking them is in vain.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

REASONS: Final = {
    "unreadable": "the file system refused it, or it is a link to nowhere, a pipe or a socket",
    "not_dicom": "no DICOM file",
    "damaged": "the header cannot be parsed",
    "not_ct_image": "another modality or object than a CT image",
    "not_axial": "the slice normal points away from the body's axis (a localizer or a reformat)",
    "multi_frame": "more than one frame",
    "missing_tag": "a needed header element is missing",
    "bad_value": "a header element has a value that cannot be",
    "over_limit": "larger than a CT slice can be",
    "unsupported_syntax": "no decoder for its compression",
    "truncated_pixels": "fewer pixels than rows × columns",
    "decoder_crash": "the decoder gave up",
    "constant": "every pixel has the same value",
    "conflicting_duplicate": "another file has the same SOPInstanceUID and other pixels",
}
MAX_FILE_BYTES: Final = 64 * 2**20
MAX_INFLATED_BYTES: Final = 256 * 2**20
MAX_SIDE: Final = 4096
CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MIN_AXIAL_COSINE: Final = 0.5
HEADER_TAGS: Final = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames",
]  # fmt: skip


class RejectedError(Exception):
    """A file that is no usable slice; `reason` is a key of `REASONS`, with the tag's keyword where that helps."""

    def __init__(self, reason: str, tag: str = "") -> None:
        assert reason in REASONS
        self.reason = f"{reason}:{tag}" if tag else reason
        super().__init__(self.reason)


class SliceHeader(NamedTuple):
    """Identifiers and place of one slice; `patient_id` is empty when the file has none."""

    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    position_mm: float


def read_header(path: Path) -> SliceHeader:
    """Read one file's header without its pixels.

    Raises:
        RejectedError: the file is no axial CT slice, or lacks what is needed to place it.
    """
    ds = read_dataset(path, HEADER_TAGS, pixels=False)
    if ds.get("Modality", "CT") != "CT" or ds.get("SOPClassUID", CT_IMAGE_STORAGE) != CT_IMAGE_STORAGE:
        raise RejectedError("not_ct_image")
    if _value(ds, "NumberOfFrames") not in (None, "", 1):
        raise RejectedError("multi_frame")
    return SliceHeader(
        sop_uid=text(ds, "SOPInstanceUID"),
        study_uid=text(ds, "StudyInstanceUID"),
        series_uid=text(ds, "SeriesInstanceUID"),
        patient_id=str(ds.get("PatientID") or "").strip(),
        position_mm=position_mm(
            numbers(ds, "ImagePositionPatient", count=3), numbers(ds, "ImageOrientationPatient", count=6)
        ),
    )


def read_dataset(path: Path, tags: list[str], *, pixels: bool) -> Dataset:
    """Parse the wanted header elements of a file, with its pixels or without.

    Raises:
        RejectedError: the file cannot be opened, is too large, or is no DICOM file that can be parsed.
    """
    try:
        if not path.is_file():
            raise RejectedError("unreadable")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RejectedError("over_limit", "file")
        _refuse_bomb(path)
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags))
    except InvalidDicomError:
        raise RejectedError("not_dicom") from None
    except OSError:
        raise RejectedError("unreadable") from None
    except RejectedError:
        raise
    except Exception:  # noqa: BLE001 - pydicom's parser raises whatever a damaged file makes it stumble over
        raise RejectedError("damaged") from None


def _refuse_bomb(path: Path) -> None:
    """Inflate a deflated data set in small pieces before pydicom does it in one (PS3.5 A.5)."""
    with path.open("rb") as file:
        if DeflatedExplicitVRLittleEndian.encode() not in (start := file.read(1024)):
            return
        file.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the file meta information (PS3.10 7.1)
        unpacker, waiting, inflated = zlib.decompressobj(-zlib.MAX_WBITS), file.read(), 0
    while waiting and not unpacker.eof:
        inflated += len(unpacker.decompress(waiting, 2**20))
        waiting = unpacker.unconsumed_tail
        if inflated > MAX_INFLATED_BYTES:
            raise RejectedError("over_limit", "file")


def text(ds: Dataset, keyword: str) -> str:
    """The opaque text of an identifier; `RejectedError` when it is missing."""
    value = _element(ds, keyword)
    return str(value).strip()


def numbers(ds: Dataset, keyword: str, *, count: int) -> list[float]:
    """`count` finite numbers of an element; `RejectedError` when it is missing or says something else."""
    value = _element(ds, keyword)
    try:
        values = [float(item) for item in (value if count > 1 else [value])]
    except (TypeError, ValueError):
        raise RejectedError("bad_value", keyword) from None
    if len(values) != count or not all(map(math.isfinite, values)):
        raise RejectedError("bad_value", keyword)
    return values


def _value(ds: Dataset, keyword: str) -> Any:
    try:
        return ds.get(keyword)
    except Exception:  # noqa: BLE001 - values are converted on access, and a bad one raises whatever its type raises
        raise RejectedError("bad_value", keyword) from None


def _element(ds: Dataset, keyword: str) -> Any:
    value = _value(ds, keyword)
    if value is None or value == "":
        raise RejectedError("missing_tag", keyword)
    return value


def position_mm(origin_mm: list[float], orientation: list[float]) -> float:
    """Projection of a slice's origin on its normal, growing towards the head (PS3.3 C.7.6.2.1.1).

    Raises:
        RejectedError: the orientation is no pair of directions, or the slice is not axial.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    if length < MIN_AXIAL_COSINE:
        raise RejectedError("bad_value", "ImageOrientationPatient")
    upward = normal / length * (1.0 if normal[2] >= 0 else -1.0)
    if upward[2] < MIN_AXIAL_COSINE:
        raise RejectedError("not_axial")
    return float(upward @ np.asarray(origin_mm))

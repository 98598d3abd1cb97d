"""The header elements that ichsearch reads, as the bytes that stand in a file, and their conversion.

In: a file's bytes. Out: `Elements`. The walk below reads plain little-endian files, compressed ones included, about
eight times as fast as a full parser; whatever else a file is, it says `NotPlainError` and `decoder.py` asks pydicom.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ichsearch.dicom.reasons import RejectedError

TAGS: Final = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "PatientID": 0x00100020,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "ReconstructionDiameter": 0x00181100,
    "GantryDetectorTilt": 0x00181120,
    "XRayTubeCurrent": 0x00181151,
    "Exposure": 0x00181152,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
}
"""The allow-list: no other element of a file is ever looked at (PS3.6 names and numbers)."""

PIXEL_DATA: Final = 0x7FE00010
TRANSFER_SYNTAX: Final = 0x00020010
IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"

SYNTAXES: Final = {
    IMPLICIT_LITTLE: "ImplicitVRLittleEndian",
    EXPLICIT_LITTLE: "ExplicitVRLittleEndian",
    DEFLATED_LITTLE: "DeflatedExplicitVRLittleEndian",
    EXPLICIT_BIG: "ExplicitVRBigEndian",
    "1.2.840.10008.1.2.4.50": "JPEGBaseline8Bit",
    "1.2.840.10008.1.2.4.51": "JPEGExtended12Bit",
    "1.2.840.10008.1.2.4.57": "JPEGLossless",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessSV1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.81": "JPEGLSNearLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG2000",
    "1.2.840.10008.1.2.4.201": "HTJ2KLossless",
    "1.2.840.10008.1.2.4.202": "HTJ2KLosslessRPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLELossless",
}
"""Names of transfer syntaxes (PS3.6 table A-1); a file of another one is `other`."""

_AFTER_META: Final = 0x00030000
_PREFIX_AT: Final = 128
_META_AT: Final = 132
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT_VRS: Final = frozenset({
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
})  # fmt: skip
_WANTED: Final = frozenset(TAGS.values())
MAX_VALUE_BYTES: Final = 1024
MAX_ELEMENTS: Final = 100_000
"""A walk over more has no time limit here: the decoder's process has one."""
_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHI").unpack_from
_TAG = struct.Struct("<HH").unpack_from
_LENGTH = struct.Struct("<I").unpack_from


class NotPlainError(Exception):
    """The bytes are no plain little-endian data set, or end before its pixels."""


@dataclass(frozen=True, slots=True)
class Elements:
    """The wanted elements of one file.

    Attributes:
        syntax: transfer syntax UID.
        values: raw bytes by tag.
        pixels: where PixelData stands in the file's bytes (start, end); None without, or where only pydicom knows.
        little_endian: order of the bytes of 16-bit values.
    """

    syntax: str
    values: Mapping[int, bytes]
    pixels: tuple[int, int] | None
    little_endian: bool = True

    @property
    def is_native(self) -> bool:
        """Whether the pixels stand uncompressed in little-endian order."""
        return self.syntax in (IMPLICIT_LITTLE, EXPLICIT_LITTLE)

    def optional_text(self, keyword: str) -> str:
        """An element's text without padding, '' where it is missing; bytes that are no UTF-8 survive as surrogates."""
        return self.values.get(TAGS[keyword], b"").decode("utf-8", "surrogateescape").strip(" \0\t\r\n")

    def text(self, keyword: str) -> str:
        """An element's text; `RejectedError` when it is missing or empty."""
        value = self.optional_text(keyword)
        if not value:
            raise RejectedError("missing_tag", keyword)
        return value

    def numbers(self, keyword: str, *, count: int) -> list[float]:
        """Exactly `count` finite numbers; `RejectedError` when they are missing or say something else."""
        value = self.text(keyword)
        try:
            values = [_number(part) for part in value.split("\\")]
        except ValueError:
            raise RejectedError("bad_value", keyword) from None
        if len(values) != count:
            raise RejectedError("bad_value", keyword)
        return values

    def optional_number(self, keyword: str) -> float | None:
        """The first of an element's numbers, None where it is missing or none."""
        try:
            return _number(self.optional_text(keyword).split("\\")[0])
        except ValueError:
            return None

    def short(self, keyword: str, *, signed: bool = False) -> int:
        """A 16-bit integer; `RejectedError` when it is missing or has another length."""
        value = self.values.get(TAGS[keyword], b"")
        if not value:
            raise RejectedError("missing_tag", keyword)
        if len(value) != 2:
            raise RejectedError("bad_value", keyword)
        return int.from_bytes(value, "little" if self.little_endian else "big", signed=signed)

    def optional_short(self, keyword: str, *, signed: bool = False) -> int | None:
        """A 16-bit integer, None where it is missing or has another length."""
        try:
            return self.short(keyword, signed=signed)
        except RejectedError:
            return None


def _number(text: str) -> float:
    if "_" in text:  # Python's own digit grouping is no decimal string (PS3.5 6.2)
        raise ValueError
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def walk(content: bytes) -> Elements:
    """The wanted elements of a plain little-endian file; its first bytes are enough if they reach PixelData.

    Raises:
        RejectedError: no DICOM prefix (PS3.10 7.1).
        NotPlainError: big-endian, deflated, without transfer syntax, damaged, cut, or beyond what the walk reads.
    """
    syntax, at = file_meta(content)
    if not syntax or syntax in (DEFLATED_LITTLE, EXPLICIT_BIG):
        raise NotPlainError
    try:
        values, at, length = _walk(content, at, explicit=syntax != IMPLICIT_LITTLE, wanted=_WANTED, stop=PIXEL_DATA)
    except struct.error:
        raise NotPlainError from None
    if length is None:
        return Elements(syntax, values, None)
    elements = Elements(syntax, values, (at, len(content) if length == _UNDEFINED else at + length))
    if elements.is_native == (length == _UNDEFINED):
        raise NotPlainError  # PS3.5 A.4: compressed pixels have no length of their own, others have
    return elements


def file_meta(content: bytes) -> tuple[str, int]:
    """Transfer syntax UID, '' where it is missing, and where the data set begins (PS3.10 7.1).

    Raises:
        RejectedError: no DICOM prefix.
        NotPlainError: damaged or cut.
    """
    if content[_PREFIX_AT:_META_AT] != b"DICM":
        raise RejectedError("not_dicom")
    try:
        meta, at, _ = _walk(content, _META_AT, explicit=True, wanted=frozenset({TRANSFER_SYNTAX}), stop=_AFTER_META)
        return meta.get(TRANSFER_SYNTAX, b"").decode("ascii").strip(" \0"), at
    except (struct.error, UnicodeDecodeError):
        raise NotPlainError from None


def _walk(
    content: bytes, at: int, *, explicit: bool, wanted: frozenset[int], stop: int
) -> tuple[dict[int, bytes], int, int | None]:
    """Values of the wanted elements before tag `stop`, where that begins, and for PixelData the length of its value."""
    values: dict[int, bytes] = {}
    end = len(content)
    for _ in range(MAX_ELEMENTS):
        if at >= end:
            break
        group, number = _TAG(content, at)
        if (group << 16 | number) >= stop and (group << 16 | number) != PIXEL_DATA:
            return values, at, None
        tag, length, value_at = _element(content, at, explicit)
        if tag == PIXEL_DATA:
            return values, value_at, length
        if length == _UNDEFINED:
            at = _after_sequence(content, value_at, explicit)
            continue
        at = value_at + length
        if tag in wanted:
            if length > MAX_VALUE_BYTES or at > end:
                raise NotPlainError
            values[tag] = content[value_at:at]
    if at != end:
        raise NotPlainError
    return values, at, None


def _element(content: bytes, at: int, explicit: bool) -> tuple[int, int, int]:
    """Tag, value length and start of the value of the element at `at` (PS3.5 7.1)."""
    if not explicit:
        group, number, length = _IMPLICIT(content, at)
        return group << 16 | number, length, at + 8
    group, number, vr, length = _EXPLICIT(content, at)
    if vr in _SHORT_VRS:
        return group << 16 | number, length, at + 8
    if vr not in _LONG_VRS:
        raise NotPlainError  # implicit after all, or damaged
    (length,) = _LENGTH(content, at + 8)
    if length == _UNDEFINED and vr == b"UN":
        raise NotPlainError  # its content is implicit (PS3.5 6.2.2)
    return group << 16 | number, length, at + 12


def _after_sequence(content: bytes, at: int, explicit: bool) -> int:
    """Where a sequence of undefined length whose first item is at `at` ends, sequences inside it included."""
    depth = 1
    for _ in range(MAX_ELEMENTS):
        if not depth:
            return at
        group, number, length = _IMPLICIT(content, at)  # items and delimiters have no VR in either syntax
        tag = group << 16 | number
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
            at += 8
        elif tag == _ITEM:
            depth += length == _UNDEFINED
            at += 8 + (0 if length == _UNDEFINED else length)
        else:
            _, length, at = _element(content, at, explicit)
            depth += length == _UNDEFINED
            at += 0 if length == _UNDEFINED else length
    raise NotPlainError

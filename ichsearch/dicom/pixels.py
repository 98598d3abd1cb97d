"""A file's pixels in Hounsfield units, whatever its scanner wrote.

In: a path. Out: a `SliceImage` (int16 HU, square, with the facts of its encoding), or `RejectedError`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ichsearch.dicom.header import MAX_SIDE, RejectedError, numbers, read_dataset

MIN_HU: Final = -1024
MAX_HU: Final = 3071
PIXEL_TAGS: Final = [
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope", "NumberOfFrames", "PlanarConfiguration",
    "PixelData",
]  # fmt: skip

Int16Image = npt.NDArray[np.int16]
Int32Image = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file holds its pixels (PS3.3 C.7.6.3), and how they become HU (C.11.1)."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    inverted: bool
    spacing_mm: tuple[float, float]

    @property
    def wrapped(self) -> bool:
        """Whether signed 12-bit values were written as unsigned (fastai's `fix_pxrepr` condition)."""
        return self.bits_stored == 12 and not self.signed and self.intercept > -100


@dataclass(frozen=True, slots=True)
class SliceImage:
    """One slice in HU, (side, side) int16 in [-1024, 3071]; a frame that was not square is centred in air."""

    hu: Int16Image
    spacing_mm: tuple[float, float]
    bits_stored: int
    signed: bool
    fixed_wrap: bool
    stored_sha256: str


def read_image(path: Path) -> SliceImage:
    """Decode one file into HU.

    Raises:
        RejectedError: a needed element is missing or impossible, or the pixels are cut, constant or undecodable.
    """
    ds = read_dataset(path, PIXEL_TAGS, pixels=True)
    encoding = read_encoding(ds)
    stored = stored_values(ds, encoding)
    if stored.min() == stored.max():
        raise RejectedError("constant")
    return SliceImage(
        hu=squared(to_hu(stored, encoding)),
        spacing_mm=encoding.spacing_mm,
        bits_stored=encoding.bits_stored,
        signed=encoding.signed,
        fixed_wrap=encoding.wrapped,
        stored_sha256=hashlib.sha256(stored.tobytes()).hexdigest(),
    )


def read_encoding(ds: Dataset) -> Encoding:
    """Check and collect the elements that say how pixels are held; `RejectedError` for what cannot be."""
    rows, columns, allocated, stored, representation = (
        int(numbers(ds, keyword, count=1)[0])
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    for keyword, side in (("Rows", rows), ("Columns", columns)):
        if not 1 <= side <= MAX_SIDE:
            raise RejectedError("over_limit", keyword)
    if allocated != 16:
        raise RejectedError("bad_value", "BitsAllocated")
    if not 8 <= stored <= allocated:
        raise RejectedError("bad_value", "BitsStored")
    photometric = str(ds.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RejectedError("bad_value" if photometric else "missing_tag", "PhotometricInterpretation")
    slope = numbers(ds, "RescaleSlope", count=1)[0]
    if slope == 0:
        raise RejectedError("bad_value", "RescaleSlope")
    intercept = numbers(ds, "RescaleIntercept", count=1)[0]
    if abs(intercept) > 2**15:
        raise RejectedError("bad_value", "RescaleIntercept")
    row_mm, column_mm = numbers(ds, "PixelSpacing", count=2)
    if row_mm <= 0 or column_mm <= 0:
        raise RejectedError("bad_value", "PixelSpacing")
    return Encoding(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=representation == 1,
        slope=slope,
        intercept=intercept,
        inverted=photometric == "MONOCHROME1",
        spacing_mm=(row_mm, column_mm),
    )


def stored_values(ds: Dataset, encoding: Encoding) -> npt.NDArray[np.int16 | np.uint16]:
    """The stored values, (rows, columns) int16 or uint16, garbage above the stored bits removed.

    Raises:
        RejectedError: no pixels, fewer than the frame needs, or no decoder that can read them.
    """
    if "PixelData" not in ds:
        raise RejectedError("missing_tag", "PixelData")
    dtype: np.dtype[Any] = np.dtype("<i2" if encoding.signed else "<u2")
    shape = (encoding.rows, encoding.columns)
    if ds.file_meta.get("TransferSyntaxUID") in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        data: bytes = ds.PixelData
        if len(data) < encoding.rows * encoding.columns * dtype.itemsize:
            raise RejectedError("truncated_pixels")
        frame = np.frombuffer(data, dtype, encoding.rows * encoding.columns).reshape(shape)
    else:
        frame = _decoded(ds, shape, dtype)
    unused_bits = 16 - encoding.bits_stored
    return frame if unused_bits == 0 else (frame << unused_bits) >> unused_bits


def _decoded(ds: Dataset, shape: tuple[int, int], dtype: np.dtype[Any]) -> npt.NDArray[np.int16]:
    try:
        available = get_decoder(ds.file_meta.TransferSyntaxUID).is_available
    except (NotImplementedError, AttributeError):
        available = False
    if not available:
        raise RejectedError("unsupported_syntax")
    try:
        frame: npt.NDArray[np.int16] = ds.pixel_array
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - pylibjpeg's PanicException is no Exception; one file must not end the run
        raise RejectedError("decoder_crash") from None
    if frame.shape != shape:
        raise RejectedError("bad_value", "PixelData")
    return frame.astype(dtype, copy=False)


def to_hu(stored: npt.NDArray[np.int16 | np.uint16], encoding: Encoding) -> Int16Image:
    """HU = stored × slope + intercept (PS3.3 C.11.1), clipped to [-1024, 3071], int16 of the same shape.

    A wrapped file gets fastai's `fix_pxrepr` first: x + 1000, minus 4096 where that reaches 4096, intercept -1000.
    """
    values: Int32Image = stored.astype(np.int32)
    intercept = encoding.intercept
    if encoding.inverted:
        values = (-1 if encoding.signed else 2**encoding.bits_stored - 1) - values
    if encoding.wrapped:
        values += 1000
        values[values >= 4096] -= 4096
        intercept = -1000.0
    if encoding.slope == 1 and intercept.is_integer():
        values += int(intercept)
    else:
        values = np.rint(values * encoding.slope + intercept).clip(MIN_HU, MAX_HU).astype(np.int32)
    return values.clip(MIN_HU, MAX_HU).astype(np.int16)


def squared(hu: Int16Image) -> Int16Image:
    """The frame centred in air so that both sides are equal: crops and resizing then keep the aspect."""
    rows, columns = hu.shape
    if rows == columns:
        return hu
    side = max(rows, columns)
    frame = np.full((side, side), MIN_HU, np.int16)
    top, left = (side - rows) // 2, (side - columns) // 2
    frame[top : top + rows, left : left + columns] = hu
    return frame

"""A file's pixels in Hounsfield units, whatever its scanner wrote.

In: a location. Out: a `SliceImage` (int16 HU, square, with the facts of its encoding), or `RejectedError`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from ichsearch.dicom.decoder import DECODER, MAX_SIDE, Frame
from ichsearch.dicom.elements import Elements, NotPlainError, walk
from ichsearch.dicom.find import read_content
from ichsearch.dicom.reasons import RejectedError

MIN_HU: Final = -1024
MAX_HU: Final = 3071
STEEP_ROW: Final = 2**34
"""Squared range times columns from which float32 would not keep a standard deviation to 0.01: 12 bits at 1024."""
SAMPLED_ROW: Final = 16
"""Noise is looked for in every sixteenth row."""
NOISE_STD_HU: Final = 300
NOISE_STEPS: Final = 0.8
NOISE_SHARE: Final = 0.1
MIN_NOISE_SIDE: Final = 64
MIN_SLOPE, MAX_SLOPE = 1e-3, 1e3
"""HU a stored step. Beyond, and below zero, a file says nothing about tissue; scanners write 1."""
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 20.0
MAX_ASPECT: Final = 8
"""A frame is made square: a file of one row would else grow four-thousandfold."""

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

    @property
    def frame_bytes(self) -> int:
        """Length of an uncompressed frame."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class StoredStatistics:
    """Of the stored values as they stand, before any rescaling; mean and standard deviation to 0.01."""

    minimum: int
    maximum: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class SliceImage:
    """One slice in HU, (side, side) int16 in [-1024, 3071]; a frame that was not square is centred in air.

    Attributes:
        stored_hash: XXH3 (128 bits) of the stored values: the same image, the same hash.
        clipped_low: pixels below -1024 HU, padding for the most part.
        clipped_high: pixels above 3071 HU.
    """

    hu: Int16Image
    encoding: Encoding
    elements: Elements
    statistics: StoredStatistics
    stored_hash: str
    clipped_low: int
    clipped_high: int


def read_image(location: str | Path) -> SliceImage:
    """Decode one file into HU.

    Raises:
        RejectedError: a needed element is missing or impossible, or the pixels are cut, noise, constant, all
            beyond the limits of HU, or undecodable.
    """
    elements, encoding, frame = _read_frame(read_content(str(location)))
    stored = without_garbage(frame, encoding)
    statistics = stored_statistics(stored)
    if statistics.minimum == statistics.maximum:
        raise RejectedError("noise_or_constant")
    hu, clipped_low, clipped_high = to_hu(stored, encoding, statistics)
    if clipped_low + clipped_high == hu.size or is_noise(hu):
        raise RejectedError("noise_or_constant")
    return SliceImage(
        hu=squared(hu),
        encoding=encoding,
        elements=elements,
        statistics=statistics,
        stored_hash=hash_of(stored),
        clipped_low=clipped_low,
        clipped_high=clipped_high,
    )


def hash_of(pixels: Frame) -> str:
    """XXH3 of (rows, columns) pixels, 32 hexadecimal digits; the same values in another shape have another."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(pixels).data, seed=pixels.shape[1])


def _read_frame(content: bytes) -> tuple[Elements, Encoding, Frame]:
    """Uncompressed little-endian pixels are taken as they stand; all else goes to the decoder's process."""
    try:
        elements = walk(content)
    except NotPlainError:
        return _decoded(content)
    encoding = read_encoding(elements)
    if elements.pixels is None:
        raise RejectedError("missing_tag", "PixelData")
    if not elements.is_native:
        return _decoded(content)
    start, end = elements.pixels
    if min(end, len(content)) - start < encoding.frame_bytes:
        raise RejectedError("truncated_pixels")
    kind = "i" if encoding.signed else "u"
    flat = np.frombuffer(content, f"<{kind}{encoding.bits_allocated // 8}", encoding.rows * encoding.columns, start)
    frame: Frame = flat.reshape(encoding.rows, encoding.columns).astype(f"<{kind}2", copy=False)
    return elements, encoding, frame


def _decoded(content: bytes) -> tuple[Elements, Encoding, Frame]:
    elements, frame = DECODER.read(content, pixels=True)
    assert frame is not None
    return elements, read_encoding(elements), frame


def read_encoding(elements: Elements) -> Encoding:
    """Check and collect the elements that say how pixels are held; `RejectedError` for what cannot be."""
    rows, columns = (_side(elements, keyword) for keyword in ("Rows", "Columns"))
    if max(rows, columns) > MAX_ASPECT * min(rows, columns):
        raise RejectedError("over_limit", "aspect")
    allocated, stored, signed = _bits(elements)
    photometric = elements.text("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RejectedError("bad_value", "PhotometricInterpretation")
    if elements.optional_short("SamplesPerPixel") not in (None, 1):
        raise RejectedError("bad_value", "SamplesPerPixel")
    (slope,) = elements.numbers("RescaleSlope", count=1)
    if not MIN_SLOPE <= slope <= MAX_SLOPE:
        raise RejectedError("bad_value", "RescaleSlope")
    (intercept,) = elements.numbers("RescaleIntercept", count=1)
    if abs(intercept) > 2**15:
        raise RejectedError("bad_value", "RescaleIntercept")
    row_mm, column_mm = elements.numbers("PixelSpacing", count=2)
    if min(row_mm, column_mm) < MIN_SPACING_MM or max(row_mm, column_mm) > MAX_SPACING_MM:
        raise RejectedError("bad_value", "PixelSpacing")
    return Encoding(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        slope=slope,
        intercept=intercept,
        inverted=photometric == "MONOCHROME1",
        spacing_mm=(row_mm, column_mm),
    )


def _side(elements: Elements, keyword: str) -> int:
    side = elements.short(keyword)
    if not 1 <= side <= MAX_SIDE:
        raise RejectedError("over_limit", keyword)
    return side


def _bits(elements: Elements) -> tuple[int, int, bool]:
    """BitsAllocated, BitsStored, and whether PixelRepresentation says signed (PS3.5 8.1.1)."""
    allocated, stored = elements.short("BitsAllocated"), elements.short("BitsStored")
    if allocated not in (8, 16):
        raise RejectedError("bad_value", "BitsAllocated")
    if not 8 <= stored <= allocated:
        raise RejectedError("bad_value", "BitsStored")
    if elements.optional_short("HighBit") not in (None, stored - 1):
        raise RejectedError("bad_value", "HighBit")
    representation = elements.short("PixelRepresentation")
    if representation not in (0, 1):
        raise RejectedError("bad_value", "PixelRepresentation")
    return allocated, stored, representation == 1


def without_garbage(frame: Frame, encoding: Encoding) -> Frame:
    """The values of the stored bits alone: what stands above them may be an overlay, or anything (PS3.5 8.1.1)."""
    bits = encoding.bits_stored - encoding.signed
    if -(2**bits) * encoding.signed <= frame.min() and frame.max() < 2**bits:
        return frame
    unused = 16 - encoding.bits_stored
    return (frame << unused) >> unused


def stored_statistics(stored: Frame) -> StoredStatistics:
    """Minimum, maximum, mean and standard deviation of (rows, columns) stored values."""
    minimum, maximum = int(stored.min()), int(stored.max())
    columns = stored.shape[1]
    # A row's sum of whole numbers is exact in float32 up to 2^24; all rows are added in double precision.
    single = (maximum - minimum) ** 2 * columns < STEEP_ROW
    middle = round(float(stored[::SAMPLED_ROW].mean()))
    centred = stored.astype(np.float32 if single else np.float64) - middle
    mean = float((centred @ np.ones(columns, centred.dtype)).sum(dtype=np.float64)) / stored.size
    variance = float(np.vecdot(centred, centred).sum(dtype=np.float64)) / stored.size - mean**2
    return StoredStatistics(minimum, maximum, round(mean + middle, 2), round(max(variance, 0.0) ** 0.5, 2))


def to_hu(stored: Frame, encoding: Encoding, statistics: StoredStatistics) -> tuple[Int16Image, int, int]:
    """HU = stored × slope + intercept (PS3.3 C.11.1), clipped to [-1024, 3071]; how many pixels were below, and above.

    A wrapped file gets fastai's `fix_pxrepr` first: x + 1000, minus 4096 where that reaches 4096, intercept -1000.
    """
    plain = encoding.slope == 1 and encoding.intercept.is_integer() and not encoding.inverted and not encoding.wrapped
    low, high = MIN_HU - int(encoding.intercept), MAX_HU - int(encoding.intercept)
    if not plain or low < -(2**15) or high >= 2**15 or high < statistics.minimum:
        values = _rescaled(stored, encoding)
        below, above = int(np.count_nonzero(values < MIN_HU)), int(np.count_nonzero(values > MAX_HU))
        return values.clip(MIN_HU, MAX_HU).astype(np.int16), below, above
    below = int(np.count_nonzero(stored < low)) if statistics.minimum < low else 0
    above = int(np.count_nonzero(stored > high)) if statistics.maximum > high else 0
    if below or above:
        stored = stored.clip(max(low, statistics.minimum), high)
    return stored.view(np.int16) + np.int16(encoding.intercept), below, above  # what fits in neither fits in the sum


def _rescaled(stored: Frame, encoding: Encoding) -> Int32Image:
    values: Int32Image = stored.astype(np.int32)
    intercept = encoding.intercept
    if encoding.inverted:
        values = (-1 if encoding.signed else 2**encoding.bits_stored - 1) - values
    if encoding.wrapped:
        values += 1000
        values -= (values >= 4096) * np.int32(4096)
        intercept = -1000.0
    if encoding.slope == 1 and intercept.is_integer():
        values += np.int32(intercept)
        return values
    rescaled: Int32Image = np.rint(values * encoding.slope + intercept).astype(np.int32)
    return rescaled


def is_noise(hu: Int16Image) -> bool:
    """Whether a tenth of the rows hold values that know nothing of their neighbours.

    In white noise the mean squared step from pixel to pixel is twice the variance, with swapped bytes about as large;
    in real head CT it stays below a tenth of it (53 RSNA and GE slices).
    Only rows that vary by hundreds of HU count: air is noise too, but within a few. Tiny images say nothing.
    """
    if min(hu.shape) < MIN_NOISE_SIDE:
        return False
    rows = hu[::SAMPLED_ROW].astype(np.float32)
    steps = rows[:, 1:] - rows[:, :-1]
    step = np.vecdot(steps, steps) / steps.shape[1]
    variance = np.vecdot(rows, rows) / rows.shape[1] - np.square(rows.mean(axis=1))
    return float(((variance > NOISE_STD_HU**2) & (step > NOISE_STEPS * variance)).mean()) >= NOISE_SHARE


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

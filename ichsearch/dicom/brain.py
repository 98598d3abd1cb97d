"""Where the brain is in a slice: its share of the frame, the square box round it, and the crop.

In: HU images. Out: shares, boxes, and the cropped and resized image. The formulae are fastai's (`pct_in_window`,
`mask_from_blur`, `crop_resize`), as the paper used them. The blur is computed in whole numbers, so that boxes are the
same on every processor, and only where an edge of the mask can be.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ichsearch.dicom.pixels import Int16Image
from ichsearch.dicom.windows import BRAIN

MASK_THRESHOLD: Final = 0.05
"""Of the brain window: fastai's mask is where the blurred window is above it."""
MAYBE: Final = (0.8, 1.25)
"""Where a rough blur is between these shares of the threshold, or a few pixels beside, an edge of the mask may be."""
MARGIN: Final = 2
MIN_ROUGH_SIDE: Final = 128
WEIGHT_UNIT: Final = 2**12

Uint8Image = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]

cv2.setNumThreads(1)  # a task has one core


class CropBox(NamedTuple):
    """A square of pixels: rows top..top+side, columns left..left+side."""

    top: int
    left: int
    side: int


def locate_brain(hu: Int16Image) -> tuple[float, CropBox | None]:
    """Brain share and crop box of a slice; no box where fastai's mask is empty.

    The share is that of pixels strictly inside the brain window (level 40, width 80 HU). The mask is where the window,
    bone removed, blurred, is above 5 %; the box is its bounding box made square.
    """
    shown = _shown(hu)
    return cv2.countNonZero(shown) / shown.size, _brain_box(shown)


def _shown(hu: Int16Image) -> Uint8Image:
    """HU strictly inside the brain window, which begins at 0 HU; 0 outside it."""
    shown: Uint8Image = hu.astype(np.uint8)
    shown *= (hu.view(np.uint16) < BRAIN.width_hu).view(np.uint8)  # negative values are large ones here
    return shown


def _brain_box(shown: Uint8Image) -> CropBox | None:
    rough = _rough_blur(shown)
    rows, columns = rough.max(axis=1), rough.max(axis=0)
    if rows.max() <= MAYBE[0]:
        return None
    side = len(shown)
    top = _first_row(shown, rough, rows)
    if top is None:
        return None
    below = _first_row(shown[::-1], rough[::-1], rows[::-1])
    left = _first_row(shown.T, rough.T, columns)
    beside = _first_row(shown.T[::-1], rough.T[::-1], columns[::-1])
    assert below is not None and left is not None and beside is not None
    return bounding_square(top, left, side - below, side - beside, side)


def _rough_blur(shown: Uint8Image) -> FloatImage:
    """The blur as a box mean at a fraction of the resolution, in units of the mask's threshold."""
    taps, step = len(_gaussian(len(shown))), 1
    while (half := len(shown) // 2) >= MIN_ROUGH_SIDE:
        shown = cv2.resize(shown, (half, half), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        step *= 2
    taps = taps // (2 * step) * 2 + 1
    total = cv2.boxFilter(shown, cv2.CV_32F, (taps, taps), normalize=False, borderType=cv2.BORDER_REPLICATE)
    rough: FloatImage = total / np.float32(MASK_THRESHOLD * BRAIN.width_hu * taps**2)
    return rough


def _first_row(shown: Uint8Image, rough: FloatImage, peaks: FloatImage) -> int | None:
    """The first row of the mask, None if it is empty; `peaks` are the rows' maxima of `rough`."""
    side = len(shown)
    row = _first_row_within(shown, *_searched(rough, peaks, side))
    return _first_row_within(shown, 0, side, 0, side) if row is None else row


def _first_row_within(shown: Uint8Image, top: int, bottom: int, left: int, right: int) -> int | None:
    side, reach = len(shown), len(_gaussian(len(shown))) // 2
    patch = cv2.copyMakeBorder(
        shown[max(top - reach, 0) : bottom + reach, max(left - reach, 0) : right + reach],
        *(max(reach - top, 0), max(bottom + reach - side, 0), max(reach - left, 0), max(right + reach - side, 0)),
        cv2.BORDER_REPLICATE,
    ).astype(np.float64)
    weights = _blurring(side)
    down, across = (weights[:size, : size + 2 * reach] for size in (bottom - top, right - left))
    blurred = (down @ patch @ across.T).max(axis=1)
    inside = np.flatnonzero(blurred > MASK_THRESHOLD * BRAIN.width_hu * float(_gaussian(side).sum()) ** 2)
    return top + int(inside[0]) if len(inside) else None


def _searched(rough: FloatImage, peaks: FloatImage, side: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the part of the frame that has the mask's first row, if there is one."""
    possible, certain = (np.flatnonzero(peaks > share) for share in MAYBE)
    first, last = possible[0], certain[0] if len(certain) else possible[-1]
    columns = np.flatnonzero(rough[first : last + 1].max(axis=0) > MAYBE[0])
    step = side / len(rough)
    (top, bottom), (left, right) = (
        (max(int(begin * step) - MARGIN, 0), min(int((end + 1) * step) + MARGIN, side))
        for begin, end in ((first, last), (columns[0], columns[-1]))
    )
    return top, bottom, left, right


@lru_cache
def _gaussian(side: int) -> npt.NDArray[np.float64]:
    """The blur of fastai: sigma = 0.3 × width, but cut to int(sigma / 4) × 2 + 1 taps (77 at 512); whole numbers."""
    sigma = 0.3 * side
    reach = int(sigma / 4)
    taps: npt.NDArray[np.float64] = np.rint(WEIGHT_UNIT * np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)))
    return taps


@lru_cache(maxsize=4)
def _blurring(side: int) -> npt.NDArray[np.float64]:
    """(side, side + taps - 1) weights that blur a padded line; any first rows of it blur a shorter one."""
    taps = _gaussian(side)
    weights = np.zeros((side, side + len(taps) - 1))
    for row in range(side):
        weights[row, row : row + len(taps)] = taps
    return weights


def bounding_square(top: int, left: int, bottom: int, right: int, frame_side: int) -> CropBox:
    """The square round rows top..bottom and columns left..right, ends not included.

    The shorter side grows from its low corner and is shifted back inside where it overflows.
    """
    side = max(bottom - top, right - left)
    return CropBox(min(top, frame_side - side), min(left, frame_side - side), side)


def union_box(boxes: list[CropBox | None], frame_side: int) -> CropBox:
    """One square round all boxes of a series, so that neighbouring slices stay registered.

    Slices with an empty mask have no say; if all are empty the box is the whole frame.
    """
    known = [box for box in boxes if box is not None]
    if not known:
        return CropBox(0, 0, frame_side)
    top, left = min(box.top for box in known), min(box.left for box in known)
    bottom, right = max(box.top + box.side for box in known), max(box.left + box.side for box in known)
    return bounding_square(top, left, bottom, right, frame_side)


def cropped(hu: Int16Image, box: CropBox, size: int) -> Int16Image:
    """The box of a slice at (size, size), bilinear and antialiased as Pillow's, int16 HU.

    Resizing is linear in rows and in columns: two products with a sparse matrix, three times as fast as Pillow.
    """
    inside = hu[box.top : box.top + box.side, box.left : box.left + box.side].astype(np.float32)
    weights = _resampling(box.side, size)
    resized: Int16Image = np.rint(cv2.transpose(weights @ cv2.transpose(weights @ inside))).astype(np.int16)
    return resized


@lru_cache(maxsize=256)
def _resampling(side: int, size: int) -> csr_array:
    """(size, side) weights: a triangle round each new pixel's centre, as wide as two new pixels or two old ones."""
    scale = side / size
    centre = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(side) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights = np.clip(1.0 - distance, 0.0, None)
    return csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))

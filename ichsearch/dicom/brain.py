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
WEIGHT_UNIT: Final = 2**16
"""The blur's sums stay below 2^53, where float64 is exact, for all sides up to `MAX_BOX_SIDE`."""
STRIP: Final = 8
"""The mask's edges are looked for so many rows at a time."""
MAX_BOX_SIDE: Final = 1024
"""Larger frames are halved for the box: none of clinical CT are, and the search of a hostile one must end."""

Uint8Image = npt.NDArray[np.uint8]

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
    side = len(shown)
    if side > MAX_BOX_SIDE:
        box = _brain_box(_halved(shown))
        return box and CropBox(2 * box.top, 2 * box.left, 2 * box.side)
    possible = _possible(shown)
    top = _first_row(shown, possible)
    if top is None:
        return None
    from_bottom = _first_row(shown[::-1], possible[::-1])
    left, from_right = _first_row(shown.T, possible.T), _first_row(shown.T[::-1], possible.T[::-1])
    assert from_bottom is not None and left is not None and from_right is not None
    return bounding_square(top, left, side - from_bottom, side - from_right, side)


def _halved(shown: Uint8Image) -> Uint8Image:
    half = len(shown) // 2
    return cv2.resize(shown[: 2 * half, : 2 * half], (half, half), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _possible(shown: Uint8Image) -> npt.NDArray[np.bool_]:
    """Where the mask can be at all, in cells of up to 4 × 4 pixels: a bound of the blur that is never too low.

    A cell's blur is at most the largest weight times the sum of all cells that the kernel touches from within it. Cells
    are means rounded twice, each time by half a unit at most.
    """
    side, taps = len(shown), _gaussian(len(shown))
    step = next(step for step in (4, 2, 1) if side % step == 0)
    cells = shown
    while len(cells) > side // step:
        cells = _halved(cells)
    cells = _with_whole_edges(cells, shown, step) if step > 1 else cells
    window = 2 * -(len(taps) // 2 // -step) + 1
    total = cv2.boxFilter(cells, cv2.CV_32S, (window, window), normalize=False, borderType=cv2.BORDER_REPLICATE)
    most = (taps.max() / taps.sum()) ** 2 * step**2
    rounding = (step.bit_length() - 1) / 2 * window**2
    possible: npt.NDArray[np.bool_] = total > MASK_THRESHOLD * BRAIN.width_hu / most - rounding
    return possible


def _with_whole_edges(cells: Uint8Image, shown: Uint8Image, step: int) -> Uint8Image:
    """Cells of the frame's edge as bright as its brightest pixel there: those are what is repeated beyond the frame."""
    cells = cells.copy()
    for edge, pixels in zip(_sides(cells), _sides(shown), strict=True):
        np.maximum(edge, pixels.reshape(-1, step).max(axis=1), out=edge)
    return cells


def _sides(image: Uint8Image) -> tuple[Uint8Image, ...]:
    return image[0], image[-1], image[:, 0], image[:, -1]


def _first_row(shown: Uint8Image, possible: npt.NDArray[np.bool_]) -> int | None:
    """The first row of the mask, None if it is empty."""
    step = len(shown) // len(possible)
    rows = np.flatnonzero(possible.any(axis=1))
    if not len(rows):
        return None
    for top in range(rows[0] * step, (rows[-1] + 1) * step, STRIP):
        bottom = min(top + STRIP, len(shown))
        columns = np.flatnonzero(possible[top // step : -(bottom // -step)].any(axis=0))
        if not len(columns):
            continue
        inside = np.flatnonzero(_peaks(shown, top, bottom, columns[0] * step, (columns[-1] + 1) * step) > 0)
        if len(inside):
            return top + int(inside[0])
    return None


def _peaks(shown: Uint8Image, top: int, bottom: int, left: int, right: int) -> npt.NDArray[np.float64]:
    """How far the blur of each row of a part of the frame gets above the mask's threshold, in whole numbers."""
    side, taps = len(shown), _gaussian(len(shown))
    reach = len(taps) // 2
    patch = cv2.copyMakeBorder(
        shown[max(top - reach, 0) : bottom + reach, max(left - reach, 0) : right + reach],
        *(max(reach - top, 0), max(bottom + reach - side, 0), max(reach - left, 0), max(right + reach - side, 0)),
        cv2.BORDER_REPLICATE,
    ).astype(np.float64)
    down, across = (_blurring(side)[:size, : size + 2 * reach] for size in (bottom - top, right - left))
    threshold = MASK_THRESHOLD * BRAIN.width_hu * float(taps.sum()) ** 2
    peaks: npt.NDArray[np.float64] = (down @ patch @ across.T).max(axis=1) - threshold
    return peaks


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

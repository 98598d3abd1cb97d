"""Where the brain is in a slice: its share of the frame, its mask, and the square box to crop.

In: HU images. Out: shares, masks, boxes, and the cropped and resized image. The formulae are fastai's
(`pct_in_window`, `mask_from_blur`, `crop_resize`), as the paper used them; computed here in integers.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ichsearch.dicom.pixels import MAX_HU, MIN_HU, Int16Image, Int32Image
from ichsearch.dicom.windows import BRAIN

MASK_THRESHOLD: Final = 0.05


class CropBox(NamedTuple):
    """A square of pixels: rows top..top+side, columns left..left+side."""

    top: int
    left: int
    side: int


def brain_share(hu: Int16Image) -> float:
    """Share of all pixels strictly inside the brain window (level 40, width 80 HU)."""
    return float(np.count_nonzero((hu > BRAIN.low_hu) & (hu < BRAIN.high_hu)) / hu.size)


def brain_mask(hu: Int16Image) -> npt.NDArray[np.bool_]:
    """Pixels round which the windowed brain, bone removed, fills more than 5 % of a box of the blur's size.

    fastai blurs with sigma = 0.3 × width, but with a kernel of int(sigma / 4) × 2 + 1 taps (77 at 512 pixels), over
    which a Gaussian of that sigma is flat: a box mean with replicated edges.
    """
    side = hu.shape[-1]
    taps = int(0.3 * side / 4) * 2 + 1
    shown = hu.clip(BRAIN.low_hu, BRAIN.high_hu) - np.int16(BRAIN.low_hu)
    shown[shown == BRAIN.width_hu] = 0  # bone and everything brighter
    across = _box_sum(shown, taps)
    total = _box_sum(np.ascontiguousarray(across.T), taps).T
    mask: npt.NDArray[np.bool_] = total > MASK_THRESHOLD * BRAIN.width_hu * taps**2
    return mask


def _box_sum(values: Int16Image | Int32Image, taps: int) -> Int32Image:
    """Sum of `taps` columns round each column, edges repeated, by running sums along the contiguous axis."""
    before, after = taps // 2 + 1, taps // 2
    sums = np.cumsum(np.pad(values, ((0, 0), (before, after)), mode="edge"), axis=1, dtype=np.int32)
    box: Int32Image = sums[:, taps:] - sums[:, :-taps]
    return box


def bounding_square(mask: npt.NDArray[np.bool_]) -> CropBox | None:
    """The mask's bounding box made square; None for an empty mask.

    The shorter side grows from its low corner and is shifted back inside where it overflows.
    """
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    side = int(max(rows[-1] - top, columns[-1] - left)) + 1
    frame = mask.shape[0]
    return CropBox(min(top, frame - side), min(left, frame - side), side)


def union_box(boxes: list[CropBox | None], frame_side: int) -> CropBox:
    """One square round all boxes of a series, so that neighbouring slices stay registered.

    Slices with an empty mask have no say; if all are empty the box is the whole frame.
    """
    known = [box for box in boxes if box is not None]
    if not known:
        return CropBox(0, 0, frame_side)
    top, left = min(box.top for box in known), min(box.left for box in known)
    bottom, right = max(box.top + box.side for box in known), max(box.left + box.side for box in known)
    side = max(bottom - top, right - left)
    return CropBox(min(top, frame_side - side), min(left, frame_side - side), side)


def cropped(hu: Int16Image, box: CropBox, size: int) -> Int16Image:
    """The box of a slice at (size, size), bilinear and antialiased, int16 HU."""
    area = (box.left, box.top, box.left + box.side, box.top + box.side)
    image = Image.fromarray(hu.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR, box=area)
    resized: Int16Image = np.rint(np.asarray(image)).clip(MIN_HU, MAX_HU).astype(np.int16)
    return resized

"""A peer of the preprocessing benchmark: fastai's pipeline as its author's RSNA notebook runs it.

In: DICOM paths. Out: one JPEG of three windows a file, and fastai's crop box.
"""

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastai.medical import imaging

torch.set_num_threads(1)

SIZE: Final = 256
FASTAI_WINDOWS: Final = [
    imaging.dicom_windows.brain,
    imaging.dicom_windows.subdural,
    imaging.dicom_windows.brain_bone,
]


def run(paths: list[Path], out: Path) -> int:
    """Read, fix, scale once, mask, crop, resize, and save every file; the slices stored."""
    out.mkdir(exist_ok=True)
    for path in paths:
        ds = path.dcmread()  # type: ignore[attr-defined]  # fastai patches Path
        _fix_pxrepr(ds)
        px = ds.scaled_px
        crop = imaging.mask2bbox(px.mask_from_blur(imaging.dicom_windows.brain))
        resized = imaging.crop_resize(px[None], crop[..., None], SIZE)[0, 0]
        resized.save_jpg(out / path.stem, FASTAI_WINDOWS, bins=0)
    return len(paths)


def _fix_pxrepr(ds: Any) -> None:
    """Word for word the notebook's: signed 12-bit values that were written as unsigned."""
    if ds.PixelRepresentation != 0 or ds.RescaleIntercept < -100:
        return
    x = ds.pixel_array + 1000
    px_mode = 4096
    x[x >= px_mode] = x[x >= px_mode] - px_mode
    ds.PixelData = x.tobytes()
    ds.RescaleIntercept = -1000


def box(hu: NDArray[np.int16]) -> tuple[int, int, int, int]:
    """The square that fastai crops: top, left, bottom, right, the last two inside; the whole frame without a mask."""
    side = hu.shape[0]
    mask = torch.from_numpy(hu.astype(np.float32)).mask_from_blur(imaging.dicom_windows.brain)  # type: ignore[attr-defined]
    if not mask.any():
        return 0, 0, side - 1, side - 1
    lows, sizes = imaging._bbs2sizes(imaging.mask2bbox(mask)[..., None], side)
    left, top, width, height = (round(float(value) * side) for value in torch.cat([lows, sizes]))
    return top, left, top + height, left + width

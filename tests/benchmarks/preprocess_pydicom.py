"""A peer of the preprocessing benchmark: what one writes by hand with pydicom and PIL.

In: DICOM paths. Out: one JPEG of three windows a file, without mask and crop.
"""

from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image

SIZE: Final = 256
LEVEL_WIDTH_HU: Final = ((40, 80), (80, 200), (600, 2800))


def run(paths: list[Path], out: Path) -> int:
    """Read, rescale, window, resize, JPEG; the slices stored."""
    out.mkdir(exist_ok=True)
    for path in paths:
        ds = pydicom.dcmread(path)
        hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        channels = np.stack([_windowed(hu, level, width) for level, width in LEVEL_WIDTH_HU], axis=-1)
        resized = Image.fromarray(channels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        resized.save(out / f"{path.stem}.jpg", quality=90)
    return len(paths)


def _windowed(hu: NDArray[np.float64], level: int, width: int) -> NDArray[np.uint8]:
    low = level - width / 2
    return ((hu.clip(low, low + width) - low) / width * 255).astype(np.uint8)

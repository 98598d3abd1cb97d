"""Slices as pictures: in the brain window, and with the heat of Grad-CAM over it.

In: HU, heat in [0, 1]. Out: grey and coloured pixels.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from ichsearch.dicom.windows import BRAIN

HEAT: Final = "inferno"
OPACITY: Final = 0.6

Grey = npt.NDArray[np.uint8]


def windowed(hu: npt.NDArray[np.int16]) -> Grey:
    """(S, S) HU in the brain window."""
    share = (hu.astype(np.float64) - BRAIN.low_hu) / BRAIN.width_hu
    return np.round(255 * share.clip(0, 1)).astype(np.uint8)


def heated(grey: Grey, heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The slice with its heat laid over it, as strong as it is hot; (S, S, 3)."""
    sized = np.asarray(Image.fromarray(heat).resize(grey.shape[::-1], Image.Resampling.BILINEAR))
    colours = colormaps[HEAT](sized)[..., :3]
    strength = OPACITY * sized[..., None]
    mixed = (1 - strength) * (grey[..., None] / 255) + strength * colours
    pixels: npt.NDArray[np.uint8] = np.round(255 * mixed.clip(0, 1)).astype(np.uint8)
    return pixels

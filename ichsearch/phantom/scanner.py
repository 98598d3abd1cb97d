"""The scanner: noise, beam hardening, head holder and the ways in which HU are stored.

In: HU of the drawn head. Out: HU of a whole image, and stored values with the header elements that go with them.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ichsearch.phantom.cranium import AIR_HU, Noise, Surfaces
from ichsearch.phantom.fields import Image
from ichsearch.phantom.geometry import Points
from ichsearch.phantom.shapes import coverage, near

PADDING: Final = -2000
"""Stored outside the circular field of view of the 16-bit population."""

_TILE_MARGIN: Final = 128


class Storage(StrEnum):
    """The populations of the RSNA set."""

    UNSIGNED_12 = "unsigned 12-bit"
    SIGNED_16 = "signed 16-bit"
    WRAPPED_12 = "signed 12-bit written as unsigned"


@dataclass(frozen=True)
class Scanner:
    """What varies from scanner to scanner."""

    storage: Storage
    noise_hu: float
    kernel_mm: float
    cupping_hu: float
    streak_hu: float
    holder_radius_mm: float
    holder_centre_mm: float
    holder_half_angle_rad: float
    window: tuple[int, int]


def worsened(rng: np.random.Generator, scanner: Scanner) -> Scanner:
    """The same scanner with noise, cupping and streaks between the petrous bones from slight to strong."""
    return replace(
        scanner,
        noise_hu=float(rng.uniform(3.5, 6.5)),
        kernel_mm=float(rng.uniform(0.35, 0.8)),
        cupping_hu=float(rng.uniform(2, 10)),
        streak_hu=float(rng.uniform(5, 16)),
    )


def noise_tile(rng: np.random.Generator, scanner: Scanner, matrix: int, pixel_mm: float) -> Image:
    """Correlated noise in HU, larger than an image so that each slice can take its own part of it."""
    size = matrix + _TILE_MARGIN
    sigma = scanner.kernel_mm / pixel_mm
    tile = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma, mode="wrap", truncate=3)
    return np.asarray(tile * (scanner.noise_hu / tile.std()), np.float32)


def slice_noise(rng: np.random.Generator, tile: Image, matrix: int) -> Image:
    """A random part of the tile, mirrored or not, (matrix, matrix) float32."""
    row, column = rng.integers(0, _TILE_MARGIN, 2)
    step = int(rng.choice((-1, 1)))
    return tile[row : row + matrix, column : column + matrix][::step, ::-step]


def empty_image(scanner: Scanner, axis_mm: NDArray[np.float64], edge_mm: float) -> Image:
    """Air with the shell of the head holder below, (rows, columns) float32 HU."""
    x, y = axis_mm[None, :].astype(np.float32), axis_mm[:, None].astype(np.float32) - scanner.holder_centre_mm
    arc = np.abs(np.hypot(x, y) - scanner.holder_radius_mm)
    beyond = (np.abs(np.arctan2(x, y)) - scanner.holder_half_angle_rad) * scanner.holder_radius_mm
    shell, foam = np.maximum(arc - 1.2, beyond), np.maximum(arc - 5, beyond)
    return np.asarray(AIR_HU + 40 * coverage(foam, edge_mm) + 1060 * coverage(shell, edge_mm), np.float32)


def harden_beam(hu: Image, p: Points, s: Surfaces, noise: Noise, streaks: Image, scanner: Scanner) -> None:
    """Brighter brain under the bone, bands (`streaks`, (rows, 1)) between the petrous bones, in place."""
    inside = coverage(s.inner, 2.0)
    hu += inside * scanner.cupping_hu / (1 + (s.inner / 5) ** 2)
    if near(p, -38, 20):
        across = np.clip(1 - (p.x / 60) ** 2, 0, 1) * np.clip(1.2 - np.abs(p.y - 8) / 40, 0, 1)
        across *= np.clip(1 - ((p.z + 38) / 20) ** 2, 0, 1)
        hu += inside * across * scanner.streak_hu * (streaks + 0.3 * noise.warp - 0.4)


def draw_streaks(rng: np.random.Generator, matrix: int) -> Image:
    """Brightness of the bands, one a row, (matrix, 1) float32 of about unit variance."""
    bands = gaussian_filter(rng.standard_normal(matrix), 3 * matrix / 512)
    return np.asarray(bands / bands.std(), np.float32)[:, None]


def stored_values(hu: Image, scanner: Scanner) -> NDArray[np.int16] | NDArray[np.uint16]:
    """HU as this scanner's files hold them, (rows, columns) int16 or uint16.

    `WRAPPED_12` is the inverse of the RSNA fix: signed values of HU, cut to 12 bits, so that
    x = stored + 1000; x[x >= 4096] -= 4096; HU = x - 1000 gives them back.
    """
    whole = np.rint(hu).astype(np.int16)
    if scanner.storage is Storage.WRAPPED_12:
        return (whole.clip(-1000, 3095) % 4096).astype("<u2")
    if scanner.storage is Storage.UNSIGNED_12:
        return (whole + 1024).clip(0, 4095).astype("<u2")
    half = (np.arange(hu.shape[0], dtype=np.float32) - (hu.shape[0] - 1) / 2) ** 2
    outside = half[:, None] + half[None, :] > (hu.shape[0] / 2) ** 2
    return np.where(outside, PADDING, (whole + 1024).clip(0, 4095)).astype("<i2")

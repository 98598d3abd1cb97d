"""Smooth random fields over the scanned volume.

In: a seeded generator, the length of a knot interval in mm and the pixel grid. Out: (rows, columns) float32 fields of
unit variance, consistent between neighbouring slices. White noise stands on a coarse grid and is spread by cubic
B-splines: a slice of the field is two small products with sparse matrices, which no library spreads over threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Image = NDArray[np.floating[Any]]
"""float32 throughout; wider because the stubs of numpy take float32 times a number for float64."""

Part = tuple[slice, slice]
"""Rows and columns of an array."""

VOLUME_MM: Final = 260.0
"""Edge of the cube that every field covers, centred on the head."""

_SPLINE_VARIANCE: Final = 151 / 315
"""Mean over positions of the sum of squared cubic B-spline weights, for one axis."""

_BAND_ROWS: Final = 64


def spline_weights(at_mm: NDArray[np.float64], knot_mm: float, knots: int) -> Image:
    """Weight of each knot at each position, (positions, knots) float32; the first knot lies at -VOLUME_MM / 2."""
    t = np.abs((at_mm[:, None] + VOLUME_MM / 2) / knot_mm - np.arange(knots))
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.maximum(2 - t, 0) ** 3 / 6
    return np.where(t < 1, near, far).astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """The part of a square image that is drawn, with the position of its whole axis relative to the centre, in mm."""

    axis_mm: NDArray[np.float64]
    rows: slice
    columns: slice

    def bands(self) -> Iterator[tuple["Grid", Part]]:
        """Strips of a few rows of the rounded shape that the grid frames, and their place in it.

        A strip is so small that what is computed from it stays in the processor's cache.
        """
        height, width = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        for top in range(0, height, _BAND_ROWS):
            bottom = min(top + _BAND_ROWS, height)
            # The row of the strip that is nearest to the middle is the widest.
            widest = abs(2 * float(np.clip(height / 2, top, bottom)) / height - 1)
            left = int(width / 2 * (1 - (1 - widest**3) ** (1 / 3)))
            part = slice(top, bottom), slice(left, width - left)
            rows = slice(self.rows.start + top, self.rows.start + bottom)
            columns = slice(self.columns.start + left, self.columns.stop - left)
            yield replace(self, rows=rows, columns=columns), part


@dataclass(frozen=True)
class SmoothField:
    """White noise on knots (z, y, x) and the sparse weights (pixels, knots) that spread it over an image axis."""

    coefficients: Image
    axis_weights: csr_array
    knot_mm: float

    def at(self, height_mm: float, grid: Grid) -> Image:
        """The field on the drawn part of the slice at `height_mm` above the centre, (rows, columns) float32."""
        along_z = spline_weights(np.array([height_mm]), self.knot_mm, self.coefficients.shape[0])[0]
        used = np.flatnonzero(along_z)
        plane = np.einsum("k,kyx->yx", along_z[used], self.coefficients[used])
        across = self.axis_weights[grid.columns] @ plane.T
        return np.asarray(self.axis_weights[grid.rows] @ across.T)


def draw_field(rng: np.random.Generator, knot_mm: float, axis_mm: NDArray[np.float64]) -> SmoothField:
    """A field of zero mean and unit variance whose features are about two knots wide."""
    knots = int(np.ceil(VOLUME_MM / knot_mm)) + 1
    noise = rng.standard_normal((knots, knots, knots), dtype=np.float32) / np.float32(_SPLINE_VARIANCE**1.5)
    return SmoothField(noise, csr_array(spline_weights(axis_mm, knot_mm, knots)), knot_mm)

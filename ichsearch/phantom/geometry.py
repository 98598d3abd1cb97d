"""Where the slices of a stack lie, and which point of the head each pixel shows.

In: the drawn position of gantry, table and head. Out: DICOM positions and orientations (PS3.3 C.7.6.2) and head
coordinates of pixels. The head frame has its origin in the middle of the skull, x to the patient's left, y to the
back, z to the vertex, and is divided by the size of the head, so that anatomy can be written down once, in mm of an
average head.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ichsearch.phantom.fields import Grid, Image

BASE_MM: Final = -60.0
VERTEX_MM: Final = 76.0
"""Heights in the head frame of the lowest brain and of the highest: a whole scan lies between them."""

_FACE_MM: Final = (88.0, 114.0)
_VAULT_MM: Final = (83.0, 103.0)
"""Half width and half length that hold the whole head, with ears and nose where it is lower than `_FACE_TOP_MM`."""

_FACE_TOP_MM: Final = -10.0
_HALF_HEIGHT_MM: Final = 104.0
"""Half axis of an ellipsoid that holds the vault."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """Size of the head relative to the average and how it lies on the table."""

    size: Vector
    yaw_rad: float
    pitch_rad: float
    roll_rad: float
    offset_mm: tuple[float, float]

    def rotation(self) -> NDArray[np.float64]:
        """Matrix from slice axes (row, column, normal) to head axes, (3, 3) float64."""
        cy, sy = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        cp, sp = np.cos(self.pitch_rad), np.sin(self.pitch_rad)
        cr, sr = np.cos(self.roll_rad), np.sin(self.roll_rad)
        yaw = np.array([[cy, sy, 0], [-sy, cy, 0], [0, 0, 1]])
        pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        roll = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
        return np.asarray(yaw @ pitch @ roll)


@dataclass(frozen=True)
class Points:
    """Head coordinates of pixels in mm of an average head, each (rows, columns) float32."""

    x: Image
    y: Image
    z: Image

    @cached_property
    def box_mm(self) -> tuple[Vector, Vector]:
        """Lowest and highest x, y and z."""
        axes = (self.x, self.y, self.z)
        low, high = [float(axis.min()) for axis in axes], [float(axis.max()) for axis in axes]
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])


@dataclass(frozen=True)
class Stack:
    """A series of parallel slices: the table moves along z while the gantry stands tilted."""

    matrix: int
    slices: int
    pixel_mm: float
    tilt_rad: float
    pose: Pose
    isocentre_z_mm: float
    scanned_mm: tuple[float, float] = (BASE_MM, VERTEX_MM)

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring slices along their normal."""
        return (self.scanned_mm[1] - self.scanned_mm[0]) * self.pose.size[2] / self.slices

    @property
    def axis_mm(self) -> NDArray[np.float64]:
        """Position of the pixels of one axis relative to the centre of the image, (matrix,) float64."""
        return np.asarray((np.arange(self.matrix) - (self.matrix - 1) / 2) * self.pixel_mm, np.float64)

    @property
    def orientation(self) -> tuple[float, ...]:
        """ImageOrientationPatient: direction cosines of the row and of the column."""
        return (1.0, 0.0, 0.0, 0.0, float(np.cos(self.tilt_rad)), -float(np.sin(self.tilt_rad)))

    def height_mm(self, index: int) -> float:
        """Height of a slice along the normal above the middle of the head."""
        return self.scanned_mm[0] * self.pose.size[2] + (index + 0.5) * self.spacing_mm

    def head_height_mm(self, index: int) -> float:
        """Height of a slice in the head frame."""
        return self.height_mm(index) / self.pose.size[2]

    def position_mm(self, index: int) -> Vector:
        """ImagePositionPatient: the middle of the first pixel."""
        corner = float(self.axis_mm[0])
        table = self.height_mm(index) / float(np.cos(self.tilt_rad))
        cosine, sine = float(np.cos(self.tilt_rad)), float(np.sin(self.tilt_rad))
        return (corner, corner * cosine, self.isocentre_z_mm + table - corner * sine)

    def _shift_mm(self, index: int) -> NDArray[np.float64]:
        """From the middle of the head to the middle of the image, along row, column and normal, (3,) float64."""
        height = self.height_mm(index)
        along_column = -height * float(np.tan(self.tilt_rad))
        return np.array([-self.pose.offset_mm[0], along_column - self.pose.offset_mm[1], height])

    def grid(self, index: int) -> Grid:
        """The part of the image that can show the head."""
        rotation, shift = self.pose.rotation(), self._shift_mm(index)
        axis = rotation[2]
        centre = axis[:2] / axis[2] * shift[2] - shift[:2]
        height = self.head_height_mm(index)
        shrink = float(np.sqrt(1 - (max(height, 0.0) / _HALF_HEIGHT_MM) ** 2))
        half = np.multiply(self.pose.size[:2], _FACE_MM if height < _FACE_TOP_MM else _VAULT_MM) * shrink + 4
        low = np.searchsorted(self.axis_mm, centre - half)
        high = np.searchsorted(self.axis_mm, centre + half)
        return Grid(self.axis_mm, slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))

    def points(self, index: int, grid: Grid) -> Points:
        """Head coordinates of the pixels of `grid` in one slice."""
        scale = np.array(self.pose.size)[:, None]
        matrix = self.pose.rotation() / scale
        origin = matrix @ self._shift_mm(index)
        u, v = self.axis_mm[grid.columns][None, :], self.axis_mm[grid.rows][:, None]
        x, y, z = ((matrix[i, 0] * u + (matrix[i, 1] * v + origin[i])).astype(np.float32) for i in range(3))
        return Points(x, y, z)

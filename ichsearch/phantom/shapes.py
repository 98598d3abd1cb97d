"""Signed distances in mm (negative inside) of simple solids, and painting with soft edges.

In: head coordinates. Out: (rows, columns) float32 distances; `paint` changes an image of HU in place. Distances of
ellipsoids are first-order, exact enough for an edge of one or two mm.
"""

from itertools import pairwise
from typing import Final

import numpy as np

from ichsearch.phantom.fields import Image
from ichsearch.phantom.geometry import Points, Vector

Capsule = tuple[float, float, float, float]
"""x, y, z and radius of one joint of a tube, in mm."""

FAR_MM: Final = 1e3
"""A distance that paints nothing."""

_MARGIN_MM: Final = 16.0
"""How far beyond a solid its distance still matters: soft edges, noise added to it, walls."""


def coverage(distance_mm: Image, edge_mm: float) -> Image:
    """Part of each pixel inside, 0 to 1, falling over `edge_mm` about the surface."""
    return np.asarray(np.clip(0.5 - distance_mm / edge_mm, 0, 1))


def paint(image_hu: Image, value_hu: Image | float, part: Image) -> None:
    """Replace `part` (0 to 1) of each pixel by `value_hu`, in place."""
    image_hu += part * (value_hu - image_hu)


def length(x: Image, y: Image) -> Image:
    """Length of plane vectors; faster than `numpy.hypot`, whose care for overflow is not needed here."""
    return np.sqrt(x * x + y * y)


def smooth_step(value: Image, width: float) -> Image:
    """0 below -width / 2, 1 above width / 2, smooth between."""
    t = np.clip(value / width + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def meets(p: Points, low: Vector, high: Vector) -> bool:
    """Whether pixels can lie in a box: spares the drawing of what cannot show."""
    first, last = p.box_mm
    return all(first[i] < high[i] and last[i] > low[i] for i in range(3))


def near(p: Points, centre_z_mm: float, half_height_mm: float) -> bool:
    """Whether pixels lie within `half_height_mm` of a height."""
    low, high = centre_z_mm - half_height_mm, centre_z_mm + half_height_mm
    return meets(p, (-FAR_MM, -FAR_MM, low), (FAR_MM, FAR_MM, high))


def _far(p: Points) -> Image:
    return np.full_like(p.x, FAR_MM)


def ellipsoid(p: Points, centre: Vector, radii: Vector) -> Image:
    """First-order signed distance to an ellipsoid along the axes; `FAR_MM` where no pixel is near."""
    reach = max(radii) + _MARGIN_MM
    if not meets(p, _moved(centre, -reach), _moved(centre, reach)):
        return _far(p)
    x, y = ((p.x - centre[0]) / radii[0]) ** 2, ((p.y - centre[1]) / radii[1]) ** 2
    z = ((p.z - centre[2]) / radii[2]) ** 2
    slope = np.sqrt(x / radii[0] ** 2 + y / radii[1] ** 2 + z / radii[2] ** 2)
    return np.asarray((x + y + z - 1) / (2 * slope + 1e-3), np.float32)


def _moved(point: Vector, by: float) -> Vector:
    return point[0] + by, point[1] + by, point[2] + by


def capsule(p: Points, start: Capsule, end: Capsule) -> Image:
    """Signed distance to a tube whose radius changes linearly from `start` to `end`."""
    axis = np.subtract(end[:3], start[:3]).tolist()
    x, y, z = p.x - start[0], p.y - start[1], p.z - start[2]
    along = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / sum(a * a for a in axis), 0, 1)
    square = (x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (z - along * axis[2]) ** 2
    return np.asarray(np.sqrt(square) - (start[3] + along * (end[3] - start[3])), np.float32)


def tube(p: Points, joints: tuple[Capsule, ...]) -> Image:
    """Signed distance to a chain of capsules; `FAR_MM` where no pixel is near."""
    distance = _far(p)
    for start, end in pairwise(joints):
        reach = max(start[3], end[3]) + _MARGIN_MM
        low = (min(start[0], end[0]), min(start[1], end[1]), min(start[2], end[2]))
        high = (max(start[0], end[0]), max(start[1], end[1]), max(start[2], end[2]))
        if meets(p, _moved(low, -reach), _moved(high, reach)):
            np.minimum(distance, capsule(p, start, end), out=distance)
    return distance

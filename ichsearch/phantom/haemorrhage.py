"""Haemorrhages: where each of the five subtypes lies and which pixels it covers.

In: head coordinates and the spaces of the brain. Out: the part (0 to 1) of each pixel that is blood. Every subtype
but the intraventricular can lie at any height of the brain, so that a slice's height says next to nothing about its
label.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ichsearch.phantom.brain import Spaces
from ichsearch.phantom.cranium import Noise
from ichsearch.phantom.fields import Image
from ichsearch.phantom.geometry import VERTEX_MM, Points
from ichsearch.phantom.shapes import coverage, length, near, paint

MIN_AREA_MM2: Final = 40.0
"""A slice is labelled with a subtype if at least this area of it is that blood."""

BLOOD_HU: Final = (60.0, 72.0)
"""Range of the mean density of a haemorrhage; soft edges and noise widen it."""

WEIGHTS: Final = {
    "epidural": 0.14,
    "intraparenchymal": 0.28,
    "intraventricular": 0.18,
    "subarachnoid": 0.18,
    "subdural": 0.22,
}
"""How often a subtype is drawn where all exist."""

_HEIGHTS_MM: Final = {"intraventricular": (-40.0, 28.0), "subarachnoid": (-30.0, VERTEX_MM)}
"""Where the spaces that a subtype fills exist, if not everywhere."""

_SUBTLE: Final = {
    "epidural": ((-0.25, 0.4), (52.0, 68.0)),
    "intraparenchymal": ((-0.25, 0.5), (50.0, 68.0)),
    "intraventricular": ((0.2, 0.8), (42.0, 62.0)),
    "subarachnoid": ((-0.25, 0.6), (48.0, 66.0)),
    "subdural": ((-0.2, 0.5), (46.0, 66.0)),
}
"""Ranges of size and density in HU of subtle haemorrhages: small, thin, some hardly denser than cortex."""


@dataclass(frozen=True)
class Haemorrhage:
    """One haemorrhage: centre by direction (0 is the front, positive left) and height, extent, density.

    `size` and `spread`, from 0 to 1, scale what each subtype makes of them: thickness or radius, and width or depth.
    A subtle one has a `size` down to -0.25. Over `edge_mm` it fades: what of a thick slice is not blood dilutes it.
    """

    subtype: str
    azimuth_rad: float
    height_mm: float
    half_height_mm: float
    size: float
    spread: float
    density_hu: float
    midline: bool
    edge_mm: float = 2.0


def draw_haemorrhage(
    rng: np.random.Generator,
    scanned_mm: tuple[float, float],
    weights: Mapping[str, float] = WEIGHTS,
    half_heights_mm: tuple[float, float] = (18.0, 38.0),
) -> Haemorrhage:
    """A haemorrhage at a height drawn evenly over the scanned range, of a subtype in `weights` that exists there."""
    half_height = float(rng.uniform(*half_heights_mm))
    # Centres lie beyond both ends too, or the ends would be covered only half as often as the middle.
    height = float(rng.uniform(scanned_mm[0] - 0.8 * half_height, scanned_mm[1] + 0.8 * half_height))
    return haemorrhage_at(rng, height, half_height, weights)


def haemorrhage_at(
    rng: np.random.Generator, height_mm: float, half_height_mm: float, weights: Mapping[str, float]
) -> Haemorrhage:
    """A haemorrhage at a height, of a subtype in `weights` that exists there."""
    possible = [name for name in weights if _exists(name, height_mm)]
    chances = np.array([weights[name] for name in possible])
    subtype = str(rng.choice(possible, p=chances / chances.sum()))
    return Haemorrhage(
        subtype=subtype,
        azimuth_rad=_draw_azimuth(rng, height_mm),
        height_mm=height_mm,
        half_height_mm=half_height_mm,
        size=float(rng.uniform(0, 1)),
        spread=float(rng.uniform(0, 1)),
        density_hu=float(rng.uniform(*BLOOD_HU)),
        midline=bool(rng.random() < 0.2),
    )


def subtle(rng: np.random.Generator, h: Haemorrhage) -> Haemorrhage:
    """The same haemorrhage smaller, paler and diluted at its edges."""
    sizes, densities_hu = _SUBTLE[h.subtype]
    size, density_hu, edge_mm = rng.uniform(*sizes), rng.uniform(*densities_hu), rng.uniform(2, 3.5)
    return replace(h, size=float(size), density_hu=float(density_hu), edge_mm=float(edge_mm))


def _exists(subtype: str, height_mm: float) -> bool:
    low, high = _HEIGHTS_MM.get(subtype, (-np.inf, np.inf))
    return bool(low <= height_mm <= high)


def _draw_azimuth(rng: np.random.Generator, height_mm: float) -> float:
    """Any direction in which there is brain: the lower the slice, the nearer to the back."""
    front = 0.25 if height_mm > -10 else 1.3 if height_mm > -36 else 2.1
    return float(rng.uniform(front, 2.9) * rng.choice((-1, 1)))


def blood(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:
    """Part of each pixel that this haemorrhage fills, (rows, columns) float32 from 0 to 1."""
    if not near(p, h.height_mm, 1.5 * h.half_height_mm + 4):
        return np.zeros_like(p.x)
    return coverage(np.maximum(_SHAPES[h.subtype](h, p, gaps, noise), gaps.inner - 0.3), h.edge_mm)


def paint_blood(hu: Image, h: Haemorrhage, part: Image, noise: Noise) -> None:
    """Blood into the image, in place; within the brain with a rim of oedema."""
    paint(hu, h.density_hu + 1.5 * noise.warp + 1.5 * noise.grain, part)


def paint_oedema(hu: Image, h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> None:
    """The paler rim of an intraparenchymal haemorrhage, in place."""
    if h.subtype != "intraparenchymal":
        return
    rim = _intraparenchymal(h, p, gaps, noise) - 2 - 4 * h.spread - noise.drift
    paint(hu, 19.0, 0.85 * coverage(np.maximum(rim, gaps.inner + 3), 3.0))


def _fade(h: Haemorrhage, p: Points) -> Image:
    """1 at the height of the centre, 0 at both ends, round like a circle."""
    return np.asarray(np.sqrt(np.maximum(1 - ((p.z - h.height_mm) / h.half_height_mm) ** 2, 0)), np.float32)


def _surface_point(h: Haemorrhage, reach: float) -> tuple[float, float]:
    """X and y at part `reach` of the way from the axis to the inner skull, at the height of the centre."""
    height = h.height_mm / (81 if h.height_mm > 0 else 120)
    section = float(np.sqrt(max(1 - height**2, 0.04))) * reach
    return 67 * section * float(np.sin(h.azimuth_rad)), -84 * section * float(np.cos(h.azimuth_rad))


def _epidural(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:  # noqa: ARG001 - all shapes take alike
    """Lens: a ball that bulges through the skull."""
    x, y = _surface_point(h, 1.0)
    thickness, half_width = 9 + 14 * h.size, 26 + 12 * h.spread
    radius = (half_width**2 + thickness**2) / (2 * thickness)
    inwards = (radius - thickness) / float(np.hypot(x, y))
    across = (p.x - x * (1 + inwards)) ** 2 + (p.y - y * (1 + inwards)) ** 2
    rise = (p.z - h.height_mm) * half_width / h.half_height_mm
    return np.asarray(np.sqrt(across + rise**2) - radius + 0.8 * noise.warp, np.float32)


def _subdural(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:
    """Crescent along the inner skull of one side, or a band along the falx."""
    side = 1.0 if h.azimuth_rad > 0 else -1.0
    if h.midline and h.height_mm > 10:
        width = (3 + 4 * h.size) * _fade(h, p) * (1 + 0.25 * noise.warp)
        return np.asarray(np.maximum(p.x * side - width + h.edge_mm - 0.5, -p.x * side), np.float32)
    ahead = (p.x * np.sin(h.azimuth_rad) - p.y * np.cos(h.azimuth_rad)) / (length(p.x, p.y) + 1e-6)
    taper = np.sqrt(np.clip(1 - (1 - ahead) / (0.3 + 0.6 * h.spread), 0, 1))
    taper = np.minimum(taper, np.clip(np.abs(p.x) / 18, 0, 1))
    width = (6 + 9 * h.size) * _fade(h, p) * taper * (1 + 0.12 * noise.warp)
    return np.asarray(np.maximum(-gaps.inner - width + 0.5 * h.edge_mm + 0.5, 1 - p.x * side), np.float32)


def _subarachnoid(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:
    """Sulci, fissures and cisterns within a region of one side."""
    x, y = _surface_point(h, 0.75)
    radius = (30 + 18 * h.size) * _fade(h, p)
    region = length(p.x - x, p.y - y) - radius * (1 - 0.15 * noise.drift) + 2
    return np.asarray(np.maximum(gaps.sulci - 1.6, region), np.float32)


def _intraparenchymal(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:
    """Irregular blob deep in the brain."""
    x, y = _surface_point(h, 0.3 + 0.35 * h.spread)
    radius = 9 + 13 * h.size
    rise = (p.z - h.height_mm) * radius / h.half_height_mm
    lumps = radius * (0.22 * noise.drift + 0.12 * noise.warp) + 0.6 * noise.fold
    blob = np.sqrt((p.x - x) ** 2 + ((p.y - y) / (1.0 + 0.5 * h.spread)) ** 2 + rise**2) - radius + lumps
    return np.asarray(np.maximum(blob, gaps.inner + 3), np.float32)


def _intraventricular(h: Haemorrhage, p: Points, gaps: Spaces, noise: Noise) -> Image:
    """The dependent part of the ventricles, with a level, or the whole where they are narrow."""
    level = 28 - 75 * h.size
    dependent = np.where(np.abs(p.x) > 3, level - p.y + noise.drift, -1.0)
    end = np.abs(p.z - h.height_mm) - h.half_height_mm
    return np.asarray(np.maximum(np.maximum(gaps.ventricles - 1.2, dependent), end), np.float32)


_SHAPES: Final[dict[str, Callable[[Haemorrhage, Points, Spaces, Noise], Image]]] = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}

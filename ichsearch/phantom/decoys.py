"""What misleads: bright and dark structures that are no fresh blood, in patients who bleed and who do not alike.

In: a random stream that knows nothing of the blood, head coordinates and surfaces. Out: HU changed in place.
Densities: physiological calcifications 80-400 HU, an old infarct near CSF, partial volume of bone anything between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ichsearch.phantom.brain import Spaces
from ichsearch.phantom.cranium import Noise, Surfaces
from ichsearch.phantom.fields import Image
from ichsearch.phantom.geometry import Points, Vector
from ichsearch.phantom.shapes import coverage, ellipsoid, near, paint


@dataclass(frozen=True)
class Spot:
    """An ellipsoid of a density: a calcification, or the scar of an infarct."""

    centre_mm: Vector
    radii_mm: Vector
    density_hu: float


@dataclass(frozen=True)
class Decoys:
    """The misleading structures of one patient.

    `rim_hu` is how bright partial volume makes the brain at slanting bone, `sinus_hu` the density of the dural sinuses,
    and `motion_mm` how far the head moved during each slice, lowest first.
    """

    calcifications: tuple[Spot, ...]
    infarcts: tuple[Spot, ...]
    rim_hu: float
    sinus_hu: float
    motion_mm: tuple[float, ...]


_PLACES: Final = (
    ("pineal", 0.6, (0.0, 28.0, 2.0), (1.0, 1.2, 1.4)),
    ("choroid plexus", 0.55, (22.0, 33.0, 10.0), (1.0, 1.4, 1.8)),
    ("choroid plexus", 0.55, (-22.0, 33.0, 10.0), (1.0, 1.4, 1.8)),
    ("pallidum", 0.2, (20.0, -3.0, 3.0), (0.9, 1.6, 1.5)),
    ("pallidum", 0.2, (-20.0, -3.0, 3.0), (0.9, 1.6, 1.5)),
    ("carotid siphon", 0.3, (9.0, -9.0, -23.0), (0.7, 1.4, 1.5)),
    ("carotid siphon", 0.3, (-9.0, -9.0, -23.0), (0.7, 1.4, 1.5)),
    ("basilar artery", 0.2, (1.0, 1.0, -24.0), (0.8, 0.8, 2.5)),
)
"""Where calcium lies in many heads: how often, the middle, and the shape relative to the radius."""

_RADIUS_MM: Final = (1.5, 4.0)
_CALCIUM_HU: Final = (80.0, 400.0)
_INFARCT_HU: Final = (12.0, 24.0)


def draw_decoys(rng: np.random.Generator, slices: int, scanned_mm: tuple[float, float]) -> Decoys:
    """The misleading structures of one patient."""
    restless = rng.random() < 0.25
    moved = rng.uniform(0.8, 3.5, slices) * (rng.random(slices) < (0.5 if restless else 0.04))
    return Decoys(
        calcifications=(*_draw_physiological(rng), *_draw_falx(rng, scanned_mm), *_draw_scattered(rng, scanned_mm)),
        infarcts=tuple(_draw_infarct(rng, scanned_mm) for _ in range(rng.poisson(0.7))),
        rim_hu=float(rng.uniform(10, 45)),
        sinus_hu=float(rng.uniform(48, 68)),
        motion_mm=tuple(float(value) for value in moved),
    )


def _draw_physiological(rng: np.random.Generator) -> Iterator[Spot]:
    for _, chance, centre, shape in _PLACES:
        if rng.random() < chance:
            yield _spot(rng, _moved(rng, centre, 1.5), shape)


def _draw_falx(rng: np.random.Generator, scanned_mm: tuple[float, float]) -> Iterator[Spot]:
    """Plaques in the falx, long and thin, in front and behind."""
    for _ in range(rng.poisson(1.3)):
        height = float(rng.uniform(max(scanned_mm[0], 0), scanned_mm[1]))
        along = float(rng.uniform(0.55, 0.85) * rng.choice((-1, 1))) * _section_mm(height, 84)
        yield _spot(rng, (float(rng.normal(0, 0.6)), along, height), (0.5, 2.2, 1.6))


def _draw_scattered(rng: np.random.Generator, scanned_mm: tuple[float, float]) -> Iterator[Spot]:
    """Calcified scars and vessels anywhere in the brain."""
    for _ in range(rng.poisson(0.8)):
        yield _spot(rng, _anywhere(rng, scanned_mm, (0.2, 0.8)), (1.0, 1.0, 1.3))


def _draw_infarct(rng: np.random.Generator, scanned_mm: tuple[float, float]) -> Spot:
    """A lacune deep in the brain or a territory at its surface."""
    territory = rng.random() < 0.5
    centre = _anywhere(rng, scanned_mm, (0.75, 0.95) if territory else (0.2, 0.5))
    radius = float(rng.uniform(12, 26) if territory else rng.uniform(3, 7))
    return Spot(centre, (0.8 * radius, radius, 0.9 * radius), float(rng.uniform(*_INFARCT_HU)))


def _spot(rng: np.random.Generator, centre_mm: Vector, shape: Vector) -> Spot:
    radius = float(rng.uniform(*_RADIUS_MM))
    density = float(np.exp(rng.uniform(*np.log(_CALCIUM_HU))))
    return Spot(centre_mm, (shape[0] * radius, shape[1] * radius, shape[2] * radius), density)


def _moved(rng: np.random.Generator, centre_mm: Vector, by_mm: float) -> Vector:
    x, y, z = (float(value) for value in rng.normal(centre_mm, by_mm))
    return x, y, z


def _anywhere(rng: np.random.Generator, scanned_mm: tuple[float, float], reach: tuple[float, float]) -> Vector:
    """A point at part `reach` of the way from the axis to the skull."""
    height, azimuth, part = rng.uniform(*scanned_mm), rng.uniform(-2.9, 2.9), rng.uniform(*reach)
    x, y = _section_mm(height, 67) * np.sin(azimuth), -_section_mm(height, 84) * np.cos(azimuth)
    return float(part * x), float(part * y), float(height)


def _section_mm(height_mm: float, half_mm: float) -> float:
    """Half axis of the vault's section at a height."""
    return half_mm * float(np.sqrt(max(1 - (height_mm / (81 if height_mm > 0 else 120)) ** 2, 0.04)))


def paint_infarcts(hu: Image, p: Points, gaps: Spaces, noise: Noise, decoys: Decoys) -> None:
    """Darken brain, never fluid, in place."""
    for spot in decoys.infarcts:
        if near(p, spot.centre_mm[2], spot.radii_mm[2] + 8):
            radius = spot.radii_mm[1]
            ragged = ellipsoid(p, spot.centre_mm, spot.radii_mm) + radius * (0.18 * noise.drift + 0.1 * noise.warp)
            part = coverage(np.maximum(ragged, gaps.inner + 1.5), 3.0)
            hu += part * np.minimum(spot.density_hu + noise.grain - hu, 0)


def paint_bright(hu: Image, p: Points, s: Surfaces, gaps: Spaces, noise: Noise, decoys: Decoys, edge_mm: float) -> None:
    """Dense sinuses, partial volume of bone and calcifications, in place."""
    inside = coverage(gaps.inner, edge_mm)
    _paint_sinuses(hu, p, s, noise, decoys, edge_mm)
    _paint_rim(hu, p, s, inside, noise, decoys)
    for spot in decoys.calcifications:
        if near(p, spot.centre_mm[2], spot.radii_mm[2] + 4):
            part = coverage(ellipsoid(p, spot.centre_mm, spot.radii_mm) + 0.5 * noise.grain, 1.5 * edge_mm)
            paint(hu, spot.density_hu * (1 + 0.15 * noise.grain), part * inside)


def _paint_sinuses(hu: Image, p: Points, s: Surfaces, noise: Noise, decoys: Decoys, edge_mm: float) -> None:
    """The transverse sinuses along the back of the skull, and the torcula: dense as thick blood is."""
    if not near(p, -16, 12):
        return
    aside = np.abs(p.x)
    height = np.abs(p.z + 16 - 0.05 * aside) - 4
    depth = -s.inner - 5 * (1 + 0.2 * noise.warp)
    sinus = np.maximum(np.maximum(height, depth), 8 - p.y + 0.1 * aside)
    paint(hu, decoys.sinus_hu + noise.grain, 0.9 * coverage(np.maximum(sinus, s.inner + 0.5), edge_mm + 1))


def _paint_rim(hu: Image, p: Points, s: Surfaces, inside: Image, noise: Noise, decoys: Decoys) -> None:
    """Bone that reaches part of the way into the slice: patches along the vault, more above the base."""
    depth = np.maximum(-s.inner, 0) / (1.2 + 0.8 * np.clip(noise.warp, -1, 2))
    patch = np.clip(0.5 + noise.drift, 0, 1.5)
    base = np.clip((-12 - p.z) / 12, 0, 1.5)
    hu += inside * decoys.rim_hu * (patch + base) * np.exp(-depth)


def smear(hu: Image, motion_px: float) -> Image:
    """What a detector sees of a head that moved across `motion_px` pixels during the scan, (rows, columns)."""
    step = round(motion_px)
    if step == 0:
        return hu
    ahead, behind = np.roll(hu, step, axis=1), np.roll(hu, -step, axis=0)
    return np.asarray(0.6 * hu + 0.25 * ahead + 0.15 * behind, np.float32)

"""Skull, skull base, face and scalp: everything of the head but what the dura holds.

In: head coordinates, a drawn `Cranium` and noise. Out: signed distances that the brain and haemorrhages share
(`Surfaces`) and HU painted in place.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ichsearch.phantom.fields import Image, Part
from ichsearch.phantom.geometry import Points
from ichsearch.phantom.shapes import coverage, ellipsoid, meets, near, paint, smooth_step, tube

AIR_HU: Final = -1000.0
FAT_HU: Final = -95.0
MUSCLE_HU: Final = 52.0

_HALF_WIDTH_MM: Final = 67.0
_HALF_LENGTH_MM: Final = 84.0
_ABOVE_MM: Final = 81.0
_BELOW_MM: Final = 120.0
_PETROUS: Final = ((66.0, 27.0, -34.0, 13.0), (46.0, 17.0, -35.0, 9.0), (15.0, 0.0, -38.0, 6.0))
_SPHENOID: Final = ((60.0, -34.0, -20.0, 5.0), (38.0, -32.0, -20.0, 3.0), (10.0, -20.0, -22.0, 3.5))
_NOSE: Final = ((0.0, -92.0, -34.0, 7.0), (0.0, -99.0, -62.0, 11.0))


@dataclass(frozen=True)
class Cranium:
    """What varies from skull to skull."""

    skull_mm: float
    scalp_mm: float
    cortex_hu: float
    diploe_hu: float
    egg: float
    lumps: tuple[float, float, float, float]
    sinus_mm: float
    bumpiness_mm: float


@dataclass(frozen=True)
class Noise:
    """Fields of unit variance on the drawn part of one slice."""

    fold: Image
    warp: Image
    drift: Image
    grain: Image

    def within(self, part: Part) -> "Noise":
        """The same fields on a part of the pixels."""
        return Noise(self.fold[part], self.warp[part], self.drift[part], self.grain[part])


@dataclass(frozen=True)
class Surfaces:
    """Signed distances in mm that separate the layers of the head; negative is inside."""

    vault: Image
    inner: Image
    petrous: Image
    ridges: Image
    skull_mm: Image


def surfaces(p: Points, cranium: Cranium, noise: Noise) -> Surfaces:
    """Inner surface of the vault, inner surface with the skull base, ridges of the base, and thickness of the bone."""
    vault = _vault(p, cranium, noise)
    floor = floor_mm(p) if near(p, -50, 48) else np.float32(-100)
    base = 0.7 * (floor + 1.5 * noise.warp + 2 * noise.drift - p.z)
    skull = np.maximum(cranium.skull_mm + 0.7 * noise.drift + 0.1 * np.maximum(p.y - 55, 0), 3)
    # The frontal sinus widens the bone; the floors of the fossae are thinner than the vault.
    skull += 1.4 * cranium.sinus_mm * _sinus_place(p)
    skull *= 1 - 0.45 * np.clip((base - vault) / 4, 0, 1)
    bent = replace(p, x=np.abs(p.x + 0.8 * noise.warp), y=p.y + 1.2 * noise.drift)
    petrous = tube(bent, _PETROUS)
    ridges = np.minimum(petrous, tube(bent, _SPHENOID)) + 0.5 * noise.fold
    inner = np.maximum(np.maximum(vault, base), -ridges)
    return Surfaces(vault, inner, petrous, ridges, skull)


def _vault(p: Points, cranium: Cranium, noise: Noise) -> Image:
    """Signed distance to an egg with a few smooth lumps, open downwards."""
    x = p.x / (_HALF_WIDTH_MM * (1 + cranium.egg * p.y / _HALF_LENGTH_MM))
    y, z = p.y / _HALF_LENGTH_MM, np.maximum(p.z, 0) / _ABOVE_MM + np.minimum(p.z, 0) / _BELOW_MM
    rho = np.sqrt(x * x + y * y + z * z) + 1e-6
    slope = np.sqrt((x / _HALF_WIDTH_MM) ** 2 + (y / _HALF_LENGTH_MM) ** 2 + (z / 90.0) ** 2) / rho
    cosine, sine = -y / rho, x / rho
    double = cosine * cosine - sine * sine
    a, b, c, d = cranium.lumps
    lumps = 2 * a * sine * cosine + b * cosine * (2 * double - 1) + c * sine * (2 * double + 1) + d * double**2
    return np.asarray((rho - 1) / (slope + 1e-6) + lumps + cranium.bumpiness_mm * noise.drift, np.float32)


def _sinus_place(p: Points) -> Image:
    """1 in the middle of the forehead, 0 away from it."""
    if not meets(p, (-30, -130, -32), (30, -45, 16)):
        return np.zeros_like(p.x)
    across, rise = np.clip(1 - (p.x / 30) ** 2, 0, 1), np.clip(1 - ((p.z + 8) / 24) ** 2, 0, 1)
    return np.asarray(across * rise * smooth_step(-60 - p.y, 30), np.float32)


def floor_mm(p: Points) -> Image:
    """Height of the skull base: anterior fossa above middle fossa above posterior fossa, clivus between."""
    aside = np.abs(p.x)
    bowl = np.minimum(((aside - 36) / 9) ** 2 + ((p.y + 16) / 11) ** 2, 16)
    roof = 9 * np.clip(1 - ((aside - 30) / 22) ** 2, 0, 1) * np.clip(1 - ((p.y + 56) / 34) ** 2, 0, 1)
    middle = smooth_step(0.5 * aside - 5 - p.y, 8)
    anterior = smooth_step(-14 - 0.3 * aside - p.y, 8)
    clivus = smooth_step(16 - aside, 8) * smooth_step(4 - p.y, 6)
    floor = -72 + (24 + bowl) * middle * (1 - anterior) + (42 + roof) * anterior
    return np.asarray(floor + 20 * clivus * (1 - anterior), np.float32)


def paint_cranium(hu: Image, p: Points, s: Surfaces, cranium: Cranium, noise: Noise, edge_mm: float) -> None:
    """Scalp, face and bone into an image of air, in place."""
    neck = 16 * smooth_step(p.y - 30, 40) * np.clip((-24 - p.z) / 20, 0, 1)
    skin = s.vault - s.skull_mm - cranium.scalp_mm - neck - 0.8 * noise.warp
    if near(p, -50, 30):
        aside = replace(p, x=np.abs(p.x))
        skin = np.minimum(skin, np.minimum(tube(p, _NOSE), ellipsoid(aside, (80.0, 12.0, -40.0), (7.0, 16.0, 18.0))))
    paint(hu, 20.0, coverage(skin, edge_mm))
    _paint_soft_tissue(hu, p, skin, s, noise, edge_mm)
    if meets(p, (-100, -130, -98), (100, -20, -2)):
        _paint_face(hu, p, skin, noise, edge_mm)
    bone = np.maximum(s.inner - s.skull_mm, s.vault - s.skull_mm)
    shell = np.maximum(bone, -s.inner)
    depth = np.clip(s.inner / s.skull_mm, 0, 1)
    tables = (2 * depth - 1) ** 2
    bone_hu = cranium.diploe_hu + (cranium.cortex_hu - cranium.diploe_hu) * tables + 60 * noise.grain
    paint(hu, bone_hu, coverage(shell, edge_mm))
    if near(p, -30, 48):
        _paint_base(hu, p, skin, s, cranium, noise, edge_mm)


def _paint_soft_tissue(hu: Image, p: Points, skin: Image, s: Surfaces, noise: Noise, edge_mm: float) -> None:
    """Fat under the skin, muscle and fascia where the layer is deep."""
    fat = np.maximum(skin + 2.2, s.skull_mm - s.vault)
    paint(hu, FAT_HU + 8 * noise.grain, coverage(fat, edge_mm))
    depth = skin + 5.5 + 0.8 * noise.warp + 0.12 * np.maximum(p.z + 25, 0)
    muscle = np.maximum(depth, -1.5 * (noise.fold + 0.55))
    paint(hu, MUSCLE_HU + 3 * noise.grain, coverage(muscle, edge_mm))


def _paint_face(hu: Image, p: Points, skin: Image, noise: Noise, edge_mm: float) -> None:
    """Orbits, nasal and sinus air with thin bony walls, jaw muscles as already painted."""
    aside = replace(p, x=np.abs(p.x) + 0.8 * noise.warp)
    region = skin + 7
    ethmoid = ellipsoid(aside, (0.0, -62.0, -42.0), (14.0, 30.0, 26.0))
    maxilla = ellipsoid(aside, (32.0, -62.0, -66.0), (14.0, 17.0, 13.0))
    sinus = np.maximum(np.minimum(ethmoid, maxilla), region)
    orbit = np.maximum(ellipsoid(aside, (32.0, -62.0, -36.0), (19.0, 28.0, 17.0)), skin + 4)
    paint(hu, 750.0, coverage(np.abs(np.minimum(sinus, orbit) - 0.8) - 1.3, edge_mm) * coverage(p.y + 42, 8))
    paint(hu, AIR_HU, coverage(sinus + 0.5, edge_mm))
    septa = np.maximum(sinus, np.abs(noise.fold + 0.3 * noise.grain) * 3 - 0.5)
    paint(hu, 350.0, coverage(septa, edge_mm))
    paint(hu, FAT_HU, coverage(orbit + 0.5, edge_mm))
    globe = ellipsoid(aside, (33.0, -74.0, -36.0), (12.0, 12.0, 12.0))
    paint(hu, 45.0, coverage(globe, edge_mm))
    paint(hu, 10.0, coverage(globe + 1.6, edge_mm))
    nerve = np.maximum(np.abs(aside.x - 32 - 0.45 * (p.y + 62)) - 2, np.abs(p.z + 35) - 2.5)
    paint(hu, 40.0, coverage(np.maximum(nerve, np.maximum(orbit, -globe)), edge_mm))


def _paint_base(hu: Image, p: Points, skin: Image, s: Surfaces, cranium: Cranium, noise: Noise, edge_mm: float) -> None:
    """Petrous and sphenoid bone with air cells, the frontal sinus."""
    within = np.maximum(skin + 8, s.vault - s.skull_mm)
    paint(hu, cranium.cortex_hu - 150 + 250 * noise.grain, coverage(np.maximum(s.ridges, within), edge_mm))
    aside = np.abs(p.x)
    cells = np.maximum(np.maximum(s.petrous + 3.5, within), np.maximum(50 - aside, 2.2 * (0.25 - noise.fold)))
    sphenoid_sinus = ellipsoid(p, (0.0, -22.0, -36.0), (12.0, 12.0, 9.0)) + noise.warp
    room = (np.maximum(0.5 * s.skull_mm, 3) - 1.5) * np.clip((4 + 0.7 * noise.fold) * _sinus_place(p) - 1.5, -1, 1)
    frontal = np.maximum(np.abs(s.inner - 0.5 * s.skull_mm) - room, 1.2 - aside + 0.5 * noise.fold)
    air = np.minimum(np.minimum(cells, sphenoid_sinus), frontal + (6 if cranium.sinus_mm < 1 else 0))
    paint(hu, AIR_HU, coverage(air, edge_mm))

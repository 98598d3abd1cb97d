"""The brain: cortex and sulci, white and deep grey matter, ventricles, cisterns, falx.

In: head coordinates, surfaces of the cranium, a drawn `Brain` and noise. Out: HU painted in place and the spaces
(`Spaces`) that blood can fill.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ichsearch.phantom.cranium import Noise, Surfaces
from ichsearch.phantom.fields import Image
from ichsearch.phantom.geometry import Points
from ichsearch.phantom.shapes import FAR_MM, Capsule, coverage, ellipsoid, length, near, paint, smooth_step, tube

_FRONTAL: Final = ((9.5, -34.0, 5.0, 3.4), (7.0, -18.0, 14.0, 4.6), (8.5, 0.0, 20.0, 4.6), (15.0, 20.0, 21.0, 5.0))
_ATRIUM: Final = ((15.0, 20.0, 21.0, 5.0), (24.0, 35.0, 9.0, 5.8), (23.0, 54.0, 5.0, 2.8))
_TEMPORAL: Final = ((24.0, 35.0, 8.0, 5.0), (33.0, 20.0, -10.0, 3.2), (33.0, -6.0, -22.0, 2.4))
_LATERAL: Final = (_FRONTAL, _ATRIUM, _TEMPORAL)
_CHOROID_MM: Final = (22.0, 33.0, 10.0)
_PINEAL_MM: Final = (0.0, 28.0, 2.0)
_FOLD_MM: Final = 4.2
"""Distance in which the cortex field changes by one: turns its value into a distance from the sulcus."""


@dataclass(frozen=True)
class Brain:
    """What varies from brain to brain."""

    grey_hu: float
    contrast_hu: float
    csf_hu: float
    atrophy_mm: float
    ventricle_mm: float
    gyri: int
    gyri_phase_rad: float
    midline_mm: float
    pineal_mm: float
    choroid_mm: float


@dataclass(frozen=True)
class Spaces:
    """Signed distances in mm of what blood can fill; negative is inside."""

    inner: Image
    sulci: Image
    ventricles: Image


@dataclass(frozen=True)
class Cortex:
    """Distance to the middle of the nearest sulcus in mm, and 1 below the tentorium, 0 above."""

    folds: Image
    cerebellum: Image


def spaces(p: Points, s: Surfaces, brain: Brain, noise: Noise) -> tuple[Points, Cortex, Spaces]:
    """Coordinates bent as this brain is, its folds and its fluid spaces."""
    bent = Points(p.x + brain.midline_mm * noise.drift, p.y + 1.8 * noise.warp, p.z + 1.5 * noise.drift)
    aside = replace(bent, x=np.abs(bent.x + 0.7 * noise.warp))
    cortex = Cortex(_folds(p, brain, noise), _cerebellum(bent))
    sulci = np.minimum(_sulci(bent, s, cortex, brain, noise), _cisterns(bent, aside, brain, noise))
    return bent, cortex, Spaces(s.inner, np.maximum(sulci, s.inner + 0.3), _ventricles(bent, aside, brain))


def _folds(p: Points, brain: Brain, noise: Noise) -> Image:
    """Distance to the middle of the nearest sulcus: zero lines of noise, drawn out from the surface inwards."""
    # Quarters of a turn along a diamond: as good as an angle here and ten times as fast.
    aside, ahead = np.abs(p.x) / 67, np.abs(p.y) / 84
    quarter = aside / (aside + ahead + 1e-6)
    quarters = np.where(p.y < 0, quarter, 2 - quarter) * np.sign(p.x)
    radial = np.sin(0.5 * np.pi * brain.gyri * quarters + brain.gyri_phase_rad + 2.5 * noise.drift + 1.2 * noise.warp)
    # Near the vertex rays would meet in a star.
    radial *= 0.9 * np.clip((85 - p.z) / 40, 0.2, 1)
    return np.asarray(_FOLD_MM * np.abs(0.75 * noise.fold + radial), np.float32)


def _cerebellum(p: Points) -> Image:
    """1 below the tentorium, 0 above."""
    if not near(p, -40, 50):
        return np.zeros_like(p.x)
    below = smooth_step(-14 - p.z + 0.25 * p.y - 0.18 * np.abs(p.x), 5)
    return np.asarray(below * smooth_step(p.y + 5 - 0.5 * np.abs(p.x), 8), np.float32)


def _sulci(p: Points, s: Surfaces, cortex: Cortex, brain: Brain, noise: Noise) -> Image:
    """Folds of the cortex, the gap between the hemispheres and the rim of fluid under the skull."""
    fade = np.clip(1 + s.vault / (np.maximum(15 + 5 * noise.drift, 1)), 0, 1) * (1 - cortex.cerebellum)
    width = brain.atrophy_mm * (0.75 + 0.5 * np.clip(noise.warp, -1, 1.5))
    folds = cortex.folds - (0.15 + width) * fade + 2 * (fade == 0)
    inland = np.clip((38 - np.abs(p.y + 8)) / 10, 0, 1) * np.clip((38 - p.z) / 12, 0, 1)
    gap = np.abs(p.x) - (0.1 + 0.6 * width) * (p.y < 30) + 4 * inland
    return np.asarray(np.minimum(np.minimum(folds, gap), -s.inner - 0.5 * width), np.float32)


def _cisterns(p: Points, aside: Points, brain: Brain, noise: Noise) -> Image:
    """Sylvian fissures and the cisterns about the brain stem."""
    distance = np.full_like(p.x, FAR_MM)
    width = 0.5 + 0.8 * brain.atrophy_mm
    if near(p, 0, 28):
        height = np.abs(p.z - 1) - 15
        stem = np.abs(aside.y + 14 - 0.3 * (aside.x - 38) - 0.6 * p.z + 1.5 * noise.fold) - width - 0.4
        insula = np.abs(aside.x - 37 + 0.006 * (aside.y + 4) ** 2 + 0.8 * noise.fold) - width + 0.2
        fissure = np.maximum(stem, np.maximum(37 - aside.x, height))
        distance = np.minimum(fissure, np.maximum(insula, np.maximum(np.abs(aside.y + 4) - 17, height)))
    if near(p, -22, 28):
        heart = 1 + 0.12 * np.clip((aside.x - 12) / 8, -1, 1) - 0.1 * smooth_step(p.y - 22, 16)
        ring = np.abs(length(aside.x / 18, (p.y - 14) / 16) - heart + 0.06 * noise.fold) * 17
        ring -= 0.3 + (0.4 + 0.7 * brain.atrophy_mm) * (0.7 + 0.9 * noise.warp)
        ambient = np.maximum(np.maximum(ring, np.abs(p.z + 18) - 11), 4 - p.y)
        star = ellipsoid(aside, (0.0, -9.0, -22.0), (13.0, 8.0, 7.0)) + 2 * noise.fold
        plate = ellipsoid(p, (0.0, 33.0, -8.0), (9.0, 4.5, 6.0))
        distance = np.minimum(np.minimum(distance, ambient), np.minimum(star, plate))
    if near(p, -44, 26):
        pons = ellipsoid(p, (0.0, 1.0, -38.0), (12.0, 3.5, 14.0))
        magna = ellipsoid(p, (0.0, 68.0, -50.0), (9.0, 7.0, 9.0))
        distance = np.minimum(distance, np.minimum(pons, magna))
    return distance


def _ventricles(p: Points, aside: Points, brain: Brain) -> Image:
    """Lateral, third and fourth ventricles."""
    distance = np.full_like(p.x, FAR_MM)
    for joints in _LATERAL:
        np.minimum(distance, tube(aside, joints), out=distance)
    if near(p, 0, 26):
        third = np.maximum(ellipsoid(p, (0.0, 4.0, 0.0), (2.0, 13.0, 14.0)), np.abs(p.z) - 12)
        np.minimum(distance, third, out=distance)
    if near(p, -36, 26):
        np.minimum(distance, ellipsoid(aside, (0.0, 37.0, -36.0), (7.0, 5.0, 11.0)), out=distance)
    return distance - np.float32(brain.ventricle_mm)


def paint_brain(
    hu: Image, p: Points, s: Surfaces, cortex: Cortex, gaps: Spaces, brain: Brain, noise: Noise, edge_mm: float
) -> None:
    """Everything inside the inner surface of the skull, in place; `p` are the bent coordinates."""
    inside = coverage(s.inner + 0.5, edge_mm)
    if not inside.any():
        return
    tissue = np.full_like(hu, brain.grey_hu)
    white = brain.grey_hu - brain.contrast_hu
    paint(tissue, white, coverage(-_below_cortex(p, s, cortex, noise), 2.5) * (1 - 0.6 * cortex.cerebellum))
    aside = replace(p, x=np.abs(p.x))
    _paint_nuclei(tissue, aside, brain)
    # The ventricles of the old are rimmed by paler white matter.
    tissue -= 0.5 * brain.contrast_hu * coverage(gaps.ventricles - 5, 9) * brain.atrophy_mm
    tissue += 1.2 * noise.warp
    paint(tissue, brain.csf_hu + 1.0 * noise.grain, coverage(gaps.sulci, edge_mm))
    paint(tissue, brain.csf_hu, coverage(gaps.ventricles, edge_mm + 0.6))
    _paint_folds_of_dura(tissue, p, s, noise, edge_mm)
    _paint_calcifications(tissue, aside, brain, noise, edge_mm)
    paint(hu, tissue, inside)


def _below_cortex(p: Points, s: Surfaces, cortex: Cortex, noise: Noise) -> Image:
    """Distance in mm below the grey ribbon: positive is white matter."""
    from_sulcus = cortex.folds + 0.7 * np.maximum(-s.vault - 15 - 4 * noise.drift, 0)
    from_midline = np.abs(p.x) - 2.5 - 1.5 * noise.fold
    return np.asarray(np.minimum(np.minimum(from_sulcus - 3.0, -s.inner - 4.5), from_midline), np.float32)


def _paint_nuclei(tissue: Image, aside: Points, brain: Brain) -> None:
    """Thalamus, lentiform nucleus and head of the caudate: grey, a little denser than cortex."""
    if near(aside, 5, 20):
        thalamus = ellipsoid(aside, (10.0, 12.0, 5.0), (8.0, 14.0, 10.0))
        lentiform = ellipsoid(replace(aside, x=aside.x - 0.25 * aside.y), (25.0, -4.0, 3.0), (6.5, 17.0, 11.0))
        caudate = ellipsoid(aside, (13.0, -24.0, 9.0), (5.0, 9.0, 10.0))
        nuclei = np.minimum(np.minimum(thalamus, lentiform), caudate)
        paint(tissue, brain.grey_hu + 1.0, coverage(nuclei, 3.0))


def _paint_folds_of_dura(tissue: Image, p: Points, s: Surfaces, noise: Noise, edge_mm: float) -> None:
    """Falx, tentorium and the sagittal sinus: a little denser than grey matter, as flowing blood is."""
    aside = np.abs(p.x)
    reach = np.minimum(p.y - 32 - 0.8 * np.abs(p.z), p.z + 14)
    reach = np.maximum(np.maximum(reach, p.z - 36), np.minimum(-46 - p.y, p.z + 8))
    paint(tissue, 47.0, 0.8 * coverage(np.maximum(aside - 0.5, -reach), edge_mm))
    sinus = np.maximum(0.9 * aside - s.inner - 6.0, -np.maximum(p.y - 20, p.z - 40))
    paint(tissue, 50.0 + noise.grain, 0.85 * coverage(np.maximum(sinus, -18 - p.z), edge_mm))
    if near(p, -12, 28):
        leaf = np.abs(-14 - p.z + 0.25 * p.y - 0.18 * aside) - 1.3
        leaf = np.maximum(leaf, np.maximum(22 - aside, 0.55 * aside - p.y - 3))
        paint(tissue, 46.0, 0.7 * coverage(leaf, edge_mm))


def _paint_calcifications(tissue: Image, aside: Points, brain: Brain, noise: Noise, edge_mm: float) -> None:
    """Pineal gland and choroid plexus, where this brain has them calcified."""
    spots: tuple[Capsule, ...] = ((*_PINEAL_MM, brain.pineal_mm), (*_CHOROID_MM, brain.choroid_mm))
    for x, y, z, radius in spots:
        if radius > 0 and near(aside, z, 8):
            spot = ellipsoid(aside, (x, y, z), (radius, 1.3 * radius, 1.4 * radius)) + 0.5 * noise.grain
            paint(tissue, 260.0 + 60 * noise.grain, coverage(spot, edge_mm))

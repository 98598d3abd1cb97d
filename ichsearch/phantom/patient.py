"""One patient: what is drawn about head, blood and scanner, and the slices that follow from it.

In: the seed of the cohort and the patient's number. Out: a frozen `Patient`, and for each of its slices HU and the
area of each subtype of blood. Drawing is apart from rendering: the same patient gives the same pixels wherever it is
rendered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from ichsearch.labels import SUBTYPES
from ichsearch.phantom.brain import Brain, paint_brain, spaces
from ichsearch.phantom.cranium import AIR_HU, Cranium, Noise, paint_cranium, surfaces
from ichsearch.phantom.decoys import Decoys, draw_decoys, paint_bright, paint_infarcts, smear
from ichsearch.phantom.design import Design
from ichsearch.phantom.fields import Grid, Image, SmoothField, draw_field
from ichsearch.phantom.geometry import Pose, Stack
from ichsearch.phantom.haemorrhage import (
    MIN_AREA_MM2,
    Haemorrhage,
    blood,
    paint_blood,
    paint_oedema,
)
from ichsearch.phantom.mix import draw_haemorrhages
from ichsearch.phantom.scanner import (
    Scanner,
    Storage,
    draw_streaks,
    empty_image,
    harden_beam,
    noise_tile,
    slice_noise,
    worsened,
)


class Purpose(IntEnum):
    """What a random stream is for; streams of different purpose are independent."""

    COHORT = 0
    HEAD = 1
    BLOOD = 2
    SCANNER = 3
    FIELDS = 4
    PIXELS = 5
    DECOYS = 6


def generator(seed: int, patient: int, purpose: Purpose) -> np.random.Generator:
    """The random stream of one patient and purpose."""
    return np.random.default_rng((seed, patient, purpose))


@dataclass(frozen=True)
class Patient:
    """Everything drawn about a patient."""

    seed: int
    number: int
    stack: Stack
    cranium: Cranium
    brain: Brain
    scanner: Scanner
    haemorrhages: tuple[Haemorrhage, ...]
    decoys: Decoys | None = None


@dataclass(frozen=True)
class RenderedSlice:
    """HU of a slice, (matrix, matrix) float32, and the part of each pixel that is blood of each subtype present."""

    hu: Image
    blood: dict[str, Image]
    pixel_mm: float

    def labels(self) -> dict[str, bool]:
        """Whether at least `MIN_AREA_MM2` of each subtype lies in the slice."""
        area = {name: float(part.sum()) * self.pixel_mm**2 for name, part in self.blood.items()}
        return {name: area.get(name, 0.0) >= MIN_AREA_MM2 for name in SUBTYPES}


def draw_patient(
    seed: int, number: int, *, slices: int, matrix: int, bleeding: bool, storage: Storage, design: Design
) -> Patient:
    """Draw a patient; `slices` and `matrix` are 1 or more."""
    head, accident = generator(seed, number, Purpose.HEAD), generator(seed, number, Purpose.BLOOD)
    stack = replace(_draw_stack(head, slices, matrix), scanned_mm=design.scanned_mm)
    patient = Patient(
        seed=seed,
        number=number,
        stack=stack,
        cranium=_draw_cranium(head),
        brain=_draw_brain(head),
        scanner=_draw_scanner(generator(seed, number, Purpose.SCANNER), storage),
        haemorrhages=draw_haemorrhages(accident, design) if bleeding else (),
    )
    return _misleading(patient) if design.hard else patient


def _misleading(patient: Patient) -> Patient:
    """The same patient with decoys, a worse scanner and a density of the brain that tells less."""
    rng = generator(patient.seed, patient.number, Purpose.DECOYS)
    stack, brain = patient.stack, patient.brain
    return replace(
        patient,
        brain=replace(brain, grey_hu=float(rng.normal(37, 2.0)), contrast_hu=float(rng.uniform(5, 11))),
        scanner=worsened(rng, patient.scanner),
        decoys=draw_decoys(rng, stack.slices, stack.scanned_mm),
    )


def _draw_stack(rng: np.random.Generator, slices: int, matrix: int) -> Stack:
    tilt_degrees = rng.uniform(8, 20) if rng.random() < 0.8 else 0.0
    pose = Pose(
        size=(float(rng.normal(1, 0.035)), float(rng.normal(0.97, 0.03)), float(rng.normal(1, 0.03))),
        yaw_rad=float(np.radians(rng.normal(0, 4))),
        pitch_rad=float(np.radians(rng.normal(0, 3))),
        roll_rad=float(np.radians(rng.normal(0, 2))),
        offset_mm=(float(rng.normal(0, 4)), float(rng.normal(0, 5))),
    )
    return Stack(
        matrix=matrix,
        slices=slices,
        pixel_mm=float(rng.choice((235.0, 240.0, 250.0))) / matrix,
        tilt_rad=float(np.radians(tilt_degrees)),
        pose=pose,
        isocentre_z_mm=float(rng.uniform(-150, 250)),
    )


def _draw_cranium(rng: np.random.Generator) -> Cranium:
    a, b, c, d = (float(value) for value in rng.normal(0, (0.9, 0.7, 0.5, 0.9)))
    return Cranium(
        skull_mm=float(rng.uniform(5, 8)),
        scalp_mm=float(rng.uniform(4, 8)),
        cortex_hu=float(rng.uniform(1250, 1750)),
        diploe_hu=float(rng.uniform(550, 900)),
        egg=float(rng.uniform(0.04, 0.13)),
        lumps=(a, b, c, d),
        sinus_mm=float(rng.uniform(0, 5)),
        bumpiness_mm=float(rng.uniform(0.4, 1.1)),
    )


def _draw_brain(rng: np.random.Generator) -> Brain:
    age = float(rng.random())
    return Brain(
        grey_hu=float(rng.normal(37, 1.2)),
        contrast_hu=float(rng.uniform(7, 11)),
        csf_hu=float(rng.uniform(4, 9)),
        atrophy_mm=float(np.clip(0.25 + 1.5 * age**1.5 + rng.normal(0, 0.15), 0.1, 2)),
        ventricle_mm=float(-0.8 + 4 * age**2 + rng.normal(0, 0.5)),
        gyri=int(rng.integers(13, 19)),
        gyri_phase_rad=float(rng.uniform(0, 2 * np.pi)),
        midline_mm=float(rng.uniform(0.2, 0.9)),
        pineal_mm=float(rng.uniform(1.2, 3)) if rng.random() < 0.6 else 0.0,
        choroid_mm=float(rng.uniform(1.2, 3.5)) if rng.random() < 0.5 * (0.3 + age) else 0.0,
    )


def _draw_scanner(rng: np.random.Generator, storage: Storage) -> Scanner:
    return Scanner(
        storage=storage,
        noise_hu=float(rng.uniform(3.0, 5.2)),
        kernel_mm=float(rng.uniform(0.35, 0.6)),
        cupping_hu=float(rng.uniform(2, 5)),
        streak_hu=float(rng.uniform(2, 6)),
        holder_radius_mm=float(rng.uniform(105, 125)),
        holder_centre_mm=float(rng.uniform(-8, 2)),
        holder_half_angle_rad=float(rng.uniform(0.6, 1.4)),
        window=(int(rng.choice((36, 40, 47))), 80) if storage is not Storage.SIGNED_16 else (30, 80),
    )


@dataclass(frozen=True)
class _Texture:
    """The patient's random fields and what is the same in all of its slices."""

    fold: SmoothField
    warp: SmoothField
    drift: SmoothField
    grain: SmoothField
    background: Image
    tile: Image

    def at(self, height_mm: float, grid: Grid) -> Noise:
        """All fields on the drawn part of the slice at one height."""
        fields = (self.fold, self.warp, self.drift, self.grain)
        return Noise(*(field.at(height_mm, grid) for field in fields))


def _texture(patient: Patient) -> _Texture:
    stack, scanner = patient.stack, patient.scanner
    rng = generator(patient.seed, patient.number, Purpose.FIELDS)
    fold, warp, drift, grain = (draw_field(rng, knot, stack.axis_mm) for knot in (6.0, 14.0, 36.0, 3.5))
    background = empty_image(scanner, stack.axis_mm, _edge_mm(stack))
    return _Texture(fold, warp, drift, grain, background, noise_tile(rng, scanner, stack.matrix, stack.pixel_mm))


def _edge_mm(stack: Stack) -> float:
    """Width of a sharp edge in the image: the point spread of a scanner, or a pixel where that is wider."""
    return max(1.1, stack.pixel_mm)


def render(patient: Patient) -> Iterator[RenderedSlice]:
    """The slices of a patient from the lowest to the highest."""
    texture = _texture(patient)
    rng = generator(patient.seed, patient.number, Purpose.PIXELS)
    for index in range(patient.stack.slices):
        yield _render_slice(patient, texture, index, rng)


def _render_slice(patient: Patient, texture: _Texture, index: int, rng: np.random.Generator) -> RenderedSlice:
    stack = patient.stack
    hu = texture.background.copy()
    streaks = draw_streaks(rng, stack.matrix)
    shape = (stack.matrix, stack.matrix)
    whole: dict[str, Image] = {h.subtype: np.zeros(shape, np.float32) for h in patient.haemorrhages}
    grid = stack.grid(index)
    noise = texture.at(stack.height_mm(index), grid)
    for band, place in grid.bands():
        head, parts = _render_band(patient, index, band, noise.within(place), streaks[band.rows])
        np.maximum(hu[band.rows, band.columns], head, out=hu[band.rows, band.columns])
        for h, part in parts.items():
            window = whole[h.subtype][band.rows, band.columns]
            np.maximum(window, part, out=window)
    if patient.decoys is not None:
        hu = smear(hu, patient.decoys.motion_mm[index] / stack.pixel_mm)
    hu += slice_noise(rng, texture.tile, stack.matrix)
    return RenderedSlice(hu, whole, stack.pixel_mm)


def _render_band(
    patient: Patient, index: int, band: Grid, noise: Noise, streaks: Image
) -> tuple[Image, dict[Haemorrhage, Image]]:
    """The head without noise of the scanner, in HU, and the part of each pixel that each haemorrhage fills."""
    edge = _edge_mm(patient.stack)
    p = patient.stack.points(index, band)
    outer = surfaces(p, patient.cranium, noise)
    bent, cortex, gaps = spaces(p, outer, patient.brain, noise)
    hu = np.full_like(p.x, AIR_HU)
    paint_cranium(hu, p, outer, patient.cranium, noise, edge)
    paint_brain(hu, bent, outer, cortex, gaps, patient.brain, noise, edge)
    parts = {h: part for h in patient.haemorrhages if (part := blood(h, bent, gaps, noise)).any()}
    if patient.decoys is not None:
        paint_infarcts(hu, bent, gaps, noise, patient.decoys)
    for h in parts:
        paint_oedema(hu, h, bent, gaps, noise)
    for h, part in parts.items():
        paint_blood(hu, h, part, noise)
    if patient.decoys is not None:
        paint_bright(hu, bent, outer, gaps, noise, patient.decoys, edge)
    harden_beam(hu, p, outer, noise, streaks, patient.scanner)
    return hu, parts

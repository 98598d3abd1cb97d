"""Which haemorrhages a cohort's patients have: how many bleed, from what, and what comes together.

In: a `Design` and a patient's random stream. Out: the haemorrhages of a patient who bleeds.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ichsearch.labels import SUBTYPES
from ichsearch.phantom.design import Design
from ichsearch.phantom.haemorrhage import Haemorrhage, draw_haemorrhage, haemorrhage_at, subtle

_COMPANION_MM: Final = 5.0
"""Standard deviation of the heights of haemorrhages of one event."""

_EXTENT: Final = (0.18, 0.34)
"""Half height of a haemorrhage as part of the scanned range: a third of the slices of who bleeds are positive."""


@dataclass(frozen=True)
class Mix:
    """Share of patients who bleed, of these with a second subtype at the same height, and weights of the subtypes."""

    bleeding: float
    companion: float
    weights: tuple[float, float, float, float, float]


# Fitted: with them, slices are labelled as often as in the RSNA 2019 set (any 14.4 %; epidural 0.41,
# intraparenchymal 4.8, intraventricular 3.5, subarachnoid 4.8, subdural 6.3). Keys: hard, even position.
_RSNA: Final = {
    (False, False): Mix(0.374, 0.50, (0.010, 0.120, 0.440, 0.268, 0.162)),
    (False, True): Mix(0.358, 0.51, (0.018, 0.204, 0.268, 0.241, 0.269)),
    (True, False): Mix(0.364, 0.52, (0.008, 0.120, 0.453, 0.284, 0.135)),
    (True, True): Mix(0.348, 0.53, (0.018, 0.222, 0.252, 0.260, 0.248)),
}


def bleeding_patients(design: Design, patients: int) -> int:
    """How many of a cohort's patients bleed."""
    if design.prevalence == "half":
        return (patients + 1) // 2
    return round(patients * _RSNA[design.hard, design.even_position].bleeding)


def draw_haemorrhages(rng: np.random.Generator, design: Design) -> tuple[Haemorrhage, ...]:
    """The haemorrhages of one patient who bleeds."""
    drawn = _independent(rng, design) if design.prevalence == "half" else _as_in_rsna(rng, design)
    return tuple(subtle(rng, h) for h in drawn) if design.hard else drawn


def _independent(rng: np.random.Generator, design: Design) -> tuple[Haemorrhage, ...]:
    count = int(rng.choice((1, 2), p=(0.6, 0.4)))
    return tuple(draw_haemorrhage(rng, design.scanned_mm) for _ in range(count))


def _as_in_rsna(rng: np.random.Generator, design: Design) -> tuple[Haemorrhage, ...]:
    """One haemorrhage, often with another of the same event beside it."""
    mix = _RSNA[design.hard, design.even_position]
    weights = dict(zip(SUBTYPES, mix.weights, strict=True))
    low, high = design.scanned_mm
    extent_mm = (_EXTENT[0] * (high - low), _EXTENT[1] * (high - low))
    first = draw_haemorrhage(rng, design.scanned_mm, weights, extent_mm)
    if rng.random() >= mix.companion:
        return (first,)
    others = {name: weight for name, weight in weights.items() if name != first.subtype}
    height_mm = first.height_mm + float(rng.normal(0, _COMPANION_MM))
    return first, haemorrhage_at(rng, height_mm, float(rng.uniform(*extent_mm)), others)

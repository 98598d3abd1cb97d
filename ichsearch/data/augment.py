"""Augmentation of a batch on its device: drawn first, so that it can be kept, then applied.

In: batches in HU, (B, K, S, S) float32, and an `Augmentation`. Out: a `Draw`, and batches of the same form. The paper's
three kinds are a horizontal flip, a rotation within ±15°, and a blur as of a patient that moves; the others are wider
crops and positions (`shift_scale`), occlusion (`erasing`), dose (`noise`) and calibration (`gain`).
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ichsearch.data.warp import warp
from ichsearch.dicom.pixels import MAX_HU, MIN_HU

Kind = Literal["flip", "rotation", "blur", "shift_scale", "erasing", "noise", "gain"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
PAPER_KINDS: Final[tuple[Kind, ...]] = ("flip", "rotation", "blur")

FLIP_CHANCE: Final = 0.5
MAX_ROTATION_DEG: Final = 15.0
MAX_BLUR_OF_SIDE: Final = 2.0 / 256
"""Largest blur sigma as a share of the image's side: 2 pixels at 256."""
MAX_SHIFT_OF_SIDE: Final = 1 / 16
MAX_SCALE_CHANGE: Final = 0.1
"""Both as in albumentations' `ShiftScaleRotate`."""
ERASE_CHANCE: Final = 0.5
ERASED_SHARE: Final = (0.02, 0.1)
"""Of the image's area: at most a third of `RandomErasing`'s (Zhong 2020), as a small bleed must seldom vanish."""
MAX_ASPECT: Final = 3.0
AIR_HU: Final = -1000.0
"""Fills an erased rectangle: black in every window, so that it looks like neither tissue nor blood."""
MAX_NOISE_HU: Final = 10.0
"""Standard deviation; thick slices of a routine head CT have 3 to 5."""
MAX_GAIN_CHANGE: Final = 0.05
MAX_OFFSET_HU: Final = 5.0
"""Within what the ACR's phantom test lets pass: water within ±7 HU, bone within ±6.6 %."""
NOISE_STARTS: Final = 2**20


class Augmentation(BaseModel):
    """Which kinds of change are drawn, and how strongly; a kind that is not named draws the identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: float = Field(0.0, ge=0, le=1, description="0: none; 1: the full range of every kind")
    kinds: tuple[Kind, ...] = Field(PAPER_KINDS, description="changes that are drawn")

    @field_validator("kinds")
    @classmethod
    def _in_one_order(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        """The same kinds are the same augmentation, in whatever order they were named."""
        return tuple(kind for kind in KINDS if kind in kinds)


@dataclass(frozen=True)
class Draw:
    """What happens to each image of a batch: tensors on the CPU, first dimension B, float32 where not said otherwise.

    Attributes:
        flipped: bool; left for right.
        rotation_deg: counterclockwise about the middle.
        scale: about the middle; above 1 enlarges.
        shift_of_side: (B, 2) to the right and down, in shares of the side.
        blur_of_side: a Gaussian's sigma, likewise.
        noise_hu: standard deviation of white noise.
        noise_start: int64; where in the table of noise the image's begins.
        gain: factor of HU.
        offset_hu: added to HU.
        erased: (B, 4) left, top, width and height of a rectangle, in shares of the side; no width, no rectangle.
    """

    flipped: Tensor
    rotation_deg: Tensor
    scale: Tensor
    shift_of_side: Tensor
    blur_of_side: Tensor
    noise_hu: Tensor
    noise_start: Tensor
    gain: Tensor
    offset_hu: Tensor
    erased: Tensor

    def part(self, which: slice) -> "Draw":
        """What was drawn for some of the images."""
        return Draw(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def record(self) -> dict[str, list[Any]]:
        """Lists of numbers, which JSON keeps exactly."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_record(cls, record: dict[str, list[Any]]) -> Self:
        """The draw that `record` was made of."""
        return cls(**{name: torch.tensor(values) for name, values in record.items()})


def draw(batch: int, augmentation: Augmentation, generator: torch.Generator) -> Draw:
    """Draw for `batch` images; strength 0 draws the identity.

    Every kind takes its random numbers whether it is wanted or not: adding one leaves the draws of the others alone.
    """
    strength = {kind: augmentation.strength * (kind in augmentation.kinds) for kind in KINDS}
    flip, turn, blur, size, noise, start, gain, offset = torch.rand(8, batch, generator=generator)
    shift = torch.rand(batch, 2, generator=generator)
    return Draw(
        flipped=flip < FLIP_CHANCE * strength["flip"],
        rotation_deg=_both_ways(turn) * (MAX_ROTATION_DEG * strength["rotation"]),
        scale=1 + _both_ways(size) * (MAX_SCALE_CHANGE * strength["shift_scale"]),
        shift_of_side=_both_ways(shift) * (MAX_SHIFT_OF_SIDE * strength["shift_scale"]),
        blur_of_side=blur * (MAX_BLUR_OF_SIDE * strength["blur"]),
        noise_hu=noise * (MAX_NOISE_HU * strength["noise"]),
        noise_start=(start * NOISE_STARTS).long(),
        gain=1 + _both_ways(gain) * (MAX_GAIN_CHANGE * strength["gain"]),
        offset_hu=_both_ways(offset) * (MAX_OFFSET_HU * strength["gain"]),
        erased=_draw_rectangles(batch, ERASE_CHANCE * strength["erasing"], generator),
    )


def _both_ways(numbers: Tensor) -> Tensor:
    """From [0, 1) to [-1, 1)."""
    return 2 * numbers - 1


def _draw_rectangles(batch: int, chance: float, generator: torch.Generator) -> Tensor:
    """(B, 4) left, top, width, height; all zero where nothing is erased."""
    erase, area, aspect, left, top = torch.rand(5, batch, generator=generator).unbind()
    area = ERASED_SHARE[0] + (ERASED_SHARE[1] - ERASED_SHARE[0]) * area
    aspect = MAX_ASPECT ** _both_ways(aspect)
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    rectangles = torch.stack([left * (1 - width), top * (1 - height), width, height], dim=1)
    return rectangles * (erase < chance)[:, None]


def apply(images: Tensor, drawn: Draw) -> Tensor:
    """What was drawn, in the order patient, scanner, occlusion; `images` stay as they are.

    A flip, a turn, a scale and a shift are one resampling. The K channels of an image (neighbouring slices) are treated
    alike, but for noise: the same strength, other grains, as each slice has noise of its own.

    Args:
        images: (B, K, S, S) float32 HU, on any device.
        drawn: for as many images.

    Returns:
        (B, K, S, S) float32 HU on the same device; `images` themselves if only the identity was drawn.
    """
    result = warp(images, _maps(drawn), drawn.blur_of_side * images.shape[-1])
    measures = bool(drawn.noise_hu.any() or drawn.offset_hu.any() or (drawn.gain != 1).any())
    erases = bool(drawn.erased.any())
    if result is images and (measures or erases):
        result = images.clone()
    if measures:
        _measure(result, drawn)
    if erases:
        _erase(result, drawn.erased)
    return result


def _maps(drawn: Draw) -> Tensor:
    """(B, 2, 3) float64, from the result to the image: about the middle, lengths in shares of the side."""
    angle = torch.deg2rad(drawn.rotation_deg.double())
    mirror = torch.where(drawn.flipped, -1.0, 1.0)
    x_row = torch.stack([mirror * angle.cos(), -mirror * angle.sin()], dim=1)
    y_row = torch.stack([angle.sin(), angle.cos()], dim=1)
    linear = torch.stack([x_row, y_row], dim=1) / drawn.scale.double()[:, None, None]
    return torch.cat([linear, -linear @ drawn.shift_of_side.double()[:, :, None]], dim=2)


def _measure(images: Tensor, drawn: Draw) -> None:
    """In place: noise, then gain about water and offset, kept in the range that shards hold."""
    if drawn.noise_hu.any():
        table = _noise_table(images[0].numel(), images.device)
        for image, start, noise_hu in zip(images, drawn.noise_start.tolist(), drawn.noise_hu.tolist(), strict=True):
            image.add_(table[start : start + image.numel()].view_as(image), alpha=noise_hu)
    gain, offset_hu = (value.to(images.device)[:, None, None, None] for value in (drawn.gain, drawn.offset_hu))
    images.mul_(gain).add_(offset_hu).clamp_(MIN_HU, MAX_HU)


@lru_cache(maxsize=2)
def _noise_table(values: int, device: torch.device) -> Tensor:
    """(NOISE_STARTS + values,) normal float32, the same on every device, where drawing anew would differ and take long.

    Two images share grains only if their stretches overlap, and then at other places.
    """
    return torch.randn(NOISE_STARTS + values, generator=torch.Generator().manual_seed(0)).to(device)


def _erase(images: Tensor, rectangles: Tensor) -> None:
    """In place: air in each image's rectangle."""
    corners = torch.cat([rectangles[:, :2], rectangles[:, :2] + rectangles[:, 2:]], dim=1)
    edges_px = (corners * images.shape[-1]).round().int().tolist()
    for image, (left, top, right, bottom) in zip(images, edges_px, strict=True):
        image[:, top:bottom, left:right] = AIR_HU

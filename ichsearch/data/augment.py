"""Augmentation of a batch on its device: drawn first, then applied.

In: HU batches (B, 1, S, S) float32 and one strength in [0, 1]. Out: batches of the same form. The paper's three:
horizontal flip, rotation within ±15°, and a blur as of a patient that moves.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

MAX_ROTATION_DEG: Final = 15.0
MAX_BLUR_OF_SIDE: Final = 2.0 / 256
"""Largest blur sigma as a share of the image's side: 2 pixels at 256."""


@dataclass(frozen=True)
class Augmentation:
    """Which kinds of change are drawn, and how strongly: 0 none, 1 the full range of each."""

    strength: float = 0.0
    kinds: tuple[str, ...] = ("flip", "rotation", "blur")


@dataclass(frozen=True)
class Draw:
    """What happens to each image of a batch; all (B,), on the CPU."""

    flipped: Tensor
    rotation_deg: Tensor
    blur_of_side: Tensor


def draw(batch: int, augmentation: Augmentation, generator: torch.Generator) -> Draw:
    """Draw for `batch` images; strength 0 draws the identity."""
    strength = augmentation.strength
    flip, turn, blur = torch.rand(3, batch, generator=generator)
    return Draw(
        flipped=flip < 0.5 * strength,
        rotation_deg=(2 * turn - 1) * MAX_ROTATION_DEG * strength,
        blur_of_side=blur * MAX_BLUR_OF_SIDE * strength,
    )


def apply(images: Tensor, drawn: Draw) -> Tensor:
    """Flip, rotate and blur (B, 1, S, S) float32 images as drawn; what is drawn as the identity costs nothing."""
    if drawn.flipped.any() or drawn.rotation_deg.any():
        images = grid_sample(
            images,
            affine_grid(_matrices(drawn).to(images.device), list(images.shape), align_corners=False),
            padding_mode="border",
            align_corners=False,
        )
    sigma_px = drawn.blur_of_side * images.shape[-1]
    return _blurred(images, sigma_px) if sigma_px.any() else images


def _matrices(drawn: Draw) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates, in which x and y run from -1 to 1."""
    angle = torch.deg2rad(drawn.rotation_deg)
    mirror = torch.where(drawn.flipped, -1.0, 1.0)
    zero = torch.zeros_like(angle)
    x_row = torch.stack([mirror * angle.cos(), -mirror * angle.sin(), zero], dim=1)
    y_row = torch.stack([angle.sin(), angle.cos(), zero], dim=1)
    return torch.stack([x_row, y_row], dim=1)


def _blurred(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with each image's own sigma: sums of shifted images, rows first, then columns."""
    reach = max(1, int(torch.ceil(3 * sigma_px.max())))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets[None] / sigma_px.clamp(min=1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.device, images.dtype)  # (B, taps)
    for dim in (2, 3):
        length = images.shape[dim]
        padded = pad(images, (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0), mode="replicate")
        shifted = (padded.narrow(dim, tap, length) * weights[:, tap, None, None, None] for tap in range(len(offsets)))
        images = sum(shifted, start=torch.zeros_like(images))
    return images

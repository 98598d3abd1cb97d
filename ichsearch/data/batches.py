"""Batches of one part of a data set, on the device that trains.

In: a `SliceSet` and the rows of a part. Out: (B, C, S, S) float32 inputs and (B, 6) float32 labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ichsearch.data.augment import Augmentation, apply, draw
from ichsearch.data.cache import SliceSet
from ichsearch.dicom.windows import BONE, BRAIN, SUBDURAL, Window

Channels = Literal["brain", "windows"]
WINDOWS: Final[dict[Channels, tuple[Window, ...]]] = {"brain": (BRAIN,), "windows": (BRAIN, SUBDURAL, BONE)}
assert set(WINDOWS) == set(get_args(Channels))

MEAN: Final = 0.449
STD: Final = 0.226
"""ImageNet's grey mean and deviation: what pretrained backbones expect of inputs in [0, 1]."""

RESIDENT_SHARE: Final = 0.5
"""Share of a GPU's free memory that the slices may take to stay there for the whole trial."""


def to_input(hu: Tensor, channels: Channels) -> Tensor:
    """(B, 1, S, S) HU seen through the windows of `channels`: (B, C, S, S) float32, normalised."""
    low = torch.tensor([window.low_hu for window in WINDOWS[channels]], device=hu.device, dtype=torch.float32)
    width = torch.tensor([window.width_hu for window in WINDOWS[channels]], device=hu.device, dtype=torch.float32)
    shown = ((hu - low[:, None, None]) / width[:, None, None]).clamp_(0, 1)
    return shown.sub_(MEAN).div_(STD)


@dataclass(frozen=True)
class Recipe:
    """How the slices of a part become batches."""

    batch_size: int
    channels: Channels
    augment: float = 0.0
    seed: int = 0


class Batches:
    """Batches of the slices in `rows`; what an epoch holds depends only on the recipe's seed and the epoch."""

    def __init__(self, slices: SliceSet, rows: npt.NDArray[np.int64], recipe: Recipe, device: torch.device) -> None:
        self._rows = rows
        self._recipe = recipe
        self._device = device
        self._labels = torch.from_numpy(slices.labels[rows]).to(device)
        self._hu: npt.NDArray[np.int16] | Tensor = slices.hu
        if device.type == "cuda" and self._fits(slices.hu.nbytes * len(rows) // len(slices.hu)):
            self._hu = torch.from_numpy(slices.hu[rows]).to(device)

    def _fits(self, n_bytes: int) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        return n_bytes <= RESIDENT_SHARE * free

    @property
    def steps(self) -> int:
        """Training batches an epoch; a last one that is not full is left out, as BatchNorm suffers from small ones."""
        return max(1, len(self._rows) // self._recipe.batch_size)

    @property
    def images(self) -> int:
        """Slices that a training epoch shows."""
        return min(len(self._rows), self.steps * self._recipe.batch_size)

    def train(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled and augmented (inputs, labels) of one epoch."""
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._rows), generator=generator)
        size = self._recipe.batch_size
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size]
            hu = apply(self._gather(chosen), draw(len(chosen), Augmentation(strength=self._recipe.augment), generator))
            yield to_input(hu, self._recipe.channels), self._labels[chosen.to(self._device)]

    def evaluate(self) -> Iterator[Tensor]:
        """Inputs of all slices in the order of `rows`, not augmented."""
        for chosen in torch.split(torch.arange(len(self._rows)), 2 * self._recipe.batch_size):
            yield to_input(self._gather(chosen), self._recipe.channels)

    def _gather(self, chosen: Tensor) -> Tensor:
        """(B, 1, S, S) float32 HU of the chosen places in `rows`."""
        if isinstance(self._hu, Tensor):
            hu = self._hu.index_select(0, chosen.to(self._device))
        else:
            hu = torch.from_numpy(self._hu[self._rows[chosen.numpy()]]).to(self._device)
        return hu[:, None].float()

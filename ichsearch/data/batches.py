"""Batches of one part of a data set, on the device that trains.

In: a `SliceSet` and the rows of a part. Out: (B, C, S, S) float32 inputs and (B, L) float32 labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ichsearch.data.augment import Augmentation, apply, draw
from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import CHANNELS, Channels, InputMaker, depth
from ichsearch.data.held import ReusedBuffer, Rows, hold
from ichsearch.data.sampling import WHOLE, Sampler, Share, epoch_order, seed_of
from ichsearch.data.tasks import Task, task_columns


@dataclass(frozen=True)
class Recipe:
    """How the slices of a part become batches."""

    batch_size: int
    channels: Channels
    task: Task = "multilabel"
    augmentation: Augmentation = field(default_factory=Augmentation)
    sampler: Sampler = "shuffled"
    seed: int = 0


class Batches:
    """Batches of the slices in `rows`.

    What a step of an epoch shows depends only on the recipe's seed, the epoch and the step. A batch lives in buffers
    that the next one is written to: it is valid until the next is asked for. Several processes that each take a `share`
    of every training batch see the same slices, changed in the same way, as one that takes all.

    Attributes:
        labels: (N, L) float32 labels of the task on the device, in the order of `rows`.

    Raises:
        ConfigError: neighbours are wanted of slices that were cropped one by one.
    """

    def __init__(
        self,
        slices: SliceSet,
        rows: npt.NDArray[np.int64],
        recipe: Recipe,
        device: torch.device,
        share: Share = WHOLE,
    ) -> None:
        self._recipe, self._device, self._share = recipe, device, share
        self._truth = slices.labels[rows]
        self.labels = torch.from_numpy(self._truth[:, task_columns(recipe.task)]).to(device)
        sources = slices.neighbours[rows] if depth(recipe.channels) > 1 else rows[:, None]
        self._pixels = hold(slices.hu, sources, device)
        self._maker = InputMaker(recipe.channels, slices.hist_breaks, device)
        self._inputs = ReusedBuffer(torch.float32, device)
        self._floats = ReusedBuffer(torch.float32, device)
        self._sides = slices.hu.shape[1:]

    @property
    def steps(self) -> int:
        """Training batches an epoch; a last one that is not full is left out, as BatchNorm suffers from small ones."""
        return max(1, len(self._truth) // self._recipe.batch_size)

    @property
    def images(self) -> int:
        """Slices that a training epoch shows."""
        return min(len(self._truth), self.steps * self._recipe.batch_size)

    def train(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled and augmented (inputs, labels) of the share of one epoch's batches, from step `first_step` on."""
        recipe = self._recipe
        rng = np.random.default_rng(seed_of(recipe.seed, epoch))
        order = self._pixels.arranged(epoch_order(self._truth, recipe.task, recipe.sampler, rng), rng)
        for step in range(first_step, self.steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            own = chosen[self._share.part(len(chosen))]
            inputs = self._augmented(chosen, epoch, step) if recipe.augmentation.strength else self._plain(own)
            yield inputs, self.labels[torch.from_numpy(own).to(self._device)]

    def evaluate(self) -> Iterator[Tensor]:
        """Inputs of all slices in the order of `rows`, not augmented."""
        places = np.arange(len(self._truth))
        size = 2 * self._recipe.batch_size
        for start in range(0, len(places), size):
            yield self._plain(places[start : start + size])

    def _augmented(self, chosen: Rows, epoch: int, step: int) -> Tensor:
        """(B, C, S, S) inputs of the share's HU, changed as drawn for all that were chosen for this step."""
        own = self._share.part(len(chosen))
        hu = self._pixels.gather(chosen[own])
        state = seed_of(self._recipe.seed, epoch, step).generate_state(1, np.uint64)
        drawn = draw(len(chosen), self._recipe.augmentation, torch.Generator().manual_seed(int(state[0]))).part(own)
        return self._made(apply(self._floats.of_shape(*hu.shape).copy_(hu), drawn))

    def _plain(self, chosen: Rows) -> Tensor:
        """(B, C, S, S) inputs of HU as they are: made one by one where gathering them first would be a copy more."""
        one_by_one = self._pixels.each(chosen)
        if one_by_one is None:
            return self._made(self._pixels.gather(chosen))
        inputs = self._of_shape(len(chosen))
        for hu, one in zip(one_by_one, torch.split(inputs, 1), strict=True):
            self._maker.fill_block(hu, one)
        return inputs

    def _made(self, hu: Tensor) -> Tensor:
        inputs = self._of_shape(len(hu))
        self._maker.fill(hu, inputs)
        return inputs

    def _of_shape(self, length: int) -> Tensor:
        return self._inputs.of_shape(length, CHANNELS[self._recipe.channels], *self._sides)

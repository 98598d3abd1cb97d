"""One trial trained by several processes: each takes its share of every batch, and all keep the same model.

In: a process group, or none. Out: what the loop needs of it; of a trial of one process every call costs nothing.

Ranks meet between passes through the model and never within one, so that a rank that runs out of memory can try its
share anew while the others wait: torch's DistributedDataParallel and SyncBatchNorm would hang there. BatchNorm so
normalises over a rank's share, as it does over the micro-batches of one process; its running statistics are the mean of
the ranks' (timm's `distribute_bn`). A rank that fails tells whoever started the ranks, who ends the others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ichsearch.data.sampling import Share, seed_of
from ichsearch.train.metrics import FloatArray

LONGEST_WAIT: Final = timedelta(minutes=10)
"""For another rank, which may read slices, or write what a trial leaves; then the trial has crashed."""
LOOPBACK: Final = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""All ranks are on one node, and nobody else has a say."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one trial; the first one judges, and reads and writes the trial's folder."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process has the say."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What of a batch, or of the slices to be judged, is this process's."""
        return Share(self.rank, self.size)

    def average(self, tensors: Sequence[Tensor], weight: int) -> None:
        """Make `tensors` their mean over all ranks, in which each has its `weight`; to the same bits on each."""
        if self.size == 1:
            return
        flat = torch.cat([*(tensor.detach().flatten() for tensor in tensors), tensors[0].new_ones(1)]).mul_(weight)
        dist.all_reduce(flat)
        flat.div_(flat[-1].clone())
        parts = torch.split(flat[:-1], [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def least(self, value: int) -> int:
        """The smallest of all ranks' values; a GPU at work is not waited for."""
        if self.size == 1:
            return value
        least = torch.tensor(value)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def told(self, make: Callable[[], Result]) -> Result:
        """What the first rank makes."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(box)
        result: Result = box[0]
        return result

    def gathered(self, part: FloatArray) -> FloatArray:
        """All ranks' (N, L) parts in their order, on the first one; the others get their own back."""
        if self.size == 1:
            return part
        parts: list[FloatArray] | None = [part] * self.size if self.first else None
        dist.gather_object(part, parts)
        return np.concatenate(parts) if parts else part

    def reseed(self, seed: int, *place: int) -> None:
        """Let several ranks draw dropout and the like from the seed, the place of a step and their number.

        So a checkpoint need not hold the random states of all of them.
        """
        if self.size > 1:
            torch.manual_seed(int(seed_of(seed, *place, self.rank).generate_state(1, np.uint64)[0]))


ALONE: Final = Ranks()


@contextmanager
def joined(meeting: Path, rank: int, size: int) -> Iterator[Ranks]:
    """Be one of `size` processes of this node that know the file `meeting`: each on its GPU, or all on the CPU."""
    os.environ.update(LOOPBACK)
    gpus = torch.cuda.device_count() >= size
    if gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        init_method=meeting.absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=LONGEST_WAIT,
    )
    yield Ranks(rank, size)
    dist.destroy_process_group()  # not after an error: the others would miss this rank before they hear of it

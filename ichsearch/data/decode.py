"""Pixels of shards at the size that a trial trains at.

In: record batches of a shard. Out: int16 HU.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import adaptive_avg_pool2d

from ichsearch.shards.schema import unpack_hu


def decoded(batch: Any, stored: int, size: int) -> npt.NDArray[np.int16]:
    """The `hu` column of a record batch whose slices are (stored, stored), as (B, size, size) int16 HU."""
    column = batch.column("hu")
    planes = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 2, stored, stored)
    return area_averaged(unpack_hu(planes[column.offset : column.offset + len(column)]), size)


def area_averaged(hu: npt.NDArray[np.int16], size: int) -> npt.NDArray[np.int16]:
    """(B, S, S) int16 HU averaged over areas to (B, size, size) int16."""
    if hu.shape[-1] == size:
        return hu
    averaged = adaptive_avg_pool2d(torch.from_numpy(hu.astype(np.float32)), size)
    result: npt.NDArray[np.int16] = averaged.round().to(torch.int16).numpy()
    return result

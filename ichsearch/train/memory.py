"""Training in as much memory as there is: the batch stays, what goes through the model at once shrinks.

In: a batch size and work that may not fit. Out: the work done in micro-batches, their size recorded.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from ichsearch.errors import DataError
from ichsearch.files import read_json, write_json
from ichsearch.shards.identity import cache_folder
from ichsearch.train.config import TrialFailedError
from ichsearch.train.parallel import ALONE, Ranks

FOLDER: Final = "micro_batch"

Result = TypeVar("Result")


class MicroBatch:
    """How many slices go through a model at once; halved whenever they do not fit, on one rank of several as on all."""

    def __init__(self, size: int, ranks: Ranks = ALONE) -> None:
        self.size, self._ranks = size, ranks

    def run(self, work: Callable[[int], Result]) -> Result:
        """The result of `work(size)`, tried anew with half the size after each out-of-memory error.

        Raises:
            TrialFailedError: `out_of_memory`: not even one slice fits.
        """
        while True:
            fits = False
            try:
                result = work(self.size)
                fits = True
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise TrialFailedError("out_of_memory", "not even one slice at a time fits") from error
            # Outside the except block, whose traceback keeps the tensors of the failed attempt alive.
            if self._ranks.least(fits):
                return result
            self.size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def probed_size(key: dict[str, Any], batch_size: int, attempt: Callable[[int], object]) -> int:
    """The largest of batch_size, batch_size / 2, … that `attempt` gets through; found once per key on a node.

    Args:
        key: all that memory depends on but the batch: backbone, input, device.
        batch_size: what is wanted at most.
        attempt: trains one step on that many slices, or raises `torch.OutOfMemoryError`.
    """
    path = _answers(key)
    known = _known(path)
    fits, too_many = known.get("fits", 0), known.get("too_many", math.inf)
    micro = MicroBatch(batch_size)
    while micro.size >= too_many and micro.size > 1:
        micro.size //= 2
    if micro.size > fits:
        tried = micro.size
        micro.run(attempt)
        known["fits"] = micro.size
        if micro.size < tried:
            known["too_many"] = 2 * micro.size
        write_json(path, known)
    return micro.size


def _answers(key: dict[str, Any]) -> Path:
    name = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
    return cache_folder() / FOLDER / f"{name}.json"


def _known(path: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = read_json(path)
    except (FileNotFoundError, DataError):
        return {}
    return known

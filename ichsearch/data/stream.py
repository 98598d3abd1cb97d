"""Slices of a data set too large for the node's cache, read from its shards while they are used.

In: the shards of a manifest. Out: pixels of any rows, fast for rows that lie close together, and an order of an epoch
in which they do. What is held is one window: a few runs of consecutive row groups, at most `WINDOW_BYTES`.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ichsearch.data.decode import decoded
from ichsearch.errors import DataError
from ichsearch.shards.manifest import Manifest
from ichsearch.shards.schema import ROW_GROUP_SLICES, metadata_schema, open_shard

WINDOW_BYTES: Final = 512 * 2**20
"""Of decoded slices in memory, among which an epoch is shuffled: 4,096 at 256 px."""
RUN_GROUPS: Final = 8
"""Row groups that are read together: the neighbours of its first and last slice cost two more."""

Int16Images = npt.NDArray[np.int16]
Rows = npt.NDArray[np.int64]


class Part(NamedTuple):
    """A shard, and which rows of the data set are in it."""

    number: int
    path: Path
    start: int
    stop: int


class SliceStream:
    """The (N, size, size) int16 HU of a data set, in its shards; stands where a memory map would.

    Attributes:
        shape: (N, size, size).
        runs_held: how many runs the window has.
    """

    def __init__(
        self, shards: Path, manifest: Manifest, size: int, *, window: int = WINDOW_BYTES, run_groups: int = RUN_GROUPS
    ) -> None:
        self._folder, self._shards = shards, manifest.shards
        self._stored = manifest.settings.size
        self._groups = [
            (number, group)
            for number, shard in enumerate(manifest.shards)
            for group in range(-(-shard.slices // ROW_GROUP_SLICES))
        ]
        lengths = [
            min(ROW_GROUP_SLICES, self._shards[shard].slices - group * ROW_GROUP_SLICES)
            for shard, group in self._groups
        ]
        self._starts = np.cumsum([0, *lengths])
        self._run_starts = np.append(self._starts[:-1:run_groups], self._starts[-1])
        self.shape = (int(self._starts[-1]), size, size)
        self.runs_held = max(1, window // (run_groups * ROW_GROUP_SLICES * size * size * 2))
        self._held: OrderedDict[tuple[int, bool], tuple[int, Int16Images]] = OrderedDict()
        self._checked: set[int] = set()
        self._opened: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Rows, out: Int16Images) -> None:
        """Copy the slices of (B, K) row numbers to (B, K, size, size) `out`; those of a K lie within one of its middle.

        Raises:
            DataError: a shard is missing, damaged, or not that of the manifest.
        """
        with_neighbours = rows.shape[1] > 1
        runs = self._run_of(rows[:, rows.shape[1] // 2])
        for place, run in enumerate(runs.tolist()):
            first, hu = self._run(run, with_neighbours)
            out[place] = hu[rows[place] - first]

    def arranged(self, rows: Rows, order: Rows, rng: np.random.Generator) -> Rows:
        """`order`, places in `rows`, rearranged so that an epoch reads each run once.

        The runs that hold `rows` are shuffled and cut into windows; within a window, the order stays that of `order`.
        """
        runs, of_row = np.unique(self._run_of(rows), return_inverse=True)
        window = rng.permutation(len(runs))[of_row] // self.runs_held
        return order[np.argsort(window[order], kind="stable")]

    def read(self, start: int, stop: int) -> Int16Images:
        """The slices of rows `start` to `stop`, (stop - start, size, size)."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        return np.concatenate([self._read_group(group, start, stop) for group in range(first, last + 1)])

    def _read_group(self, number: int, start: int, stop: int) -> Int16Images:
        """Those slices of a row group whose rows lie between `start` and `stop`."""
        (shard, group), low = self._groups[number], int(self._starts[number])
        slices = int(self._starts[number + 1]) - low
        batch = self._open(shard).read_row_group(group, columns=["hu"]).to_batches()[0]
        if len(batch) != slices:
            raise DataError(
                f"row group {group} of {self._shards[shard].file} must have {slices} slices, but has {len(batch)}; "
                "preprocess again"
            )
        skipped = max(0, start - low)
        return decoded(batch.slice(skipped, min(slices, stop - low) - skipped), self._stored, self.shape[-1])

    @property
    def parts(self) -> list[Part]:
        """The shards, in order."""
        ends = np.cumsum([shard.slices for shard in self._shards]).tolist()
        return [
            Part(number, self._folder / shard.file, end - shard.slices, end)
            for number, (shard, end) in enumerate(zip(self._shards, ends, strict=True))
        ]

    def metadata(self, part: Part) -> pa.Table:
        """The rows of a shard without their images."""
        return self._open(part.number).read(columns=metadata_schema(self._stored).names)

    def _open(self, number: int) -> pq.ParquetFile:
        """A shard, its SHA-256 checked by whoever is first to use it in this process; its pages always are."""
        if self._opened[0] != number:
            shard = self._shards[number]
            known = None if number in self._checked else shard.sha256
            self._opened = number, open_shard(self._folder / shard.file, known, self._stored)
            self._checked.add(number)
        return self._opened[1]

    def _run_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self._run_starts, rows, side="right") - 1

    def _run(self, number: int, with_neighbours: bool) -> tuple[int, Int16Images]:
        """Number of the first row, and the slices; what was used longest ago makes room for it."""
        key = number, with_neighbours
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        while len(self._held) >= self.runs_held:
            self._held.popitem(last=False)
        start, stop = int(self._run_starts[number]), int(self._run_starts[number + 1])
        if with_neighbours:
            start, stop = max(0, start - 1), min(len(self), stop + 1)
        self._held[key] = start, self.read(start, stop)
        return self._held[key]

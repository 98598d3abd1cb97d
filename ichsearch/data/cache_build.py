"""The entries of the node's cache: what is decoded once, so that no trial has to.

In: a folder of shards. Out: `hu.npy` (of an entry that is mapped), `slices.parquet`, `hist_breaks.npy` in a folder.
"""

import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap

from ichsearch.data.channels import hist_breaks
from ichsearch.data.decode import decoded
from ichsearch.data.stream import SliceStream
from ichsearch.errors import DataError
from ichsearch.shards.copies import drop
from ichsearch.shards.manifest import Manifest
from ichsearch.shards.schema import IMAGES, read_shard

PIXELS: Final = "hu.npy"
TABLE: Final = "slices.parquet"
BREAKS: Final = "hist_breaks.npy"

SAMPLE_SLICES: Final = 128
"""Evenly spread over the data set, whose pixels tell the break points of `hist`."""


def build_mapped(aside: Path, shards: Path, manifest: Manifest, size: int) -> None:
    """Decode all slices to `aside`, an empty folder.

    Raises:
        DataError: the shards are damaged or incomplete.
        OSError: the disk is full.
    """
    slices = sum(shard.slices for shard in manifest.shards)
    hu = open_memmap(aside / PIXELS, mode="w+", dtype=np.int16, shape=(slices, size, size))
    with (aside / PIXELS).open("r+b") as file:  # a full disk must show here, not as a signal when a page is written
        os.posix_fallocate(file.fileno(), 0, (aside / PIXELS).stat().st_size)
    tables: list[pa.Table] = []
    start = 0
    for shard in manifest.shards:
        for batch in read_shard(shards / shard.file, shard.sha256, manifest.settings.size):
            hu[start : start + len(batch)] = decoded(batch, manifest.settings.size, size)
            tables.append(pa.Table.from_batches([batch]).drop_columns(list(IMAGES)))
            start += len(batch)
        drop(shards / shard.file)
    if start != slices:
        raise DataError(f"the manifest promises {slices} slices, but the shards hold {start}; preprocess again")
    hu.flush()
    _write_rest(aside, pa.concat_tables(tables), hu[_sample(slices)])


def build_streamed(aside: Path, stream: SliceStream, *, keep_copies: bool) -> None:
    """Gather to `aside`, an empty folder, all but the pixels, shard by shard; errors as above."""
    sampled = _sample(len(stream))
    tables, sample = list[pa.Table](), list[npt.NDArray[np.int16]]()
    for part in stream.parts:
        tables.append(stream.metadata(part))
        sample += [stream.read(row, row + 1) for row in sampled.tolist() if part.start <= row < part.stop]
        if not keep_copies:
            drop(part.path)
    _write_rest(aside, pa.concat_tables(tables), np.concatenate(sample))


def _sample(slices: int) -> npt.NDArray[np.int64]:
    """Rows of the sample, rising."""
    return np.unique(np.linspace(0, slices - 1, SAMPLE_SLICES).round().astype(np.int64))


def _write_rest(aside: Path, table: pa.Table, sample: npt.NDArray[np.int16]) -> None:
    np.save(aside / BREAKS, hist_breaks(sample))
    pq.write_table(table, aside / TABLE)

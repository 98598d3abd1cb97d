"""The decoded slices of a data set, once per node, as a memory map that all trials of the node share.

In: a folder of shards and an image size. Out: a `SliceSet`. The cache entry is built under a lock that the kernel
releases when its builder dies, appears by one rename, and the least recently used entries make room for it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.lib.format import open_memmap
from torch.nn.functional import adaptive_avg_pool2d

from ichsearch.errors import ConfigError, DataError, StorageError
from ichsearch.labels import LABELS
from ichsearch.shards.identity import home_folder
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.shards.schema import IMAGES, read_shard, unpack_hu

DEFAULT_SHARE_OF_DISK: Final = 0.5
"""Share of the disk's free and cached bytes that the cache may take when `ICHSEARCH_CACHE_BYTES` does not say."""


@dataclass(frozen=True)
class SliceSet:
    """All slices of a data set at one size, in the shards' order.

    Attributes:
        hu: (N, size, size) int16 HU, a read-only memory map.
        table: N rows, the other columns of the shards.
        fingerprint: of the shards' manifest.
    """

    hu: npt.NDArray[np.int16]
    table: pd.DataFrame
    fingerprint: str

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """(N, 6) float32 in {0, 1}, NaN for unlabelled slices."""
        return self.table[list(LABELS)].to_numpy(dtype=np.float32, na_value=np.nan)

    @property
    def relative_position(self) -> npt.NDArray[np.float32]:
        """(N,) float32: 0 at the feet's end of a slice's series, 1 at the other, 0.5 in a series of one slice."""
        last = self.table["series_slices"].to_numpy(np.float32) - 1
        index = self.table["series_index"].to_numpy(np.float32)
        return np.where(last > 0, index / np.maximum(last, 1), np.float32(0.5)).astype(np.float32)


def open_slices(shards: Path, size: int, cache: Path | None = None) -> SliceSet:
    """The slices of `shards` at (size, size), decoded now unless this node's cache holds them.

    Slices smaller than stored are made by area averaging.

    Raises:
        DataError: the shards are damaged or incomplete.
        ConfigError: `size` is larger than the stored one.
        StorageError: the slices do not fit into the cache's quota.
    """
    manifest = read_manifest(shards)
    if size > manifest.settings.size:
        raise ConfigError(
            f"size must be at most the shards' {manifest.settings.size} px, but is {size}; "
            f"preprocess with --size {size} or choose a smaller one"
        )
    folder = cache or cache_folder()
    entry = folder / f"{manifest.fingerprint[:16]}-{size}px"
    try:
        return _load(entry, manifest.fingerprint)
    except FileNotFoundError:  # not built yet, or evicted a moment ago
        with _locked(folder):
            if not entry.is_dir():
                _build(entry, shards, manifest, size)
            return _load(entry, manifest.fingerprint)


def _load(entry: Path, fingerprint: str) -> SliceSet:
    os.utime(entry)
    hu = np.load(entry / "hu.npy", mmap_mode="r")
    return SliceSet(hu, pq.read_table(entry / "slices.parquet").to_pandas(), fingerprint)


def cache_folder() -> Path:
    """This node's cache: `ICHSEARCH_CACHE`, or a folder of ichsearch's home."""
    return Path(os.environ.get("ICHSEARCH_CACHE") or home_folder() / "cache")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(entry: Path, shards: Path, manifest: Manifest, size: int) -> None:
    aside = entry.with_name(f".{entry.name}.aside")
    for dead in entry.parent.glob(".*.aside"):  # whoever holds the lock is the only living builder
        shutil.rmtree(dead)
    slices = sum(shard.slices for shard in manifest.shards)
    _make_room(entry.parent, needed_bytes=slices * size * size * 2)
    aside.mkdir()
    hu = open_memmap(aside / "hu.npy", mode="w+", dtype=np.int16, shape=(slices, size, size))
    with (aside / "hu.npy").open("r+b") as file:  # a full disk must show here, not as a signal when a page is written
        os.posix_fallocate(file.fileno(), 0, (aside / "hu.npy").stat().st_size)
    tables: list[pa.Table] = []
    start = 0
    for shard in manifest.shards:
        for batch in read_shard(shards / shard.file, shard.sha256, manifest.settings.size):
            hu[start : start + len(batch)] = area_averaged(_images(batch, manifest.settings.size), size)
            tables.append(pa.Table.from_batches([batch]).drop_columns(list(IMAGES)))
            start += len(batch)
    if start != slices:
        raise DataError(f"the manifest promises {slices} slices, but the shards hold {start}; preprocess again")
    hu.flush()
    pq.write_table(pa.concat_tables(tables), aside / "slices.parquet")
    aside.rename(entry)


def _images(batch: pa.RecordBatch, stored: int) -> npt.NDArray[np.int16]:
    """The `hu` column of a batch, (B, stored, stored) int16."""
    column = batch.column("hu")
    planes = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, 2, stored, stored)
    return unpack_hu(planes[column.offset : column.offset + len(column)])


def area_averaged(hu: npt.NDArray[np.int16], size: int) -> npt.NDArray[np.int16]:
    """(B, S, S) int16 HU averaged over areas to (B, size, size) int16."""
    if hu.shape[-1] == size:
        return hu
    averaged = adaptive_avg_pool2d(torch.from_numpy(hu.astype(np.float32)), size)
    result: npt.NDArray[np.int16] = averaged.round().to(torch.int16).numpy()
    return result


def _make_room(cache: Path, *, needed_bytes: int) -> None:
    """Remove least recently used entries until `needed_bytes` fit; trials that have one open keep its pages."""
    entries = sorted((path for path in cache.glob("[!.]*px") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    free = shutil.disk_usage(cache).free
    quota = int(os.environ.get("ICHSEARCH_CACHE_BYTES") or DEFAULT_SHARE_OF_DISK * (free + sum(sizes.values())))
    if needed_bytes > quota:
        raise StorageError(
            f"the decoded slices must fit into the node cache's {quota:,} bytes at {cache}, but need {needed_bytes:,} "
            f"({free:,} free); move ICHSEARCH_CACHE, raise ICHSEARCH_CACHE_BYTES, or search a smaller size"
        )
    used = sum(sizes.values())
    for path in entries:
        if used + needed_bytes <= quota:
            return
        dead = path.rename(path.with_name(f".{path.name}.aside"))  # at once gone, should this process die meanwhile
        shutil.rmtree(dead)
        used -= sizes[path]

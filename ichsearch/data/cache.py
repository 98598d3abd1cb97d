"""The decoded slices of a data set, once per node, as a memory map that all trials of the node share.

In: a folder of shards and an image size. Out: a `SliceSet`. The cache entry is built under a lock that the kernel
releases when its builder dies, appears by one rename, and the least recently used entries make room for it. Of a data
set beyond the cache's quota, or whose pixels nobody on this node reads, the entry has none: who wants some streams them
from the shards.
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
import pyarrow.parquet as pq

from ichsearch.data.cache_build import BREAKS, PIXELS, TABLE, build_mapped, build_streamed
from ichsearch.data.stream import SliceStream
from ichsearch.errors import ConfigError, StorageError
from ichsearch.labels import LABELS
from ichsearch.shards.copies import bytes_in_store, hold, is_copy, is_held, make_copy, origin_of
from ichsearch.shards.identity import cache_folder
from ichsearch.shards.manifest import MANIFEST, Manifest, read_manifest
from ichsearch.shards.metadata import LEDGER_JSON, METADATA
from ichsearch.storage import open_folder

DEFAULT_SHARE_OF_DISK: Final = 0.5
"""Share of the disk's free and cached bytes that the cache may take when `ICHSEARCH_CACHE_BYTES` does not say."""


@dataclass(frozen=True)
class SliceSet:
    """All slices of a data set at one size, in the shards' order.

    Attributes:
        hu: (N, size, size) int16 HU, a read-only memory map; a stream of them when they do not fit the node's cache.
        table: N rows, the other columns of the shards.
        fingerprint: of the shards' manifest.
        registered: whether the slices of a series share one crop box, so that a pixel is one place in all of them.
        hist_breaks: rising int16 HU, the break points of the channel `hist`.
        streams: whether they do not fit the node's cache, so that they are decoded anew in every epoch.
    """

    hu: npt.NDArray[np.int16] | SliceStream
    table: pd.DataFrame
    fingerprint: str
    registered: bool
    hist_breaks: npt.NDArray[np.int16]
    streams: bool = False

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """(N, 6) float32 in {0, 1}, NaN for unlabelled slices."""
        return self.table[list(LABELS)].to_numpy(dtype=np.float32, na_value=np.nan)

    @property
    def relative_position(self) -> npt.NDArray[np.float32]:
        """(N,) float32: see `relative_position`."""
        return relative_position(self.table)

    def require_registered(self) -> None:
        """Raise `ConfigError` unless neighbouring slices can be channels of one image."""
        if not self.registered:
            raise ConfigError(
                "channels: neighbours needs slices of a series that were cropped by one box, but these shards were "
                "made with --crop slice; preprocess with --crop series, or choose other channels"
            )

    @property
    def neighbours(self) -> npt.NDArray[np.int64]:
        """(N, 3) int64 rows: the slice below in the series, the slice, the slice above; a series' ends repeat.

        Raises:
            ConfigError: the slices of a series were cropped one by one.
        """
        self.require_registered()
        index, series = self.table["series_index"].to_numpy(), self.table["series"].to_numpy()
        rows = np.arange(len(index))
        joined = (series[1:] == series[:-1]) & (index[1:] == index[:-1] + 1)  # a row with the one before it
        return np.stack([rows - np.append(False, joined), rows, rows + np.append(joined, False)], axis=1)


def relative_position(table: pd.DataFrame) -> npt.NDArray[np.float32]:
    """(N,) float32: 0 at the feet's end of a slice's series, 1 at the other, 0.5 in a series of one slice."""
    last = table["series_slices"].to_numpy(np.float32) - 1
    index = table["series_index"].to_numpy(np.float32)
    return np.where(last > 0, index / np.maximum(last, 1), np.float32(0.5)).astype(np.float32)


def local_shards(location: str | Path, cache: Path | None = None) -> Path:
    """The folder of shards at a location, for a store this node's copy of it: its shards come when they are opened.

    A copy is an entry of the cache that stays as long as a process uses it, and makes room like any other afterwards.

    Raises:
        ConfigError: the location is none.
        DataError: no shards are there.
        StorageError: the store stayed away.
    """
    if (path := open_folder(location).local_path()) is not None:
        return path
    location, cache = str(location), cache or cache_folder()
    manifest = read_manifest(location)
    copy = cache / f"{manifest.fingerprint[:16]}-{manifest.settings.size}px-shards"
    with _locked(cache):
        if origin_of(copy) != location:
            make_copy(location, copy, (MANIFEST, METADATA, LEDGER_JSON))
        hold(copy)
        os.utime(copy)
    return copy


def open_slices(shards: Path, size: int, cache: Path | None = None, *, decode: bool = True) -> SliceSet:
    """The slices of `shards` at (size, size), decoded now unless this node's cache holds them.

    Slices smaller than stored are made by area averaging. Slices that do not fit into the cache's quota are streamed:
    see `SliceSet.streams`. So are those that are not to `decode`: a driver reads no pixels, and may be on a small node.

    Raises:
        DataError: the shards are damaged or incomplete.
        ConfigError: `size` is larger than the stored one.
    """
    manifest = read_manifest(shards)
    if size > manifest.settings.size:
        raise ConfigError(
            f"size must be at most the shards' {manifest.settings.size} px, but is {size}; "
            f"preprocess with --size {size} or choose a smaller one"
        )
    place = _Place(shards, manifest, size, cache or cache_folder(), decode)
    try:
        return _load(place)
    except FileNotFoundError:  # not built yet, or evicted a moment ago
        with _locked(place.cache):
            try:
                return _load(place)
            except FileNotFoundError:
                _build(place)
            return _load(place)


@dataclass(frozen=True)
class _Place:
    """What is cached, and where."""

    shards: Path
    manifest: Manifest
    size: int
    cache: Path
    decode: bool

    @property
    def mapped(self) -> Path:
        return self.cache / f"{self.manifest.fingerprint[:16]}-{self.size}px"

    @property
    def without_pixels(self) -> Path:
        """The entry of a set that is streamed, or that nobody reads: only the former has seen to room for copies."""
        return self.mapped.with_name(f"{self.mapped.name}-{'streamed' if self.decode else 'table'}")

    @property
    def n_bytes(self) -> int:
        return sum(shard.slices for shard in self.manifest.shards) * self.size * self.size * 2

    @property
    def fits(self) -> bool:
        return self.n_bytes <= _quota(self.cache)

    @property
    def has_pixels(self) -> bool:
        return self.decode and self.fits

    def stream(self) -> SliceStream:
        return SliceStream(self.shards, self.manifest, self.size)


def _load(place: _Place) -> SliceSet:
    """The set from its entry; FileNotFoundError when there is none, or not a whole one."""
    try:
        return _loaded(place, place.mapped, np.load(place.mapped / PIXELS, mmap_mode="r"))
    except FileNotFoundError:
        if place.has_pixels:
            raise
    return _loaded(place, place.without_pixels, place.stream())


def _loaded(place: _Place, entry: Path, hu: npt.NDArray[np.int16] | SliceStream) -> SliceSet:
    table = pq.read_table(entry / TABLE).to_pandas()
    breaks = np.load(entry / BREAKS)
    os.utime(entry)
    registered, streams = place.manifest.settings.crop == "series", isinstance(hu, SliceStream) and not place.fits
    return SliceSet(hu, table, place.manifest.fingerprint, registered, breaks, streams)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(place: _Place) -> None:
    """Build the entry under the lock, whose holder is the only living builder."""
    for dead in place.cache.glob(".*.aside"):
        shutil.rmtree(dead)
    entry = place.mapped if place.has_pixels else place.without_pixels
    if entry.exists():  # parts of an entry
        _remove(entry)
    aside = _aside(entry)
    if entry == place.mapped:
        _make_room(place.cache, needed_bytes=place.n_bytes)
        _require_room(place.cache, place.n_bytes)
        aside.mkdir()
        build_mapped(aside, place.shards, place.manifest, place.size)
    else:
        if place.decode and is_copy(place.shards):
            _make_room_for_copy(place)
        aside.mkdir()
        build_streamed(aside, place.stream(), keep_copies=place.decode)
    aside.rename(entry)


def _make_room(cache: Path, *, needed_bytes: int) -> None:
    """Remove least recently used entries until `needed_bytes` fit; trials that have one open keep its pages."""
    quota = _quota(cache)
    for path in sorted(_entries(cache), key=lambda path: path.stat().st_mtime):
        if _used(cache) + needed_bytes <= quota:
            return
        if not is_held(path):
            _remove(path)


def _make_room_for_copy(place: _Place) -> None:
    """Make room for all shards of a set whose slices do not fit: they are read in every epoch."""
    needed_bytes, quota = bytes_in_store(place.shards), _quota(place.cache)
    if needed_bytes > quota:
        raise ConfigError(
            f"slices must fit into this node's cache, decoded or as they are stored, but take {place.n_bytes:,} or "
            f"{needed_bytes:,} bytes of {quota:,}; raise ICHSEARCH_CACHE_BYTES, or copy the shards to a disk"
        )
    _make_room(place.cache, needed_bytes=needed_bytes)


def _require_room(cache: Path, needed_bytes: int) -> None:
    if (free := shutil.disk_usage(cache).free) < needed_bytes:
        raise StorageError(
            f"the disk of the cache {cache} is full: {free:,} bytes free, {needed_bytes:,} needed; make room, or "
            "put it elsewhere with ICHSEARCH_CACHE"
        )


def cache_room() -> tuple[int, int, int]:
    """Of this node's cache: bytes used, its quota, and bytes free on its disk.

    Raises:
        ConfigError: `ICHSEARCH_CACHE_BYTES` is no number.
    """
    cache = cache_folder()
    where = next(path for path in (cache, *cache.parents) if path.is_dir())
    return _used(cache), _quota(cache), shutil.disk_usage(where).free


def _quota(cache: Path) -> int:
    if limit := os.environ.get("ICHSEARCH_CACHE_BYTES"):
        if not limit.isdecimal():
            raise ConfigError(f"ICHSEARCH_CACHE_BYTES must be a whole number of bytes, but is {limit!r}; mend it")
        return int(limit)
    where = next(path for path in (cache, *cache.parents) if path.is_dir())
    return int(DEFAULT_SHARE_OF_DISK * (shutil.disk_usage(where).free + _used(cache)))


def _used(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.glob("*px*/*"))


def _entries(cache: Path) -> list[Path]:
    return [path for path in cache.glob("[!.]*px*") if path.is_dir()]


def _aside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.aside")


def _remove(entry: Path) -> None:
    dead = entry.rename(_aside(entry))  # at once gone, should this process die meanwhile
    shutil.rmtree(dead)

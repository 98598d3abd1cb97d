"""Copies of shards that stand in a store: a folder on this node's disk, whose shards come when they are opened.

In: the location of a folder of shards in a store, a new folder. Out: a folder of shards as any other.
"""

import errno
import fcntl
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ichsearch.errors import StorageError
from ichsearch.files import write_text
from ichsearch.locations import below
from ichsearch.storage import download, open_folder

ORIGIN: Final = "origin"
"""Of a copy: the file that says where the shards stand; written last."""
USERS: Final = "users"
"""Of a copy: the file on which each process that uses it has a lock."""
_held: Final[dict[Path, Any]] = {}


def make_copy(location: str, copy: Path, names: Iterable[str]) -> None:
    """Make `copy` one of the shards at `location`, with the files of these names that there are, and no shards yet."""
    copy.mkdir(parents=True, exist_ok=True)
    for name in names:
        with suppress(FileNotFoundError):
            download(below(location, name), copy / name)
    write_text(copy / ORIGIN, location)


def origin_of(folder: Path) -> str | None:
    """Where the shards of a copy stand; None of a folder that is none."""
    path = folder / ORIGIN
    return path.read_text(encoding="utf-8") if path.is_file() else None


def is_copy(folder: Path) -> bool:
    """Whether the shards of a folder stand in a store."""
    return origin_of(folder) is not None


def bytes_in_store(copy: Path) -> int:
    """What all shards of a copy would take here."""
    location = origin_of(copy)
    return sum(file.n_bytes for file in open_folder(location).files()) if location else 0


def hold(copy: Path) -> None:
    """Keep a copy from being evicted as long as this process lives."""
    if copy not in _held:
        users = (copy / USERS).open("a")
        fcntl.flock(users, fcntl.LOCK_SH)
        _held[copy] = users


def is_held(folder: Path) -> bool:
    """Whether a living process uses this folder as a copy."""
    if not (folder / USERS).is_file():
        return False
    with (folder / USERS).open("a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def fetch(shard: Path) -> None:
    """Bring a shard of a copy that is not here yet; any other folder's are left as they are.

    Raises:
        StorageError: the store cannot be read, or the disk is full.
    """
    location = None if shard.is_file() else origin_of(shard.parent)
    if location is None:
        return
    try:
        with suppress(FileNotFoundError):  # whoever opens it says so
            download(below(location, shard.name), shard)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, needed = shutil.disk_usage(shard.parent).free, bytes_in_store(shard.parent)
        raise StorageError(
            f"the disk of the cache {shard.parent.parent} is full: {free:,} bytes free, up to {needed:,} needed for "
            "copies of shards; make room, or put it elsewhere with ICHSEARCH_CACHE"
        ) from error


def drop(shard: Path) -> None:
    """Free the room of a copied shard: it comes anew when it is opened."""
    if is_copy(shard.parent):
        shard.unlink(missing_ok=True)

"""The journal of a run in a store: immutable numbered segments of whole lines, in the order of their writing.

In: `journal.log`, which grows. Out: `journal/00000001`, ...; from these the file again. A driver that died while it
uploaded leaves no object, or in a store that keeps a torn one whole lines that count and half a line that never does.

Many segments are merged into one: `00000050-7312` holds the first 50, of 7312 bytes together. These go only when it is
there, so that a driver that dies in between leaves both; a torn one is known by its size, and does not count.
"""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from ichsearch.errors import AlreadyRunningError, StorageError
from ichsearch.files import write_bytes
from ichsearch.locations import below
from ichsearch.storage import FoundFile, open_folder

JOURNAL: Final = "journal.log"
SEGMENTS: Final = "journal"
TRANSFERS: Final = 8
MERGED_FROM: Final = 50
"""So many segments are merged with all before."""
LISTINGS: Final = 5
"""Who reads may find that a driver has merged what was listed, and lists again."""
_NAME: Final = re.compile(r"(\d{8})(?:-(\d+))?")


class _Segment(NamedTuple):
    """One or, if merged, the first `last` of them."""

    name: str
    last: int
    is_merged: bool


NOTHING: Final = _Segment("", 0, is_merged=True)


class Segments:
    """The journal at `path`, whose segments stand in the run folder at `store`."""

    def __init__(self, store: str, path: Path) -> None:
        self._store, self._path = below(store, SEGMENTS), path
        self._sent, self._merged, self._newest = 0, 0, NOTHING

    def pull(self) -> None:
        """Make the file of the segments, or append those to it that have come since.

        Raises:
            StorageError: one is missing between others.
        """
        folder = open_folder(self._store)
        for _ in range(LISTINGS):
            chain = self._chain([_segment(file) for file in folder.files()])
            try:
                parts = _each(lambda segment: folder.read_bytes(segment.name), chain)
            except FileNotFoundError:
                continue
            self._append([part[: part.rfind(b"\n") + 1] for part in parts], chain)
            return
        raise self._missing()

    def _chain(self, found: list[_Segment | None]) -> list[_Segment]:
        """The segments to read: those after the newest that is known here; else the last merged one, and all after."""
        merged = max((each for each in found if each and each.is_merged), key=_last, default=NOTHING)
        single = sorted((each for each in found if each and not each.is_merged), key=_last)
        newest = max([merged.last, *map(_last, single)])
        for start in (self._newest, merged) if self._newest.last else (merged,):
            after = [segment for segment in single if segment.last > start.last]
            if [segment.last for segment in after] == list(range(start.last + 1, newest + 1)):
                return after if start in (self._newest, NOTHING) else [merged, *after]
        raise self._missing()

    def _append(self, parts: list[bytes], chain: list[_Segment]) -> None:
        if not chain:
            return
        if chain[0].is_merged:
            self._sent, self._merged = 0, chain[0].last
        known = self._path.read_bytes()[: self._sent] if self._sent else b""
        write_bytes(self._path, b"".join([known, *parts]))
        self._sent, self._newest = len(known) + sum(map(len, parts)), chain[-1]

    def push(self) -> None:
        """Upload what was appended: what this returns from is known to every later driver.

        Raises:
            AlreadyRunningError: another driver has written the segment that is due, or merged those before it.
            StorageError: the store cannot be written.
        """
        with self._path.open("rb") as file:
            file.seek(self._sent)
            content = file.read()
        if not content:
            return
        folder, number = open_folder(self._store), self._newest.last + 1
        due = _Segment(f"{number:08d}", number, is_merged=False)
        is_foreign = folder.exists(due.name) and folder.read_bytes(due.name) != content  # equal: not acknowledged
        if is_foreign or (self._newest.last and not folder.exists(self._newest.name)):
            raise AlreadyRunningError(f"a journal has one writer, but another one has gone on with {self._store}")
        folder.write_bytes(due.name, content)
        self._sent, self._newest = self._sent + len(content), due
        if number - self._merged >= MERGED_FROM:
            self._merge()

    def _merge(self) -> None:
        """Make one segment of all that are there, then remove these; so does only who may push."""
        folder, last = open_folder(self._store), self._newest.last
        with self._path.open("rb") as file:
            content = file.read(self._sent)
        merged = _Segment(f"{last:08d}-{len(content)}", last, is_merged=True)
        folder.write_bytes(merged.name, content)
        self._merged, self._newest = last, merged
        _each(folder.remove, [name for name in folder.names() if name[:8] <= merged.name[:8] and name != merged.name])

    def _missing(self) -> StorageError:
        return StorageError(
            f"segments of a journal must be numbered from 1 on, but {self._store} lacks one; restore it"
        )


def _segment(file: FoundFile) -> _Segment | None:
    """What a name says; None if it is no segment's, or a merged one is torn."""
    name = file.location.partition("?")[0].rpartition("/")[2]
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in (None, str(file.n_bytes)):
        return None
    return _Segment(name, int(match[1]), is_merged=match[2] is not None)


def _last(segment: _Segment) -> int:
    return segment.last


def _each(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What `work` says of all items, some at a time."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        return list(pool.map(work, items))

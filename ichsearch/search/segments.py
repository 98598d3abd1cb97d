"""The journal of a run in a store: immutable numbered segments of whole lines, in the order of their writing.

In: `journal.log`, which grows. Out: `journal/00000001`, ...; from these the file again. A driver that died while it
uploaded leaves no object, or in a store that keeps a torn one whole lines that count and half a line that never does.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ichsearch.errors import AlreadyRunningError, StorageError
from ichsearch.files import write_bytes
from ichsearch.locations import below
from ichsearch.storage import open_folder

JOURNAL: Final = "journal.log"
SEGMENTS: Final = "journal"
READS: Final = 8


class Segments:
    """The journal at `path`, whose segments stand in the run folder at `store`."""

    def __init__(self, store: str, path: Path) -> None:
        self._store, self._path = below(store, SEGMENTS), path
        self._sent, self._number = 0, 0

    def pull(self) -> None:
        """Make the file of the segments.

        Raises:
            StorageError: one is missing between others.
        """
        folder = open_folder(self._store)
        names = folder.names()
        if names != [_name(number) for number in range(1, len(names) + 1)]:
            raise StorageError(
                f"segments of a journal must be numbered from 1 on, but {self._store} lacks one; restore it"
            )
        with ThreadPoolExecutor(READS) as pool:
            parts = [part[: part.rfind(b"\n") + 1] for part in pool.map(folder.read_bytes, names)]
        if names:
            write_bytes(self._path, b"".join(parts))
        self._sent, self._number = sum(map(len, parts)), len(names)

    def push(self) -> None:
        """Upload what was appended: what this returns from is known to every later driver.

        Raises:
            AlreadyRunningError: another driver has written the segment that is due.
            StorageError: the store cannot be written.
        """
        with self._path.open("rb") as file:
            file.seek(self._sent)
            content = file.read()
        if not content:
            return
        folder, name = open_folder(self._store), _name(self._number + 1)
        if folder.exists(name) and folder.read_bytes(name) != content:  # equal: an upload that was not acknowledged
            raise AlreadyRunningError(f"a journal has one writer, but another one has written {name} of {self._store}")
        folder.write_bytes(name, content)
        self._sent, self._number = self._sent + len(content), self._number + 1


def _name(number: int) -> str:
    return f"{number:08d}"

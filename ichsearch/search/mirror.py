"""A run folder in an object store, as a folder on this node's disk: the store is the truth, the mirror a copy of it.

In: the location of a run, an empty folder. Out: files of the store here, and files of here in the store. An object is
whole or absent: a small one that is written over is never gone, a large one may be if its upload fails. The files that
vouch for others (`VOUCHING`) are uploaded behind them, as they were before these. Each file has one
writer: a trial's worker writes below `trials/<id>/` while it runs, the driver all else.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from ichsearch.errors import StorageError
from ichsearch.locations import below, parse_location
from ichsearch.search.segments import JOURNAL, SEGMENTS, Segments
from ichsearch.search.watchdog import STACKS
from ichsearch.shards.identity import cache_folder
from ichsearch.storage import FoundFile, download, open_folder, upload
from ichsearch.train.lineage import CHECKPOINT, METRICS, STATE, WEIGHTS

PUSH_EVERY_S: Final = 3.0
TRANSFERS: Final = 8
"""At a time: small files wait for the network, not for the machine."""
CLAIMS: Final = "lease"
SPACE: Final = "space.yaml"
WRITER: Final = "writer"
"""In a trial's folder of the store: the token of the worker that writes to it."""
ROOT_LOCK: Final = ".lock"
"""In a mirror's folder: the lock of the process that has it."""
APART: Final = {JOURNAL, SEGMENTS, CLAIMS, "phantom"}
"""What of a run folder is not mirrored as it is."""
VOUCHING: Final = (METRICS, "manifest.json")
LARGE: Final = {WEIGHTS, STATE, CHECKPOINT}
"""Below trials: whoever does not read them gets holes of their size."""


class _Stamp(NamedTuple):
    n_bytes: int
    modified_ns: int


class Mirror:
    """The run folder at `store`, mirrored in `root`; it pickles to these two."""

    def __init__(self, store: str, root: Path) -> None:
        self.store, self.root, self.journal = store, root, Segments(store, root / JOURNAL)
        self._agreed: dict[str, _Stamp] = {}  # what the files here were like when they were as in the store
        self._seen: dict[str, _Stamp] = {}  # what those of the store were like
        self._sent: set[str] = set()  # what of the store is from here
        self._holes: set[str] = set()
        self._gone: set[str] = set()  # what the last push has missed here
        self._own = _inode(root / ROOT_LOCK)
        self._lock = threading.RLock()
        self._failure: Exception | None = None

    def __reduce__(self) -> tuple[type["Mirror"], tuple[str, Path]]:
        return Mirror, (self.store, self.root)

    def check(self) -> None:
        """Raises what has ended the pushes of the background."""
        if self._failure:
            raise self._failure

    def pull(self, folder: str = "", *, holes: bool = True) -> None:
        """Bring what is new in the store below a folder of the run, and for the run itself its journal.

        What the store has no more goes. A file that was changed here stays. With `holes` large files of trials
        come as holes of their size.

        Raises:
            StorageError: the store cannot be read.
        """
        with self._lock:
            for root in _dead_mirrors(self.store):
                _rescue_stacks(root, self.store, folder)
            if not folder:
                if not open_folder(self.store).exists(SPACE):  # no run yet: whatever is there is not ours to bring
                    return
                self.journal.pull()
            found = open_folder(below(self.store, folder) if folder else self.store).files()
            named = {self._name(file): file for file in found}
            due = [(name, file) for name, file in named.items() if _is_mirrored(name, folder)]
            _each(lambda item: self._bring(*item, hole=holes and _is_large(item[0])), due)
            for name in [name for name in self._agreed if _is_below(name, folder) and name not in named]:
                self._drop(name)

    def fetch(self, *names: str) -> None:
        """Bring single files, those that there are; errors of `pull`."""
        with self._lock:
            for name in names:
                with suppress(FileNotFoundError):
                    download(below(self.store, name), self.root / name)
                    self._agreed[name] = _stamp(self.root / name)

    def push(self, folder: str = "", *, on_second_look: bool = False) -> None:
        """Upload what has changed here below a folder of the run, and remove there what has gone here.

        With `on_second_look` only what the last push has missed, too: a mirror that is being removed is no order.

        Raises:
            StorageError: the store cannot be written, or the mirror has gone: then nothing is removed there.
        """
        with self._lock:
            first = self._changed(folder)
            vouching = self._contents(filter(_vouches, first))
            _each(self._send, [name for name in self._changed(folder) if not _vouches(name)])
            for name, content in vouching.items():
                open_folder(self.store).write_bytes(name, content)
                self._note_sent(name, first[name])
            gone = {name for name in self._agreed if _is_below(name, folder) and not (self.root / name).exists()}
            due, self._gone = gone & self._gone if on_second_look else gone, gone
            _each(self._remove, due)

    def push_unless_outdated(self) -> None:
        """`push` all but what somebody else has written since it was brought: a driver knows more by now."""
        with self._lock:
            if changed := self._changed(""):
                there = {self._name(file): _stamp_of(file) for file in open_folder(self.store).files()}
                for name in (changed.keys() & there.keys()) - self._sent:
                    if there[name] != self._seen.get(name):
                        self._agreed[name] = changed[name]
            self.push()

    @contextmanager
    def pushing(self, folder: str = "", *, may: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Push every few seconds while the block runs, and at its end however it ends; before each, ask `may`."""
        ended = threading.Event()

        def push_on() -> None:
            try:
                while not ended.wait(PUSH_EVERY_S):
                    may()
                    self.push(folder, on_second_look=True)
            except Exception as error:  # noqa: BLE001 - whatever it is, `check` tells
                self._failure = error

        thread = threading.Thread(target=push_on, name="ichsearch-mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.check()
            may()
            self.push(folder)

    def _bring(self, name: str, file: FoundFile, *, hole: bool) -> None:
        path, stamp = self.root / name, _stamp_of(file)
        if path.exists():
            is_known = self._seen.get(name) == stamp and (hole or name not in self._holes)
            if is_known or self._agreed.get(name) != _stamp(path):
                return
        with suppress(FileNotFoundError):  # removed from the store a moment ago
            if hole:
                _make_hole(path, file.n_bytes)
                self._holes.add(name)
            else:
                download(file.location, path)
                self._holes.discard(name)
            self._agreed[name], self._seen[name] = _stamp(path), stamp

    def _drop(self, name: str) -> None:
        """Remove here what was removed from the store, unless it was changed here meanwhile."""
        path = self.root / name
        if path.exists() and _stamp(path) == self._agreed[name]:
            path.unlink()
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._agreed.pop(name, None)
        self._seen.pop(name, None)

    def _contents(self, names: Iterable[str]) -> dict[str, bytes]:
        contents = {}
        for name in names:
            with suppress(FileNotFoundError):  # removed a moment ago
                contents[name] = (self.root / name).read_bytes()
        return contents

    def _changed(self, folder: str) -> dict[str, _Stamp]:
        """The files below a folder that are not as in the store."""
        found = {}
        for parent, _, names in os.walk(self.root / folder):
            for path in (Path(parent, name) for name in names):
                name = path.relative_to(self.root).as_posix()
                with suppress(FileNotFoundError):  # removed a moment ago
                    if _is_mirrored(name, folder) and self._agreed.get(name) != (stamp := _stamp(path)):
                        found[name] = stamp
        return found

    def _send(self, name: str) -> None:
        path = self.root / name
        with suppress(FileNotFoundError):  # removed a moment ago
            stamp = _stamp(path)
            upload(path, below(self.store, name))
            self._note_sent(name, stamp)

    def _note_sent(self, name: str, stamp: _Stamp) -> None:
        self._agreed[name] = stamp
        self._sent.add(name)

    def _remove(self, name: str) -> None:
        if self._own is None or _inode(self.root / ROOT_LOCK) != self._own:
            raise StorageError(
                f"the mirror of {self.store} in ICHSEARCH_CACHE must stay while it is used, but was removed; the store "
                "still holds the run: give the same command again"
            )
        open_folder(self.store).remove(name)
        self._forget(name)

    def _name(self, file: FoundFile) -> str:
        root = parse_location(self.store).without_slash().path
        return parse_location(file.location).path.removeprefix(root).lstrip("/")


@contextmanager
def scratch(store: str) -> Iterator[Path]:
    """A folder for one mirror of a run, below the node's cache; it goes with the block, those of dead processes too."""
    mirrors = mirrors_folder()
    mirrors.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=_prefix(store), dir=mirrors))
    with (root / ".new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / ".new").rename(root / ROOT_LOCK)  # whoever sees it finds it held
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)
            for dead in _dead_mirrors(store):
                with suppress(OSError, StorageError):  # away: a mirror that goes is no reason to end with
                    _rescue_stacks(dead, store)
            for dead in _dead_mirrors():
                shutil.rmtree(dead, ignore_errors=True)


def _dead_mirrors(store: str | None = None) -> list[Path]:
    """What processes of this node have left that are dead, of this run or of all."""
    return [root for root in mirrors_folder().glob(f"{_prefix(store) if store else ''}*") if is_dead(root)]


def _rescue_stacks(root: Path, store: str, folder: str = "") -> None:
    """Upload what a process wrote when it ended because it hung, unless it is known already: nobody else could."""
    there = open_folder(store)
    for parent, _, names in os.walk(root / folder):
        if STACKS in names:
            path = Path(parent, STACKS)
            name = path.relative_to(root).as_posix()
            with suppress(FileNotFoundError):  # another process of this node has been quicker
                if path.stat().st_size and there.exists(name):
                    upload(path, below(store, name))
                path.unlink()


def _prefix(store: str) -> str:
    return f"{hashlib.sha256(store.encode()).hexdigest()[:16]}-"


def mirrors_folder() -> Path:
    """Where this node's mirrors are."""
    return cache_folder() / "mirrors"


def is_dead(root: Path) -> bool:
    """Whether the process is dead that had made a mirror's folder."""
    try:
        with (root / ROOT_LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or not yet or no more there
        return False
    return True


def _is_mirrored(name: str, folder: str) -> bool:
    parts = name.split("/")
    first, last = parts[0], parts[-1]
    if (first in APART and not _is_below(name, folder or "/")) or last == WRITER or last.endswith(".lock"):
        return False
    return not any(part.startswith(".") for part in parts)


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _is_large(name: str) -> bool:
    first, *others = name.split("/")
    return first in ("trials", "confirm") and not LARGE.isdisjoint(others)


def _vouches(name: str) -> bool:
    return name.rpartition("/")[2] in VOUCHING


def _stamp(path: Path) -> _Stamp:
    info = path.stat()
    return _Stamp(info.st_size, info.st_mtime_ns)


def _stamp_of(file: FoundFile) -> _Stamp:
    return _Stamp(file.n_bytes, file.modified_ns)


def _inode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _make_hole(path: Path, n_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(n_bytes)


def _each(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Do `work` for all items, some at a time."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(work, items))

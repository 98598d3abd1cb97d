"""Folders on a disk or in an object store, with the same few operations on both.

In: a path, or a URI such as `s3://bucket/folder`. Out: bytes, local copies to read, and files that are whole or absent.
Credentials and endpoints come from the environment alone; a location that holds them is refused.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import pyarrow as pa
from pyarrow import fs

from ichsearch import files
from ichsearch.errors import StorageError, UnreadableError
from ichsearch.locations import Place, check_host, check_location, local_path, parse_location
from ichsearch.patience import patiently

PIECE_BYTES: Final = 8 << 20
"""A part of a multipart upload, and a step of a download: what a transfer keeps in memory."""

GCS_RETRY_SECONDS: Final = 60
"""Instead of Arrow's 15 minutes, during which a wrong credential looks like a hang."""

Result = TypeVar("Result")


class FoundFile(NamedTuple):
    """A file below a folder; `location` is what `read_file` takes, size and time are 0 until they are asked."""

    location: str
    n_bytes: int
    modified_ns: int  # since 1970, as the file system or the store says (S3: whole seconds)


@dataclass(frozen=True)
class Folder(ABC):
    """A folder, which need not exist yet. It pickles to its location, so that it can be sent to Ray workers.

    Reading raises OSError. Writing to a store raises StorageError, writing to a disk OSError. A store that is away is
    tried again for a while, then each of these is a StorageError.
    """

    location: str

    @abstractmethod
    def local_path(self) -> Path | None:
        """The folder's path, or None for one in a store."""

    @abstractmethod
    def files(self) -> Iterator[FoundFile]:
        """All that is no folder below, in no order; nothing when there is no folder.

        Those of a store come with size and time; of a disk with 0, so that a million are listed in seconds. Linked
        folders are followed once each: a loop of links ends.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Sorted names of all files below, relative to the folder."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""

    @abstractmethod
    def write_bytes(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file so that it holds either all of `content` or what it held before; see `files.write_bytes`."""

    @abstractmethod
    def writing(self, name: str, *, durable: bool = True) -> AbstractContextManager[Path]:
        """Yield a local path to write to; on success the file appears whole, on an error it does not."""

    @abstractmethod
    def reading(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to read a file from, gone afterwards unless the folder is local."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


def open_folder(location: str | Path) -> Folder:
    """The folder at a path or URI, which is neither made nor reached.

    Raises:
        ConfigError: the location is none that ichsearch takes.
    """
    text = str(location)
    check_location(text)
    path = local_path(text)
    return _LocalFolder(str(path.resolve())) if path else _RemoteFolder(parse_location(text).without_slash().location)


def read_file(location: str, start: int = 0, length: int | None = None) -> bytes:
    """The bytes of one file anywhere, or the range of them that exists.

    Raises:
        OSError: it cannot be read, of a store an UnreadableError; FileNotFoundError when there is none.
        StorageError: the store stayed away.
    """
    if path := local_path(location):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    place = parse_location(location)

    def read() -> bytes:
        with _store(place).open_input_file(place.key) as source:
            rest = max(0, source.size() - start)
            n_bytes = rest if length is None else min(length, rest)
            return bytes(source.read_at(n_bytes, start)) if n_bytes else b""

    return _from(place, read)


def download(location: str, path: Path) -> None:
    """Copy one file of a store to a disk, whole or not at all; errors of `read_file`."""
    place = parse_location(location)

    def copy() -> None:
        with files.written_aside(path, durable=False) as aside:
            _download(place, aside)

    _from(place, copy)


def upload(path: Path, location: str) -> None:
    """Copy one file of a disk to a store, whole or not at all.

    Raises:
        FileNotFoundError: there is none, or it has gone meanwhile.
        StorageError: the store cannot be written.
    """
    _put(parse_location(location), lambda: _pieces(path))


def with_state(file: FoundFile) -> FoundFile:
    """The file with its size and time, both 0 when they cannot be asked; a store's listing has told them."""
    path = local_path(file.location)
    if path is None:
        return file
    try:
        info = path.stat()
    except OSError:
        return file
    return FoundFile(file.location, info.st_size, info.st_mtime_ns)


def _store(place: Place) -> Any:
    return _file_system(place.scheme, place.authority, place.query)


@cache
def _file_system(scheme: str, authority: str, query: str) -> Any:
    """Arrow's file system for a place, checked and made once a process."""
    place = Place(scheme, authority, "", query)
    check_host(place)
    if scheme == "s3":
        return _s3(authority, dict(parse_qsl(query)).get("region"))
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=GCS_RETRY_SECONDS))
    return fs.AzureFileSystem(account_name=authority.partition("@")[2].partition(".")[0])


def _s3(bucket: str, region: str | None) -> Any:
    """Arrow reads the endpoint's variables for its own URIs only, not for file systems made with options."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if region is None and endpoint is None:
        region = _region_of(bucket)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        background_writes=False,  # else all parts of a file wait in memory for a slow network
        allow_delayed_open=True,  # one request for a small file instead of three
        allow_bucket_creation=False,
        allow_bucket_deletion=False,
    )


def _region_of(bucket: str) -> str:
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError:
        raise StorageError(
            f"the bucket {bucket} must be reachable, but AWS does not tell its region; check the network, give "
            f"s3://{bucket}/...?region=NAME, or set AWS_ENDPOINT_URL for another store"
        ) from None


def _from(place: Place, read: Callable[[], Result]) -> Result:
    """Read; Arrow's errors of its own, such as that of an empty part in a key, become OSError as well."""
    try:
        return patiently(place.shown, read)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # there is none, or it is this node's disk
            raise
        raise UnreadableError(f"{place.shown} must be readable, but: {error}; check the store's permissions") from error


def _to(place: Place, write: Callable[[], None]) -> None:
    try:
        patiently(place.shown, write)
    except _SourceError as error:
        raise error.cause from None
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{place.shown} must be writable, but: {error}; check the bucket, its permissions and the network"
        ) from error


class _SourceError(Exception):
    """What is to be written could not be read."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _put(place: Place, pieces: Callable[[], Iterable[bytes]]) -> None:
    """Write one object; of a small one nothing reaches the store before its stream is closed.

    Arrow completes an upload that is closed early, so that what is cut short of a large one is removed again.
    """

    def write() -> None:
        coming = iter(pieces())
        first = list(islice(coming, 2))
        stream = _store(place).open_output_stream(place.key)
        if len(first) < 2 and sum(map(len, first)) <= PIECE_BYTES:
            stream.write(b"".join(first))
            stream.close()
            return
        try:
            for piece in chain(first, coming):
                stream.write(piece)
        except BaseException:
            with suppress(OSError):
                stream.close()  # raises where the store failed: then there is nothing to remove
                _store(place).delete_file(place.key)
            raise
        stream.close()

    _to(place, write)


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from iter(partial(file.read, PIECE_BYTES), b"")
    except OSError as error:
        raise _SourceError(error) from error


def _download(place: Place, path: Path) -> None:
    with _store(place).open_input_file(place.key) as source, path.open("wb") as file:
        while piece := source.read(PIECE_BYTES):
            file.write(piece)


class _LocalFolder(Folder):
    def local_path(self) -> Path:
        return Path(self.location)

    def files(self) -> Iterator[FoundFile]:
        seen: set[tuple[int, int]] = set()
        closed: list[str] = []  # folders that cannot be listed: whoever reads them finds them unreadable
        for parent, folders, names in os.walk(
            self.location, followlinks=True, onerror=lambda error: closed.append(error.filename)
        ):
            with suppress(OSError):
                info = Path(parent).stat()
                if (info.st_dev, info.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((info.st_dev, info.st_ino))
            yield from (FoundFile(os.path.join(parent, name), 0, 0) for name in names)  # noqa: PTH118 - a million Paths
        yield from (FoundFile(folder, 0, 0) for folder in closed if Path(folder).exists())

    def names(self) -> list[str]:
        found = (Path(parent, name) for parent, _, names in os.walk(self.location) for name in names)
        return sorted(path.relative_to(self.location).as_posix() for path in found)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def read_bytes(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def write_bytes(self, name: str, content: bytes, *, durable: bool = True) -> None:
        files.write_bytes(self._path(name), content, durable=durable)

    def writing(self, name: str, *, durable: bool = True) -> AbstractContextManager[Path]:
        return files.written_aside(self._path(name), durable=durable)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        path = self._path(name)
        path.stat()  # FileNotFoundError here, as from a store
        yield path

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return Path(self.location, name)


class _RemoteFolder(Folder):
    def local_path(self) -> None:
        return None

    def files(self) -> Iterator[FoundFile]:
        place = parse_location(self.location)
        for info in self._infos():
            yield FoundFile(place.below(self._name(info)).location, info.size, info.mtime_ns or 0)

    def names(self) -> list[str]:
        return sorted(map(self._name, self._infos()))

    def exists(self, name: str) -> bool:
        place = self._place(name)
        return _from(place, lambda: bool(_store(place).get_file_info(place.key).type == fs.FileType.File))

    def read_bytes(self, name: str) -> bytes:
        return read_file(self._place(name).location)

    def write_bytes(self, name: str, content: bytes, *, durable: bool = True) -> None:  # noqa: ARG002 - a store's always is
        _put(self._place(name), lambda: [content])

    @contextmanager
    def writing(self, name: str, *, durable: bool = True) -> Iterator[Path]:  # noqa: ARG002 - a store's always is
        with _temporary(name) as path:
            yield path
            path.stat()  # FileNotFoundError when nothing was written, as on a disk
            _put(self._place(name), lambda: _pieces(path))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with _temporary(name) as path:
            _from(self._place(name), lambda: _download(self._place(name), path))
            yield path

    def remove(self, name: str) -> None:
        place = self._place(name)

        def delete() -> None:
            with suppress(FileNotFoundError):
                _store(place).delete_file(place.key)

        _to(place, delete)

    def _place(self, name: str) -> Place:
        return parse_location(self.location).below(name)

    def _infos(self) -> list[Any]:
        """All objects below, without the folders that Arrow reports among them and that stores mark with objects."""
        place = parse_location(self.location)
        selector = fs.FileSelector(place.key, recursive=True, allow_not_found=True)
        found = _from(place, lambda: _store(place).get_file_info(selector))
        return [info for info in found if info.type == fs.FileType.File]

    def _name(self, info: Any) -> str:
        return str(info.path.removeprefix(parse_location(self.location).key + "/"))


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    """A path in a temporary folder, of the name's last part: readers go by its suffix."""
    with tempfile.TemporaryDirectory(prefix="ichsearch-") as folder:
        yield Path(folder, Path(name).name)

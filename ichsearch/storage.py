"""Folders on a disk or in an object store, with the same few operations on both.

In: a path, or a URI such as `s3://bucket/folder`. Out: bytes, local copies to read, and files that are whole or absent.
Credentials and endpoints come from the environment alone; a location that holds them is refused.
"""

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pyarrow import fs

from ichsearch import files
from ichsearch.errors import ConfigError, StorageError

SCHEMES: Final[dict[str, set[str]]] = {"s3": {"region"}, "gs": set(), "abfs": set(), "abfss": set(), "file": set()}
"""What a location may begin with, and the query keys it may hold: none that leads credentials elsewhere."""

PIECE_BYTES: Final = 8 << 20
"""A part of a multipart upload, and a step of a download: what a transfer keeps in memory."""

GCS_RETRY_SECONDS: Final = 60
"""Instead of Arrow's 15 minutes, during which a wrong credential looks like a hang."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,221}")  # legacy S3 names and dotted GCS names included
_AZURE: Final = re.compile(r"[a-z0-9$-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net")
_REGION: Final = re.compile(r"[a-z0-9-]{2,32}")  # it becomes a part of the host's name
_ONE_SLASH: Final = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


class FoundFile(NamedTuple):
    """A file below a folder; `location` is what `read_file` takes."""

    location: str
    n_bytes: int
    modified_ns: int  # since 1970, as the file system or the store says (S3: whole seconds)


@dataclass(frozen=True)
class Folder(ABC):
    """A folder, which need not exist yet. It pickles to its location, so that it can be sent to Ray workers.

    Reading raises OSError. Writing to a store raises StorageError, writing to a disk OSError.
    """

    location: str

    @abstractmethod
    def local_path(self) -> Path | None:
        """The folder's path, or None for one in a store."""

    @abstractmethod
    def files(self) -> Iterator[FoundFile]:
        """All files below, in no order; none when the folder does not exist."""

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
    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that it holds either all of `content` or what it held before."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to write to; on success the file appears whole, on an error it does not."""

    @abstractmethod
    def reading(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to read a file from, gone afterwards unless the folder is local."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


def is_uri(location: str | Path) -> bool:
    """Whether a location begins with `scheme://`; a `Path` never does, for it folds slashes."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(location)) is not None


def check_location(location: str) -> None:
    """Refuse a location that names no place, or that holds what belongs into the environment; it is not echoed.

    Raises:
        ConfigError: the scheme, the bucket, the path or the query is none that ichsearch takes.
    """
    if wrong := _ONE_SLASH.match(location):
        raise ConfigError(f"a scheme must be followed by ://, but got {wrong.group()}; double the slash")
    if is_uri(location):
        place = _parse(location)
        _check_authority(place)
        _check_query(place)
        _check_path(place)


def open_folder(location: str | Path) -> Folder:
    """The folder at a path or URI, which is neither made nor reached.

    Raises:
        ConfigError: the location is none that ichsearch takes.
    """
    text = str(location)
    check_location(text)
    path = _local_path(text)
    return _LocalFolder(str(path.resolve())) if path else _RemoteFolder(_parse(text).without_slash().location)


def read_file(location: str, start: int = 0, length: int | None = None) -> bytes:
    """The bytes of one file anywhere, or the range of them that exists.

    Raises:
        OSError: it cannot be read; FileNotFoundError when there is none.
    """
    if path := _local_path(location):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    with _opened(_parse(location)) as source:
        rest = max(0, source.size() - start)
        n_bytes = rest if length is None else min(length, rest)
        return bytes(source.read_at(n_bytes, start)) if n_bytes else b""


class _Place(NamedTuple):
    """A URI in parts. The path is decoded, has no leading slash and may hold any character."""

    scheme: str
    authority: str
    path: str
    query: str

    @property
    def shown(self) -> str:
        """What a message may say of it."""
        return f"{self.scheme}://{self.authority}/{self.path}"

    @property
    def location(self) -> str:
        path = self.path.replace("%", "%25").replace("?", "%3F")
        return f"{self.scheme}://{self.authority}/{path}" + (f"?{self.query}" if self.query else "")

    @property
    def key(self) -> str:
        """Arrow's name for it: container, slash, path."""
        return f"{self.authority.partition('@')[0]}/{self.path}".rstrip("/")

    @property
    def store(self) -> Any:
        return _file_system(self.scheme, self.authority, self.query)

    def without_slash(self) -> "_Place":
        return self._replace(path=self.path.rstrip("/"))

    def below(self, name: str) -> "_Place":
        return self._replace(path=f"{self.path}/{name}" if self.path else name)


def _parse(location: str) -> _Place:
    """Split a URI. `urlsplit` would drop tabs and what follows a `#`, both of which a key may hold."""
    scheme, _, rest = location.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    return _Place(scheme.lower(), authority, unquote(path, errors="surrogateescape"), query)


def _local_path(location: str) -> Path | None:
    if not is_uri(location):
        return Path(location)
    place = _parse(location)
    return Path("/", place.path) if place.scheme == "file" else None


def _check_authority(place: _Place) -> None:
    scheme, authority = place.scheme, place.authority
    if scheme not in SCHEMES:
        raise ConfigError(
            f"a location must be a path or begin with one of {_schemes()}, but got {scheme}://; change it"
        )
    if ":" in authority or ("@" in authority and not scheme.startswith("abfs")):
        raise ConfigError(
            f"a location must hold neither credentials nor a port, but this {scheme}:// one does; "
            "give them in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...) or a profile"
        )
    if scheme == "file" and authority not in ("", "localhost"):
        raise ConfigError(f"a file:// location must have three slashes, but got file://{authority}; write file:///path")
    if scheme.startswith("abfs") and not _AZURE.fullmatch(authority):
        raise ConfigError(
            f"an Azure location must be {scheme}://container@account.dfs.core.windows.net/path, but this one is not; "
            "write it so"
        )
    if scheme in ("s3", "gs") and not _BUCKET.fullmatch(authority):
        raise ConfigError(
            f"a {scheme}:// location must name a bucket of at least 3 letters, digits, dots or hyphens, "
            f"but got {authority!r}; write {scheme}://bucket/path"
        )


def _check_query(place: _Place) -> None:
    allowed = SCHEMES[place.scheme]
    query = dict(parse_qsl(place.query, keep_blank_values=True))
    if unknown := sorted(query.keys() - allowed):
        names = ", ".join(name if re.fullmatch(r"[a-z_]{1,32}", name) else "another" for name in unknown)
        raise ConfigError(
            f"the query of a {place.scheme}:// location may hold {', '.join(sorted(allowed)) or 'nothing'}, "
            f"but got {names}; give it in the environment (an S3 endpoint as AWS_ENDPOINT_URL)"
        )
    if not _REGION.fullmatch(query.get("region", "any")):
        raise ConfigError("a region must be a name such as eu-central-1, but this one is not; correct it")


def _check_path(place: _Place) -> None:
    path = place.path.rstrip("/")
    if path and place.scheme != "file" and not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ConfigError(
            f"a {place.scheme}:// path must have no empty part, . or .., but this one has; write it plainly"
        )


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)


@cache
def _file_system(scheme: str, authority: str, query: str) -> Any:
    """Arrow's file system for a place, checked and made once a process."""
    place = _Place(scheme, authority, "", query)
    _check_authority(place)
    _check_query(place)
    if scheme == "s3":
        return _s3(authority, dict(parse_qsl(query)).get("region"))
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=GCS_RETRY_SECONDS))
    return fs.AzureFileSystem(account_name=authority.partition("@")[2].partition(".")[0])


def _s3(bucket: str, region: str | None) -> Any:
    """Arrow reads the endpoint's variables for its own URIs only, not for file systems made with options."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(
        region=region or (None if endpoint else fs.resolve_s3_region(bucket)),
        endpoint_override=endpoint,
        background_writes=False,  # else all parts of a file wait in memory for a slow network
        allow_delayed_open=True,  # one request for a small file instead of three
        allow_bucket_creation=False,
        allow_bucket_deletion=False,
    )


@contextmanager
def _reading_from(place: _Place) -> Iterator[None]:
    """Arrow's errors of its own, such as that of an empty part in a key, become OSError as well."""
    try:
        yield
    except OSError:
        raise
    except pa.ArrowException as error:
        raise OSError(f"{place.shown} must be readable, but: {error}") from error


@contextmanager
def _writing_to(place: _Place) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{place.shown} must be writable, but: {error}; check the bucket, its permissions and the network"
        ) from error


@contextmanager
def _opened(place: _Place) -> Iterator[Any]:
    with _reading_from(place), place.store.open_input_file(place.key) as source:
        yield source


def _put(place: _Place, pieces: Iterable[bytes]) -> None:
    """Write one object. Arrow completes an upload that is closed early, so that what is cut short is removed again."""
    with _writing_to(place):
        stream = place.store.open_output_stream(place.key)
        try:
            for piece in pieces:
                stream.write(piece)
        except BaseException:
            with suppress(OSError):
                stream.close()  # raises where the store failed: then there is nothing to remove
                place.store.delete_file(place.key)
            raise
        stream.close()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, PIECE_BYTES), b"")


def _download(place: _Place, path: Path) -> None:
    with _opened(place) as source, path.open("wb") as file:
        while piece := source.read(PIECE_BYTES):
            file.write(piece)


class _LocalFolder(Folder):
    def local_path(self) -> Path:
        return Path(self.location)

    def files(self) -> Iterator[FoundFile]:
        for parent, _, names in os.walk(self.location):
            for path in (Path(parent, name) for name in names):
                info = path.stat()
                yield FoundFile(str(path), info.st_size, info.st_mtime_ns)

    def names(self) -> list[str]:
        found = (Path(parent, name) for parent, _, names in os.walk(self.location) for name in names)
        return sorted(path.relative_to(self.location).as_posix() for path in found)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def read_bytes(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def write_bytes(self, name: str, content: bytes) -> None:
        files.write_bytes(self._path(name), content)

    def writing(self, name: str) -> AbstractContextManager[Path]:
        return files.written_aside(self._path(name))

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
        place = _parse(self.location)
        for info in self._infos():
            yield FoundFile(place.below(self._name(info)).location, info.size, info.mtime_ns or 0)

    def names(self) -> list[str]:
        return sorted(map(self._name, self._infos()))

    def exists(self, name: str) -> bool:
        place = self._place(name)
        with _reading_from(place):
            return bool(place.store.get_file_info(place.key).type == fs.FileType.File)

    def read_bytes(self, name: str) -> bytes:
        return read_file(self._place(name).location)

    def write_bytes(self, name: str, content: bytes) -> None:
        _put(self._place(name), [content])

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with _temporary(name) as path:
            yield path
            path.stat()  # FileNotFoundError when nothing was written, as on a disk
            _put(self._place(name), _pieces(path))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with _temporary(name) as path:
            _download(self._place(name), path)
            yield path

    def remove(self, name: str) -> None:
        place = self._place(name)
        with _writing_to(place), suppress(FileNotFoundError):
            place.store.delete_file(place.key)

    def _place(self, name: str) -> _Place:
        return _parse(self.location).below(name)

    def _infos(self) -> list[Any]:
        """All objects below, without the folders that Arrow reports among them and that stores mark with objects."""
        place = _parse(self.location)
        selector = fs.FileSelector(place.key, recursive=True, allow_not_found=True)
        with _reading_from(place):
            return [info for info in place.store.get_file_info(selector) if info.type == fs.FileType.File]

    def _name(self, info: Any) -> str:
        return str(info.path.removeprefix(_parse(self.location).key + "/"))


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    """A path in a temporary folder, of the name's last part: readers go by its suffix."""
    with tempfile.TemporaryDirectory(prefix="ichsearch-") as folder:
        yield Path(folder, Path(name).name)

"""Files that are whole or absent: everything ichsearch leaves on a disk is written aside, synced and renamed.

In: bytes, text or JSON-able values. Out: files, SHA-256 digests of files, cells of CSV files.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ichsearch.errors import DataError

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the first four in full width, which some spreadsheets take for the same."""


@contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on an error it is removed.

    It is synced first, so that a power failure cannot leave a name without its content; not `durable` is for files
    whose hash is checked before they are believed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        yield aside
        if durable:
            sync(aside)
        aside.replace(path)
        if durable:
            sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` so that `path` holds either all of it or what it held before."""
    with written_aside(path, durable=durable) as aside:
        aside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text, all or nothing."""
    write_bytes(path, content.encode())


def as_cell(text: str) -> str:
    """Text of a CSV file that no spreadsheet takes for a formula: an apostrophe goes before what would start one."""
    bare = text.lstrip()
    return f"'{text}" if bare.startswith(FORMULA_STARTS) or text[:1] in ("\t", "\r", "\n") else text


def to_json(value: Any) -> bytes:
    """`value` as indented JSON; NaN is refused because JSON has none."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def from_json(content: bytes, name: str) -> Any:
    """The value that JSON bytes hold; damaged ones raise `DataError` naming the file they came from."""
    try:
        return json.loads(content.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{name} must be JSON, but it is damaged ({error}); make the folder anew") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all or nothing."""
    write_bytes(path, to_json(value))


def read_json(path: Path) -> Any:
    """The value in a JSON file; a damaged file raises `DataError` naming it."""
    return from_json(path.read_bytes(), path.name)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The files below a folder, each once, and their bytes; on a disk or an object store.

In: a folder or its URI. Out: locations as they are found, and bytes within limits.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ichsearch.dicom.decoder import MAX_FILE_BYTES
from ichsearch.dicom.reasons import RejectedError
from ichsearch.errors import DataError
from ichsearch.locations import is_uri, local_path
from ichsearch.storage import FoundFile, open_folder, read_file


def find_files(folder: str, *, labels: Path | None = None, out: str = "") -> Iterator[FoundFile]:
    """All entries below `folder` that are not folders, without the labels CSV and what lies below `out`.

    They come as they are found, those of a disk with sizes and times yet to be asked (`with_state`), so that work on
    a million files starts at once. No message names the folder: its name may be a patient's.

    Raises:
        DataError: `folder` is missing, no folder, or cannot be listed.
    """
    path = local_path(folder)
    if path is not None and (state := _wrong_state(path)):
        raise DataError(f"DICOM_DIR must be an existing folder, but the one given {state}; check the path")
    return _listed(folder, labels, f"{out}/" if out else "")


def _wrong_state(path: Path) -> str:
    try:
        return "" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"


def _listed(folder: str, labels: Path | None, out: str) -> Iterator[FoundFile]:
    try:
        for file in open_folder(folder).files():
            if not (out and file.location.startswith(out)) and not _is_same(file.location, labels):
                yield file
    except OSError:
        raise DataError(
            "DICOM_DIR must be readable, but its store does not list it; check the URI and access"
        ) from None


def _is_same(location: str, other: Path | None) -> bool:
    if other is None or not location.endswith(other.name) or is_uri(location):
        return False
    try:
        return Path(location).samefile(other)
    except OSError:
        return False


def read_content(location: str, length: int | None = None) -> bytes:
    """A file's bytes, or its first `length`.

    Raises:
        RejectedError: no regular file, not readable, or larger than 64 MiB.
    """
    try:
        content = (read_file if is_uri(location) else _read_regular)(location, 0, length or MAX_FILE_BYTES + 1)
    except OSError:
        raise RejectedError("unreadable") from None
    if len(content) > MAX_FILE_BYTES:
        raise RejectedError("over_limit", "file")
    return content


def _read_regular(location: str, start: int, length: int) -> bytes:
    """As `read_file`, but never waiting for the other end of a pipe."""
    handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - the handle is open
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise RejectedError("unreadable")
        if info.st_size > MAX_FILE_BYTES:
            raise RejectedError("over_limit", "file")
        file.seek(start)
        content = file.read(length)
        while len(content) < min(length, info.st_size - start) and (more := file.read(length - len(content))):
            content += more  # some network disks give less than they are asked for
        return content

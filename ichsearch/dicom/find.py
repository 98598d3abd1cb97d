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


def find_files(folder: str, *, ignore: Path | None = None) -> Iterator[FoundFile]:
    """All entries below `folder` that are not folders, without `ignore` (the labels CSV may be there).

    They come as they are found, those of a disk with sizes and times yet to be asked (`with_state`), so that work on
    a million files starts at once. No message names the folder: its name may be a patient's.

    Raises:
        DataError: `folder` is missing, or no folder.
    """
    path = local_path(folder)
    if path is not None and not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"DICOM_DIR must be an existing folder, but the one given {state}; check the path")
    ignored = ignore.stat() if ignore and ignore.exists() else None
    found = open_folder(folder).files()
    return found if ignored is None else (file for file in found if not _is_same(file.location, ignored))


def _is_same(location: str, other: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(location).stat(), other)
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
        return file.read(length)

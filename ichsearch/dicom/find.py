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
from ichsearch.storage import FoundFile, is_uri, open_folder, read_file


def find_files(folder: str, *, ignore: Path | None = None) -> Iterator[FoundFile]:
    """All entries below `folder` that are not folders, without `ignore` (the labels CSV may be there).

    They come as they are found, those of a disk with sizes and times yet to be asked (`with_state`), so that work on
    a million files starts at once. Linked folders are
    followed once each, so that a loop of links ends. No message names the folder: its name may be a patient's.

    Raises:
        DataError: `folder` is missing, or no folder.
    """
    if is_uri(folder):
        return open_folder(folder).files()
    if not Path(folder).is_dir():
        state = "is not a folder" if Path(folder).exists() else "does not exist"
        raise DataError(f"DICOM_DIR must be an existing folder, but the one given {state}; check the path")
    return _walk(folder, ignore.stat() if ignore and ignore.exists() else None)


def _walk(folder: str, ignored: os.stat_result | None) -> Iterator[FoundFile]:
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        info = Path(parent).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        for name in files:
            location = os.path.join(parent, name)  # noqa: PTH118 - a million Path objects take seconds
            if ignored is None or not _is_same(location, ignored):
                yield FoundFile(location, 0, 0)


def _is_same(location: str, other: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(location).stat(), other)
    except OSError:
        return False


def with_state(file: FoundFile) -> FoundFile:
    """The file with its size and time, both 0 when they cannot be asked; a store's listing has told them."""
    if is_uri(file.location):
        return file
    try:
        info = Path(file.location).stat()
    except OSError:
        return file
    return FoundFile(file.location, info.st_size, info.st_mtime_ns)


def read_content(location: str, length: int | None = None) -> bytes:
    """A file's bytes, or its first `length`.

    Raises:
        RejectedError: no regular file, not readable, or larger than 64 MiB.
    """
    try:
        if not is_uri(location):
            info = Path(location).stat()
            if not stat.S_ISREG(info.st_mode):
                raise RejectedError("unreadable")
            if info.st_size > MAX_FILE_BYTES:
                raise RejectedError("over_limit", "file")
        content = read_file(location, 0, length or MAX_FILE_BYTES + 1)
    except OSError:
        raise RejectedError("unreadable") from None
    if len(content) > MAX_FILE_BYTES:
        raise RejectedError("over_limit", "file")
    return content

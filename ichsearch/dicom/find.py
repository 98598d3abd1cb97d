"""The files below a folder, each once, in an order that does not depend on the file system.

In: a folder. Out: sorted paths.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ichsearch.errors import DataError


def find_files(folder: Path, *, ignore: Path | None = None) -> list[Path]:
    """All entries below `folder` that are not folders, sorted, without `ignore` (the labels CSV may lie among them).

    Linked folders are followed once each, so that a loop of links ends.

    Raises:
        DataError: `folder` is missing, is no folder, or holds no file.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"the DICOM folder must exist, but {folder} {state}; check the path")
    ignored = os.path.realpath(ignore) if ignore else None
    paths = sorted(path for path in _walk(folder) if os.path.realpath(path) != ignored)
    if not paths:
        raise DataError(f"the DICOM folder must hold files, but {folder} is empty; check the path")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        info = Path(parent).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        yield from (Path(parent, name) for name in files)

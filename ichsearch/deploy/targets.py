"""Where results go: folders that are whole or absent, tables that only their owner reads.

In: paths. Out: folders and CSV files, written aside first.
"""

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ichsearch.errors import ConfigError
from ichsearch.files import written_aside
from ichsearch.locations import SCHEMES

WriteRow = Callable[[Iterable[object]], object]


def check_target(out: Path, option: str = "--out") -> None:
    """Refuse a folder that holds anything, before any work is done.

    Raises:
        ConfigError: with what to do.
    """
    _require_disk(out, option)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{option} must be a new or empty folder, but {out} is not; give another")


def check_files(files: Iterable[tuple[str, Path]]) -> None:
    """Refuse files that cannot be written, or that are one and the same, before any work is done; (option, path) each.

    Raises:
        ConfigError: with what to do.
    """
    seen: dict[Path, str] = {}
    for option, path in files:
        _require_disk(path, option)
        if path.is_dir():
            raise ConfigError(f"{option} must be a file, but {path} is a folder; give {path}/predictions.csv, say")
        if (other := seen.setdefault(path.resolve(), option)) != option:
            raise ConfigError(f"{option} and {other} must be two files, but both write {path}; give another")


def _require_disk(path: Path, option: str) -> None:
    if path.parts and path.parts[0] in {f"{scheme}:" for scheme in SCHEMES}:  # a `Path` folds the slashes of a URI
        raise ConfigError(f"{option} must be on a disk, but got the URI of a store; give a path, and copy to the store")


@contextmanager
def folder_aside(out: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `out`, new or empty; on success it becomes `out`, on an error it is removed.

    Only its owner may look into it.
    """
    check_target(out, option)
    out = out.resolve()
    aside = out.with_name(f".{out.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    aside.parent.mkdir(parents=True, exist_ok=True)
    aside.mkdir(mode=0o700)
    try:
        yield aside
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def private_csv(path: Path, header: Iterable[str]) -> Iterator[WriteRow]:
    """Yield a function that writes a row; the file is there when all are, and of mode 0600."""
    with written_aside(path) as aside:
        aside.touch(mode=0o600)
        with aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            yield table.writerow

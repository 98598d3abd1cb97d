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

WriteRow = Callable[[Iterable[object]], object]


def check_target(out: Path, option: str = "--out") -> None:
    """Refuse a folder that holds anything, before any work is done.

    Raises:
        ConfigError: with what to do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{option} must be a new or empty folder, but {out} is not; give another")


@contextmanager
def folder_aside(out: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `out`, new or empty; on success it becomes `out`, on an error it is removed."""
    check_target(out, option)
    aside = out.with_name(f".{out.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    aside.mkdir(parents=True)
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

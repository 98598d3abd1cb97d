"""A trial that is stuck within one step ends with its worker, and its folder says where it hung.

In: a trial's folder and a time. Out: `hung.txt`, the stacks of all threads, written shortly before the process ends, so
that the mirror of a run in a store takes them there, and again while it ends.
"""

import faulthandler
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ichsearch.files import write_text

STACKS: Final = "hung.txt"
FOLDERS: Final = re.compile(r'File "[^"]*/')
LEAST_GRACE_S: Final = 60.0
GRACE: Final = 0.25
"""A trial ends itself at its limit; one that takes this share of it longer, reading and judging included, hangs."""

TOLD_BEFORE_S: Final = 15.0
"""Some pushes of a mirror: a driver on another node sees nothing of a worker but what is in the store."""


def hangs_after_s(limit_s: float, least_grace_s: float = LEAST_GRACE_S) -> float:
    """Seconds after which a trial with this limit is taken to hang."""
    return limit_s + max(least_grace_s, GRACE * limit_s)


@contextmanager
def ended_when_hung(folder: Path, after_s: float) -> Iterator[None]:
    """End this process after `after_s` seconds unless the block has ended; inf: never.

    The timer is a thread of C that needs no lock of Python's: whatever hangs, it does not. The one that writes
    the stacks before that does need it, which most of what hangs leaves free.
    """
    if math.isinf(after_s):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STACKS).open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(after_s, exit=True, file=file)
        told = threading.Timer(after_s - min(TOLD_BEFORE_S, after_s / 2), faulthandler.dump_traceback, [file])
        told.daemon = True
        told.start()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            told.cancel()
            told.join()
            (folder / STACKS).unlink(missing_ok=True)  # whatever it ends with, it has not hung


def has_hung(folder: Path) -> bool:
    """Whether an earlier attempt at this trial was ended by its watchdog."""
    path = folder / STACKS
    return path.is_file() and path.stat().st_size > 0


def explain_hang(folder: Path) -> None:
    """Make the stacks of a hung trial its `error.txt`, without any path of the machine."""
    stacks = (folder / STACKS).read_text(encoding="utf-8", errors="replace")
    without_folders = FOLDERS.sub('File "', stacks)
    write_text(folder / "error.txt", f"TrialFailedError: timed_out: it hung here\n{without_folders}")
    (folder / STACKS).unlink()

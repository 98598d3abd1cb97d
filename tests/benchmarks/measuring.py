"""What the benchmarks share: processes on a core of their own, rounds, and tables.

In: work to time. Out: medians with their spread, and tables for a reader.
"""

import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import pyarrow as pa
from rich.table import Table

Figures = dict[str, Any]
Result = TypeVar("Result")


def worker(core: int, prepare: Callable[[], None]) -> ProcessPoolExecutor:
    """A fresh process on one core, as a worker of Ray is; it calls `prepare` first.

    Contestants must not share one: fastai's import leaves an allocator that keeps its memory, and whatever runs in
    that process is spared page faults that it has in one of its own.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker, (core, prepare))


def _start_worker(core: int, prepare: Callable[[], None]) -> None:
    prepare()
    os.sched_setaffinity(0, {core})
    pa.set_cpu_count(1)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and its seconds."""
    start = perf_counter()
    result = work()
    return result, perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(above: Iterable[float], below: Iterable[float]) -> dict[str, float]:
    """Round by round, so that what slows a whole round down cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def cpu_model() -> str:
    """As /proc/cpuinfo names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def new_table(title: str, *columns: str) -> Table:
    """An empty table; all columns but the first hold numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def spread_text(values: dict[str, float], digits: int = 0) -> str:
    """`spread` as "median [min–max]"."""
    median, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} [{low}–{high}]"

"""Loading on one core, side by side with its peers; on demand, no test.

    python tests/benchmarks/loading.py [--slices 4096] [--rounds 5]

In: synthetic slices of 256² made here. Out: tables, and as the last line all their figures as one JSON object. Needs
the extra `bench`; peers that are not installed are named as skipped.
"""

import os

os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "ARROW_NUM_THREADS"), "1"
)

import argparse
import json
import math
import platform
import sys
import tempfile
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, Final

import loading_contestants
import numpy as np
import torch
from loading_contestants import CPU
from loading_data import Data, in_memory, write_data
from measuring import Figures, cpu_model, new_table, ratio, spread, spread_text, timed, worker
from rich.console import Console

from ichsearch.data.batches import Batches, Recipe

PACKAGES: Final = ("ichsearch", "torch", "torchvision", "fastai", "webdataset", "ray", "numpy", "pyarrow", "pillow")

CONTESTANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ours, hu": ("ours", {"channels": "hu"}),
    "ours, windows": ("ours", {"channels": "windows"}),
    "ours, neighbours": ("ours", {"channels": "neighbours"}),
    "ours, hist": ("ours", {"channels": "hist"}),
    "RAM tensors, hu": ("ram", {"channels": "hu"}),
    "RAM tensors, windows": ("ram", {"channels": "windows"}),
    "ours streamed, hu": ("ours_streamed", {"channels": "hu"}),
    "ImageFolder, 0 workers": ("image_folder", {"workers": 0}),
    "ImageFolder, 2 workers": ("image_folder", {"workers": 2}),
    "fastai, 0 workers": ("fastai", {}),
    "webdataset": ("webdataset", {}),
    "Ray Data": ("ray_data", {}),
}
"""Function and arguments of each; each runs in a process of its own."""

MINE: Final = ("ours, hu", "ours, windows")
REQUIRED: Final = {"ours, hu / ImageFolder, 0 workers": 40.0, "ours, hu / RAM tensors, hu": 0.9}
MOST_PSS_OF_DATA: Final = 0.55
MIN_SECONDS: Final = 0.5
"""A round of a fast contestant is several epochs, so that the clock and a scheduler's slice do not count."""


def main() -> None:
    """Measure everything, print it for a reader, and for a program on the last line."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="ichsearch-benchmark-") as name:
        data = write_data(Path(name), options.slices)
        figures = {"setting": _setting(options), "speed": _speed(data, options.rounds), "memory": _memory(data)}
    _show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Loading on one core, side by side with its peers.")
    parser.add_argument("--slices", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Figures:
    return {
        "slices": options.slices,
        "rounds": options.rounds,
        "batch": loading_contestants.BATCH,
        "cpu": cpu_model(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def _speed(data: Data, rounds: int) -> Figures:
    """Slices a second of ours and of the peers, the rounds interleaved after one that warms up."""
    core = max(os.sched_getaffinity(0))
    rate: defaultdict[str, list[float]] = defaultdict(list)
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        pools: dict[str, ProcessPoolExecutor] = {}
        for name in CONTESTANTS:
            pool = stack.enter_context(worker(core, _prepare))
            if reason := pool.submit(_set_up, name, data).result():
                skipped[name] = reason
            else:
                pools[name] = pool
        for number in range(rounds + 1):
            for name, pool in pools.items():
                slices, seconds = pool.submit(_run_timed, number).result()
                if number:
                    rate[name].append(slices / seconds)
    ratios = {f"{mine} / {other}": ratio(rate[mine], rate[other]) for mine, other in product(MINE, rate)}
    reached = {name: ratios[name]["median"] >= least for name, least in REQUIRED.items()}
    speeds = {name: spread(values) for name, values in rate.items()}
    return {"slices_per_s": speeds, "ratios": ratios, "skipped": skipped, "reached": reached}


_epochs: dict[str, loading_contestants.Epoch] = {}
"""In a contestant's process: itself."""


def _set_up(name: str, data: Data) -> str:
    """Make the contestant in its process; why it is skipped, if it is."""
    function, arguments = CONTESTANTS[name]
    try:
        _epochs["epoch"] = getattr(loading_contestants, function)(data, **arguments)
    except ImportError as error:
        return str(error)
    return ""


def _run_timed(number: int) -> tuple[int, float]:
    """Epochs until the least time has passed: their slices, and their seconds."""
    total_slices, total_seconds = 0, 0.0
    while total_seconds < MIN_SECONDS:
        slices, seconds = timed(lambda: _epochs["epoch"](number))
        assert slices, "an epoch without a batch"
        total_slices += slices
        total_seconds += seconds
    return total_slices, total_seconds


def _memory(data: Data) -> Figures:
    """What the PSS of two processes that both have read all of the data has grown by, in shares of the data.

    It includes the table and the buffers of a batch; what the process needs for any data set is loaded before.
    """
    core = max(os.sched_getaffinity(0))
    with worker(core, _prepare) as one, worker(core, _prepare) as other:
        pools = (one, other)
        before = [pool.submit(_warm_up).result() for pool in pools]
        n_bytes = max(pool.submit(_read_all, data).result() for pool in pools)
        after = [pool.submit(_pss_bytes).result() for pool in pools]
    shares = [(last - first) / n_bytes for first, last in zip(before, after, strict=True)]
    return {"data_bytes": n_bytes, "pss_of_data": shares, "reached": max(shares) <= MOST_PSS_OF_DATA}


def _warm_up() -> int:
    """Batches of slices that are in memory, thrown away; PSS afterwards."""
    slices = in_memory(loading_contestants.BATCH)
    list(Batches(slices, np.arange(len(slices.table)), Recipe(loading_contestants.BATCH, "hu"), CPU).train(0))
    return _pss_bytes()


def _read_all(data: Data) -> int:
    _epochs["epoch"] = loading_contestants.ours(data, "hu")  # kept, with its map and its buffers
    _epochs["epoch"](0)
    return 2 * math.prod(data.open().hu.shape)


def _pss_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _show(figures: Figures) -> None:
    console = Console(width=120, highlight=False)
    setting, speed, memory = figures["setting"], figures["speed"], figures["memory"]
    console.print(
        f"n = {setting['slices']} slices of 256² × {setting['rounds']} interleaved rounds, batches of "
        f"{setting['batch']}, shuffled; median \\[min–max]; one core of {setting['cpu']}; load average "
        f"{setting['load_average']}"
    )
    console.print(", ".join(f"{name} {number}" for name, number in setting["versions"].items()))
    table = new_table("Slices → float32 batches", "", "slices/s", *(f"{mine} / it" for mine in MINE))
    for name, rate in speed["slices_per_s"].items():
        table.add_row(name, spread_text(rate), *(spread_text(speed["ratios"][f"{mine} / {name}"], 2) for mine in MINE))
    for name, reason in speed["skipped"].items():
        table.add_row(f"{name}: skipped", reason)
    console.print(table)
    console.print(
        "ours and RAM: int16 HU to normalised channels, one buffer. ImageFolder, fastai, webdataset: JPEG of "
        "three windows to floats in [0, 1]. Ray Data: shards to one channel. Workers share their contestant's core."
    )
    for name, reached in speed["reached"].items():
        console.print(f"{name} ≥ {REQUIRED[name]:g}: {'yes' if reached else 'NO'}")
    shares = " and ".join(f"{share:.3f}" for share in memory["pss_of_data"])
    console.print(
        f"PSS of two processes that both have read all {memory['data_bytes']:,} bytes has grown by {shares} of the "
        f"data, with table and buffers; ≤ {MOST_PSS_OF_DATA}: {'yes' if memory['reached'] else 'NO'}"
    )


if __name__ == "__main__":
    main()

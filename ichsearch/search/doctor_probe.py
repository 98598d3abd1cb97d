"""What a node says of itself to `ichsearch doctor`; plain functions that run there.

In: paths. Out: what is there, and what does not work.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import torch
from ray._common.usage import usage_lib

from ichsearch.data.cache import cache_room
from ichsearch.errors import IchsearchError
from ichsearch.shards.manifest import read_manifest

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Ray's object store is
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class Found(NamedTuple):
    """What a node has, and why it cannot read or write ("" if it can)."""

    node: str
    """A name for the file that it wrote."""
    gpus: int
    shm_bytes: int
    used_bytes: int
    """Of its cache; then the cache's quota, and what is free on that disk."""
    quota_bytes: int
    free_bytes: int
    usage_stats: bool
    data_fault: str
    out_fault: str


def probe_clock() -> float:
    """Seconds since 1970, by this node's clock."""
    return time.time()


def probe_node(data: Path | None, probe: Path | None) -> Found:
    """Look at this node; `probe` is a file of the driver's, beside which one of this node's is written."""
    node = uuid.uuid4().hex
    used, quota, free = cache_room()
    with _all_gpus_visible():
        gpus = torch.cuda.device_count()
    shm = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    return Found(
        node, gpus, shm, used, quota, free, usage_lib.usage_stats_enabled(), _data_fault(data), _out_fault(probe, node)
    )


@contextmanager
def _all_gpus_visible() -> Iterator[None]:
    """Ray hides all GPUs from a task that asks for none."""
    hidden = os.environ.pop(VISIBLE, None)
    try:
        yield
    finally:
        if hidden is not None:
            os.environ[VISIBLE] = hidden


def _data_fault(data: Path | None) -> str:
    try:
        if data is not None:
            read_manifest(data)
    except (IchsearchError, OSError) as error:
        return str(error)
    return ""


def _out_fault(probe: Path | None, node: str) -> str:
    if probe is None:
        return ""
    try:
        if not probe.is_file():
            return "it does not see what this machine writes there"
        probe.with_name(f"{probe.name}-{node}").write_bytes(b"node")
    except OSError as error:
        return f"it cannot be written: {error.strerror}"
    return ""

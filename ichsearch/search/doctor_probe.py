"""What a node says of itself to `ichsearch doctor`; plain functions that run there.

In: where shards are and a run folder is. Out: what is there, and what does not work.
"""

import shutil
import time
import uuid
from pathlib import Path
from typing import Final, NamedTuple

import torch
from ray._common.usage import usage_lib

from ichsearch.data.cache import cache_room
from ichsearch.errors import IchsearchError
from ichsearch.patience import giving_up_after
from ichsearch.shards.manifest import read_manifest
from ichsearch.storage import Folder

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Ray's object store is
PATIENCE_S: Final = 20.0
"""How long a store that does not answer is asked: whoever examines a cluster waits for it."""


class Probe(NamedTuple):
    """A file that the driver has written, beside which each node writes one of its own."""

    folder: Folder
    name: str

    def of(self, node: str) -> str:
        """The name of a node's file."""
        return f"{self.name}-{node}"


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


def probe_node(data: Folder | None, probe: Probe | None) -> Found:
    """Look at this node, and write a file of its own beside the driver's."""
    node = uuid.uuid4().hex
    used, quota, free = cache_room()
    gpus = torch.cuda.device_count()
    shm = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    with giving_up_after(PATIENCE_S):
        faults = _data_fault(data), _out_fault(probe, node)
    return Found(node, gpus, shm, used, quota, free, usage_lib.usage_stats_enabled(), *faults)


def _data_fault(data: Folder | None) -> str:
    try:
        if data is not None:
            read_manifest(data.location)
    except (IchsearchError, OSError) as error:
        return str(error)
    return ""


def _out_fault(probe: Probe | None, node: str) -> str:
    if probe is None:
        return ""
    try:
        if not probe.folder.exists(probe.name):
            return "it does not see what this machine writes there"
        probe.folder.write_bytes(probe.of(node), b"node", durable=False)
    except (IchsearchError, OSError) as error:
        return f"it cannot be written: {reason(error)}"
    return ""


def reason(error: Exception) -> str:
    """Why a folder could not be used, without its path where the system says more shortly what is wrong."""
    return (isinstance(error, OSError) and error.strerror) or str(error)

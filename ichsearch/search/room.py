"""A disk that is full: which one, and how much of it trials need.

In: a space, a run folder. Out: bytes; the reason of a trial; the error to end with.
"""

import errno
import shutil
import socket
from typing import Final

from ichsearch.data.channels import CHANNELS
from ichsearch.data.tasks import task_labels
from ichsearch.errors import StorageError
from ichsearch.model.backbones import parameter_count
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.shards.identity import cache_folder

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
NO_ROOM: Final = "disk full"
"""What the reason of a trial begins with that says nothing about its configuration: it is run again when there is room.
"""
VALUES_KEPT: Final = 3 * 4 + 1
"""Of each parameter while a trial trains: two checkpoints and the one that is being written, each with the model,
AdamW's two moments and the best weights so far; then the weights that it leaves."""
BYTES_OF_A_VALUE: Final = 4


def trial_bytes(space: Space) -> int:
    """The most that one trial of the space has on its disk while it trains."""
    inputs = {(config.backbone, config.size, config.channels, config.head) for config in space.inputs()}
    classes = len(task_labels(space.task))
    counts = (parameter_count(name, size, CHANNELS[channels], classes, head) for name, size, channels, head in inputs)
    return VALUES_KEPT * BYTES_OF_A_VALUE * max(count or 0 for count in counts)


def no_room(folder: RunFolder) -> str:
    """The reason of what found no room on this machine: in the run folder, or in the cache that holds its mirror."""
    where = cache_folder() if folder.mirror else folder.root
    free = shutil.disk_usage(where).free
    return f"{NO_ROOM}: the disk of {where} on {socket.gethostname()} is full: {free:,} bytes free"


def full_disk(space: Space, reason: str) -> StorageError:
    """What to say when a trial, or what keeps account of them, found no room."""
    return StorageError(
        f"{reason.removeprefix(f'{NO_ROOM}: ')}, up to {trial_bytes(space):,} needed by each trial that runs; "
        "make room and run the same command again"
    )

"""How much of a disk trials need, told when it is full.

In: a space, a run folder. Out: bytes; the error to end with.
"""

import shutil
from typing import Final

from ichsearch.data.channels import CHANNELS
from ichsearch.data.tasks import task_labels
from ichsearch.errors import StorageError
from ichsearch.model.backbones import parameter_count
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space

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


def full_disk(space: Space, folder: RunFolder) -> StorageError:
    """What to say when a trial found no room."""
    free = shutil.disk_usage(folder.root).free
    return StorageError(
        f"the disk of {folder.root} is full: {free:,} bytes free, up to {trial_bytes(space):,} needed by each trial "
        "that runs; make room and run the same command again"
    )

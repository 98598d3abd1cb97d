"""A run folder as a node sees it that trains one of its trials.

In: the run folder of the driver. Out: the same folder, or a mirror of what the work needs, which follows it.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ichsearch.errors import AlreadyRunningError
from ichsearch.locations import below
from ichsearch.search.mirror import WRITER, Mirror, scratch
from ichsearch.search.run_folder import RunFolder
from ichsearch.storage import open_folder


@contextmanager
def on_node(folder: RunFolder, work: Path, *needed: Path | None, is_sole: bool = True) -> Iterator[RunFolder]:
    """The run folder for whoever writes below `work`, a folder of it, and reads folders and files that are `needed`.

    What is written is in the store within seconds, and all of it when the block has ended. A worker that was given up,
    but lives, must not write over its successor: of those that are `is_sole`, the last that has begun is the writer.

    Raises:
        AlreadyRunningError: another worker has begun on the same work.
        StorageError: the store stayed away.
    """
    if folder.mirror is None:
        yield folder
        return
    store = folder.mirror.store
    name, *others = (path.relative_to(folder.root).as_posix() for path in (work, *needed) if path)
    require_sole = _sole_writer(below(store, name)) if is_sole else lambda: None
    with scratch(store) as root:
        mirror = Mirror(store, root)
        mirror.fetch("split.json", *(other for other in others if Path(other).suffix))
        for needs in (name, *(other for other in others if not Path(other).suffix)):
            mirror.pull(needs, holes=False)
        with mirror.pushing(name, may=require_sole):
            yield RunFolder(root, mirror)


def _sole_writer(location: str) -> Callable[[], None]:
    """Become the writer of a folder in a store; what to call to see whether that is still so."""
    folder, token = open_folder(location), uuid.uuid4().bytes
    folder.write_bytes(WRITER, token)

    def require() -> None:
        if folder.read_bytes(WRITER) != token:
            raise AlreadyRunningError(f"a trial has one writer, but another worker has begun on {location}")

    return require

"""Holding a run: its lease, and for one in a store the mirror that follows it.

In: a run folder. Out: what must be asked before each step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ichsearch.search.claims import claimed
from ichsearch.search.lease import lease
from ichsearch.search.mirror import Mirror
from ichsearch.search.run_folder import RunFolder


class Held(Protocol):
    """A driver's hold on a run."""

    def check(self) -> None:
        """Raises `AlreadyRunningError` if another driver has taken it, `StorageError` if its store is away."""


class _HeldInStore:
    def __init__(self, held: Held, mirror: Mirror) -> None:
        self._held, self._mirror = held, mirror

    def check(self) -> None:
        self._mirror.check()
        self._held.check()


@contextmanager
def driving(folder: RunFolder) -> Iterator[Held]:
    """Hold a run folder; one in a store is as the last driver left it when this begins, and follows every few seconds.

    Raises:
        AlreadyRunningError: another driver holds it.
        StorageError: the store cannot be read or written.
    """
    mirror = folder.mirror
    if mirror is None:
        with lease(folder.root) as held:
            yield held
        return
    with claimed(mirror.store, folder.root.name) as claim:
        mirror.pull()
        with mirror.pushing(may=claim.check):
            yield _HeldInStore(claim, mirror)

"""Whether the node that a trial runs on is about to go, as a spot machine is.

In: a block of code in a Ray worker. Out: whether it should leave: somebody has sent SIGTERM to this process, as clouds
and `ray stop` do before they end it, or Ray drains the node.
"""

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final

import ray

from ichsearch.shards.nodes import draining_nodes

LOOK_EVERY_S: Final = 2.0
"""Ray is asked so often; clouds give thirty seconds or more."""


@contextmanager
def notices() -> Iterator[Callable[[], bool]]:
    """Yield what says whether a notice has come since the block began; in it SIGTERM does not end the process.

    A trial does not run on its process's main thread, and Python handles signals nowhere else: `faulthandler`, whose
    handler is C, writes a few lines to a file in memory instead, and its size is what is looked at.
    """
    memory = os.memfd_create("notice")
    ended, drains = Event(), Event()
    faulthandler.register(signal.SIGTERM, file=memory, chain=False)
    if ray.is_initialized():
        Thread(target=_watch_drain, args=(ray.get_runtime_context().get_node_id(), ended, drains), daemon=True).start()
    try:
        yield lambda: drains.is_set() or os.fstat(memory).st_size > 0
    finally:
        ended.set()
        faulthandler.unregister(signal.SIGTERM)
        os.close(memory)


def _watch_drain(node: str, ended: Event, drains: Event) -> None:
    """A thread of its own, because Ray may not answer."""
    while not ended.wait(LOOK_EVERY_S):
        if node in draining_nodes():
            drains.set()
            return

"""A cluster that is lost ends its driver in order, with the documented exit code.

In: the address of the cluster's head (its GCS). Out: `ClusterError` in the main thread. Ray itself would wait for a
minute, print what it thinks, and exit with code 1.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from ichsearch.errors import ClusterError

PROBE_S: Final = 2.0
LOST_S: Final = 30.0
"""Half of what Ray waits for its head: one that is started anew meanwhile goes on."""
GRACE_S: Final = 8.0
"""Until the driver has written what it must; then it is ended as it stands: Ray waits for what never comes."""


class _LostError(BaseException):
    """No `Exception`: Ray Tune takes those for its own."""


@contextmanager
def watched(lost_s: float = LOST_S) -> Iterator[Callable[[str], None]]:
    """Yield a function that begins to watch a cluster by the address of its head.

    Raises:
        ClusterError: the head has not answered for `lost_s`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    ended = threading.Event()
    before = signal.signal(signal.SIGUSR2, _raise_lost)

    def watch(head: str) -> None:
        threading.Thread(target=_watch, args=(head, lost_s, ended), name="ichsearch-cluster", daemon=True).start()

    try:
        yield watch
    except _LostError:
        raise ClusterError(
            f"the cluster was lost: its head has not answered for {lost_s:.0f} s; run the same command again"
        ) from None
    finally:
        ended.set()
        signal.signal(signal.SIGUSR2, before)


def _raise_lost(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    raise _LostError


def _watch(head: str, lost_s: float, ended: threading.Event) -> None:
    answered_s = time.monotonic()
    while not ended.wait(PROBE_S):
        if _answers(head):
            answered_s = time.monotonic()
        elif time.monotonic() - answered_s > lost_s:
            break
    else:
        return
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)  # wakes it from waiting, too
    if not ended.wait(GRACE_S):
        sys.stderr.write("ichsearch: the cluster was lost; run the same command again\n")
        sys.stderr.flush()
        os._exit(ClusterError.exit_code)


def _answers(head: str) -> bool:
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except OSError:
        return False
    return True

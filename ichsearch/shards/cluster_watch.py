"""A cluster that is lost ends its driver in order, with the documented exit code.

In: the address of the cluster's head (its GCS). Out: `ClusterError` in the main thread. Ray itself would wait for a
minute, print what it thinks, and exit with code 1.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

from ichsearch.errors import ClusterError
from ichsearch.hard_end import end_as_it_stands
from ichsearch.shards.address import CLUSTER_ID

PROBE_S: Final = 2.0
LOST_S: Final = 30.0
"""Half of what Ray waits for its head: one that is started anew meanwhile goes on."""
GRACE_S: Final = 8.0
"""Until the driver has written what it must; then it is ended as it stands: Ray waits for what never comes."""
SHUTDOWN_S: Final = 2.0


class _LostError(BaseException):
    """No `Exception`: Ray Tune takes those for its own."""


class ClusterWatch:
    """Watches one cluster, from `start` on."""

    def __init__(self, lost_s: float) -> None:
        self.lost_s, self.is_lost = lost_s, False
        self._ended, self._explained = threading.Event(), False

    def start(self, head: str) -> None:
        """Begin to watch the cluster whose head is at this address, host:port."""
        threading.Thread(target=self._watch, args=(head,), name="ichsearch-cluster", daemon=True).start()

    def close(self, shutdown: Callable[[], object]) -> None:
        """Leave the cluster by `shutdown`; of a lost one it may wait for ever, and then holds up nobody."""
        if not self.is_lost:
            shutdown()
            self._ended.set()
            return
        leaving = threading.Thread(target=shutdown, name="ichsearch-shutdown", daemon=True)
        leaving.start()
        leaving.join(timeout=SHUTDOWN_S)
        self._explained = True  # by the error that is on its way
        if not leaving.is_alive():
            self._ended.set()

    def _watch(self, head: str) -> None:
        answered_s = time.monotonic()
        while not self._ended.wait(PROBE_S):
            if _answers(head):
                answered_s = time.monotonic()
            elif time.monotonic() - answered_s > self.lost_s:
                break
        else:
            return
        self.is_lost = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)  # wakes it from waiting, too
        if not self._ended.wait(GRACE_S):
            reason = "the cluster was lost; run the same command again"
            end_as_it_stands(ClusterError.exit_code, reason, "" if self._explained else f"ichsearch: {reason}\n")


@contextmanager
def watched(lost_s: float = LOST_S) -> Iterator[ClusterWatch]:
    """Yield what watches a cluster once it is started, and must be closed.

    Raises:
        ClusterError: the head has not answered for `lost_s`.
    """
    watch = ClusterWatch(lost_s)
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    before = signal.signal(signal.SIGUSR2, _raise_lost)
    try:
        yield watch
    except _LostError:
        raise ClusterError(
            f"the cluster was lost: its head has not answered for {lost_s:.0f} s; run the same command again"
        ) from None
    finally:
        signal.signal(signal.SIGUSR2, before)


def _raise_lost(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    raise _LostError


def _answers(head: str) -> bool:
    """Whether it does, be it with a refusal; to accept connections is no answer: a frozen process seems to, too."""
    with init_grpc_channel(head, options=GLOBAL_GRPC_OPTIONS) as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True

"""The lease of a run folder: one driver at a time, on whichever host.

In: a run folder. Out: a lease that beats while its driver lives. On one host the kernel tells at once that a driver is
dead (flock); elsewhere its lease has lapsed when it has not beaten for a while by the newcomer's own clock.
"""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ichsearch.errors import AlreadyRunningError, DataError
from ichsearch.files import read_json, write_bytes

BEAT_S: Final = 4.0
LAPSE_S: Final = 20.0
"""Five beats: a driver on a busy machine or a slow disk may miss a few."""


class Lease:
    """This driver's hold on a run folder."""

    def __init__(self, path: Path, beat_s: float) -> None:
        self._path, self._beat_s, self._token = path, beat_s, uuid.uuid4().hex
        self._beats, self._lost, self._ended = 0, False, threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="ichsearch-lease", daemon=True)

    def check(self) -> None:
        """Raises `AlreadyRunningError` if another driver has taken the folder, while this one was thought dead."""
        if self._is_lost():
            raise AlreadyRunningError(
                f"another driver took {self._path.parent} while this one did not answer; it goes on there, so stop here"
            )

    def take(self) -> None:
        """Write the first beat, and go on beating."""
        self._write()
        self._thread.start()

    def release(self) -> None:
        """Stop beating; the folder is free at once.

        The lease stays in the folder, so that a driver that was thought dead finds out whenever it wakes.
        """
        self._ended.set()
        self._thread.join()
        if not self._is_lost():
            with suppress(OSError):  # it lapses, too
                self._write(released=True)

    def is_ours(self) -> bool:
        """Whether the folder's lease is this driver's; a damaged one was, as long as nobody has taken it."""
        found = read_lease(self._path) or {}
        return bool(found.get("token", self._token) == self._token)

    def _is_lost(self) -> bool:
        with suppress(OSError):  # a disk that is away says nothing
            self._lost = self._lost or not self.is_ours()
        return self._lost

    def _beat_on(self) -> None:
        while not self._ended.wait(self._beat_s) and not self._is_lost():
            with suppress(OSError):  # full or away: the next beat tries again
                self._write()

    def _write(self, *, released: bool = False) -> None:
        self._beats += 1
        holder = {"host": host_name(), "process": os.getpid(), "token": self._token}
        write_bytes(
            self._path, json.dumps({**holder, "beat": self._beats, "released": released}).encode(), durable=False
        )


def host_name() -> str:
    """This host, and which of its boots: after another one none of its processes live."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}:{boot.read_text().strip() if boot.is_file() else ''}"


def read_lease(path: Path) -> dict[str, Any] | None:
    """What a lease file says: nothing if it is damaged, as by a power failure; None if there is none."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def lease(root: Path, *, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> Iterator[Lease]:
    """Hold a run folder.

    Raises:
        AlreadyRunningError: another driver holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "run.lock").open("a+") as lock:
        path = root / "lease.json"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(root, read_lease(path)) from None
        contested = _wait_until_free(path, lapse_s)
        held = Lease(path, beat_s)
        held.take()
        try:
            if contested:  # another host may have waited just as long: whoever wrote last has it
                time.sleep(beat_s / 2)
                if not held.is_ours():
                    raise _held(root, read_lease(path))
            yield held
        finally:
            held.release()


def _wait_until_free(path: Path, lapse_s: float) -> bool:
    """Wait until the lease of another host has lapsed; whether there was one."""
    found = read_lease(path)
    # on this host the lock has shown that its driver is dead
    if found is None or found.get("released") or found.get("host") == host_name():
        return False
    until_s = time.monotonic() + lapse_s
    while time.monotonic() < until_s:
        time.sleep(min(1.0, lapse_s / 10))
        if (now := read_lease(path)) != found:
            if now is None or now.get("released"):
                return False
            raise _held(path.parent, now)
    return True


def _held(root: Path, found: dict[str, Any] | None) -> AlreadyRunningError:
    who = f"process {found.get('process')} on {str(found.get('host')).partition(':')[0]}" if found else "a process"
    return AlreadyRunningError(
        f"one driver at a time: {root} is already running ({who}); wait for it, or give another --out"
    )

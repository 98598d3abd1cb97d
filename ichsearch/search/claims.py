"""The lease of a run folder in a store that knows no conditional write: one driver at a time, by claims.

In: the location of a run. Out: the same as of `lease`. Why two drivers never both hold it, in a store in which what was
written is listed at once: a driver writes its claim, *asking*, lists the others, and withdraws if one that lives is
*held*; else it writes *held*, lists again, and has the lease when no living claim of a smaller token is asking (it
waits for that) or held (it withdraws), and none at all *drives* (it withdraws). Of two, whoever lists later in that
second round sees the other: if both are held, the larger token withdraws; had one of them got through before the other
asked, the first list told so. Who withdrew tries again after a random pause, and is refused once somebody drives. One
that dies at any point leaves a claim that does not beat: it counts for nothing after `lapse_s` by the newcomer's own
clock, at once where its process is known to be dead. One that only seemed dead may wake at any point: it finds its
claim removed, or another that drives, or at its next `check` another held of a later generation, and stops; for whoever
drives is of a later generation than all that it took for dead.
"""

import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NamedTuple

from ichsearch.errors import AlreadyRunningError, DataError, StorageError
from ichsearch.files import from_json
from ichsearch.locations import below
from ichsearch.search.lease import BEAT_S, LAPSE_S, host_name
from ichsearch.search.mirror import CLAIMS, is_dead, mirrors_folder
from ichsearch.storage import open_folder

LOOK_EVERY_S: Final = 0.5
GAP_S: Final = 5.0
"""Between two looks: after a longer one the store was away, and nobody could beat."""

Content = dict[str, Any]


class _Heard(NamedTuple):
    """The last beat of another driver, when it was new here, and whether it followed on another."""

    beat: int
    since_s: float
    goes_on: bool


class Claim:
    """This driver's claim on the run folder at `store`; `mirror` is the name of its mirror's folder on this node."""

    def __init__(self, store: str, mirror: str, *, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> None:
        self._store, self._folder, self._token = store, open_folder(below(store, CLAIMS)), uuid.uuid4().hex
        self._mirror, self._beat_s, self._lapse_s = mirror, beat_s, lapse_s
        self._claims = self._held = self._drives = self._lost = False
        self._generation = self._beats = 0
        self._heard: dict[str, _Heard] = {}
        self._looked_s = time.monotonic()
        self._writing, self._ended = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="ichsearch-claim", daemon=True)

    def check(self) -> None:
        """Raises `AlreadyRunningError` if another driver has taken the folder, while this one was thought dead."""
        if self._is_lost():
            raise AlreadyRunningError(
                f"another driver took {self._store} while this one did not answer; it goes on there, so stop here"
            )

    def take(self) -> None:
        """Claim the folder, and go on beating; see the module.

        Raises:
            AlreadyRunningError: another driver holds it, or has asked for it at the same time.
            StorageError: the store cannot be written.
        """
        self._thread.start()
        while (dead := self._try()) is None:
            self._withdraw()
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - so that two that met do not meet again
        self.check()
        self._generation += bool(dead)
        self._drives = True
        self._write()
        for token in dead:
            self._folder.remove(token)

    def _try(self) -> set[str] | None:
        """Ask, hold, look; the dead claims, or None if another driver asks as well and is before this one."""
        self._claims = True
        self._write()
        while held := self._held_by_others():
            for token, claim in held.items():
                if self._state(token, claim) == "living":
                    self._yield_to(claim)
                    return None
            time.sleep(LOOK_EVERY_S)
        self._held = True
        self._write()
        while True:
            others = self._listen()
            dead = {token for token, claim in others.items() if self._state(token, claim) == "silent"}
            living = [(token, others[token]) for token in others.keys() - dead]
            before = [claim for token, claim in living if token < self._token or claim.get("drives")]
            if not before:
                return dead
            if any(claim.get("held") for claim in before):
                return None
            time.sleep(LOOK_EVERY_S)

    def _held_by_others(self) -> dict[str, Content]:
        """The held claims that are not known to be dead; when there are none, a generation after all the dead ones."""
        others = self._listen()
        held = {token: claim for token, claim in others.items() if claim.get("held")}
        self._generation = 1 + max(map(_generation, held.values()), default=0)
        return {token: claim for token, claim in held.items() if self._state(token, claim) != "silent"}

    def _yield_to(self, claim: Content) -> None:
        """Go if another driver drives; if it only holds as yet, it may go itself."""
        if not claim.get("drives"):
            return
        who = f"process {claim.get('process')} on {str(claim.get('host')).partition(':')[0]}"
        raise AlreadyRunningError(
            f"one driver at a time: {self._store} is already running ({who}); wait for it, or give another --out"
        )

    def _withdraw(self) -> None:
        with self._writing:
            self._claims = self._held = False
            self._folder.remove(self._token)

    def release(self) -> None:
        """Stop beating; the folder is free at once."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=GAP_S)
        if self._thread.is_alive():  # the store is away, and may yet get its last beat
            return
        with suppress(OSError, StorageError):  # it lapses, too
            self._folder.remove(self._token)

    def is_ours(self) -> bool:
        """Whether no other driver has taken the folder since."""
        others = self._others()
        later = any(claim.get("held") and _generation(claim) > self._generation for claim in others.values())
        return not (self._held and later) and self._folder.exists(self._token)

    def _is_lost(self) -> bool:
        self._lost = self._lost or not self.is_ours()
        return self._lost

    def _beat_on(self) -> None:
        while not self._ended.wait(self._beat_s):
            with suppress(OSError, StorageError), self._writing:  # away: the next beat tries again
                if self._claims and self._is_lost():
                    return
                if self._claims:
                    self._write()

    def _write(self) -> None:
        with self._writing:
            self._beats += 1
            holder = {"host": host_name(), "process": os.getpid(), "mirror": self._mirror}
            state = {"held": self._held, "drives": self._drives, "generation": self._generation}
            state |= {"beat": self._beats}
            self._folder.write_bytes(self._token, json.dumps(holder | state).encode())

    def _others(self) -> dict[str, Content]:
        """All other claims by their tokens."""
        found: dict[str, Content] = {}
        for token in self._folder.names():
            if token != self._token:
                with suppress(FileNotFoundError):  # released a moment ago
                    found[token] = _read(self._folder.read_bytes(token))
        return found

    def _listen(self) -> dict[str, Content]:
        """All other claims, and whether they beat; what was not seen to be silent is not taken for it."""
        others, now_s = self._others(), time.monotonic()
        away, self._looked_s = now_s - self._looked_s > GAP_S, now_s
        for token, claim in others.items():
            beat, known = int(claim.get("beat", 0)), self._heard.get(token)
            if known is None or known.beat != beat:
                self._heard[token] = _Heard(beat, now_s, known is not None)
            elif away:
                self._heard[token] = known._replace(since_s=now_s)
        return others

    def _state(self, token: str, claim: Content) -> Literal["living", "silent", "unknown"]:
        root = mirrors_folder() / str(claim.get("mirror"))
        if root.is_dir():  # of this node: its lock tells
            return "silent" if is_dead(root) else "living"
        heard = self._heard[token]
        if time.monotonic() - heard.since_s >= self._lapse_s:
            return "silent"
        return "living" if heard.goes_on else "unknown"


def _read(content: bytes) -> Content:
    """What a claim says; nothing if a store has kept a torn one, which then lapses."""
    try:
        claim = from_json(content, CLAIMS)
    except DataError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _generation(claim: Content) -> int:
    return int(claim.get("generation", 0))


@contextmanager
def claimed(store: str, mirror: str, *, beat_s: float = BEAT_S, lapse_s: float = LAPSE_S) -> Iterator[Claim]:
    """Hold a run folder in a store.

    Raises:
        AlreadyRunningError: another driver holds it.
        StorageError: the store cannot be read or written.
    """
    held = Claim(store, mirror, beat_s=beat_s, lapse_s=lapse_s)
    try:
        held.take()
        yield held
    finally:
        held.release()

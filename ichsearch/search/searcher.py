"""Ray Tune's view of the book: asked for a trial when a slot of the cluster is free, told what became of it.

In: a `Book`. Out: configurations for Ray Tune; events for whoever watches.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ray.tune.search import Searcher

from ichsearch.errors import StorageError
from ichsearch.search.book import Book, Started
from ichsearch.search.resources import Node, Request, Requests, has_room, slots
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.watchdog import explain_hang, has_hung
from ichsearch.search.worker import AWAY, BUSY, CRASHED, DISK_FULL, NO_ROOM, TIMED_OUT
from ichsearch.train.trial import TrialResult, read_result

OnStart = Callable[[Started], None]
OnEnd = Callable[[Started, TrialResult | None, str], None]
OnWait = Callable[[Request], None]

NODES_EVERY_S: Final = 1.0
"""How often the cluster is looked at while it is full."""
LONG_WAIT_S: Final = 60.0
"""For a node that could hold a trial: a cluster that scales by itself may take as long."""
LOW_ON_MEMORY: Final = "running low on memory"
"""What Ray says when its memory monitor has killed a worker of a host that runs out."""
NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.]+")
"""A backbone's name may hold `hf_hub:` and slashes."""
LONGEST_NAME: Final = 40


def job_of(started: Started, request: Request) -> dict[str, Any]:
    """What Ray Tune hands to a worker for one trial."""
    record, config = started.record, started.config
    return {
        "trial": record.trial,
        "label": label_of(started),
        "config": config.model_dump(),
        "parent": record.parent,
        "threads": int(request["CPU"]),
    }


def label_of(started: Started) -> str:
    """A trial's name for Ray's dashboard and the process list: `resnet18-b32-4ep-0007`."""
    backbone = NO_NAME.sub("_", started.config.backbone)[:LONGEST_NAME]
    return f"{backbone}-b{started.config.batch_size}-{started.config.epochs}ep-{started.record.trial}"


class BookSearcher(Searcher):
    """Hands out the book's trials; keeps no state that the journal does not have.

    Once `disk_full` it hands out no more, and the trial that found out is not told: it goes on when there is room. What
    else goes wrong here is kept in `failure`, since Ray Tune would take it for a fault of the trial. It has `given_up`
    when the run's time is over and no node is left that could hold the trials that Ray Tune has: they may never begin.
    """

    def __init__(
        self,
        book: Book,
        folder: RunFolder,
        requests: Requests,
        nodes: Callable[[], Sequence[Node]],
        on_start: OnStart,
        on_end: OnEnd,
        on_wait: OnWait,
    ) -> None:
        super().__init__()
        self._book, self._folder, self._requests, self._nodes = book, folder, requests, nodes
        self._on_start, self._on_end, self._on_wait = on_start, on_end, on_wait
        self._running: dict[str, Started] = {}
        self._images_per_s: dict[str, float] = {}
        self._quiet_until_s = 0.0
        self._say_wait_at_s: float | None = None
        self.errors: dict[str, str] = {}
        self.disk_full = self.given_up = False
        self.failure: Exception | None = None

    @property
    def images_per_s(self) -> float:
        """Of all running trials together, by their last epochs."""
        return sum(self._images_per_s.values())

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A trial for a free slot; None when there is none, so that nothing is proposed before it can start.

        Ray Tune asks at each of its events; the book and the cluster are asked only when their answer can be another.
        """
        if time.monotonic() < self._quiet_until_s:
            return None
        nodes = self._nodes()
        if self._waits_in_vain(nodes):
            self.given_up = bool(self._running)
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation leaves it out
        if not has_room(nodes, self._taken(), self._requests.least):
            self._quiet_until_s = time.monotonic() + NODES_EVERY_S
            return None
        started = None if self.disk_full else self._book.next()
        if isinstance(started, Started):
            self._running[trial_id] = started
            self._on_start(started)
            return job_of(started, self._requests.of(started.config.backbone))
        if started is None and (self.disk_full or not self._running):
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation leaves it out
        self._quiet_until_s = math.inf if self._running else time.monotonic() + NODES_EVERY_S
        return None  # one that runs may yet be handed back, or make the book go on

    def _waits_in_vain(self, nodes: Sequence[Node]) -> bool:
        """Whether no node could hold any trial, and the run's time is over; a long wait is told once."""
        if any(slots(node, self._requests.least) for node in nodes):
            self._say_wait_at_s = None
            return False
        now_s = time.monotonic()
        if self._say_wait_at_s is None:
            self._say_wait_at_s = now_s + LONG_WAIT_S
        if now_s >= self._say_wait_at_s:
            self._say_wait_at_s = math.inf
            self._on_wait(self._requests.least)
        return self._book.is_out_of_time()

    def _taken(self) -> list[Request]:
        return [self._requests.of(started.config.backbone) for started in self._running.values()]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Results stand in the trial's folder; only its speed is of interest while it runs."""
        self._images_per_s[trial_id] = float(result.get("images_per_s") or 0.0)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the book, from the trial's own files, and from Ray only that a worker was lost."""
        started = self._running.pop(trial_id, None)
        self._images_per_s.pop(trial_id, None)
        self._quiet_until_s = 0.0
        if started is None:
            return
        try:
            self._tell(started, self.errors.pop(trial_id, "") if error else None, result or {})
        except OSError as problem:
            self.disk_full = problem.errno in DISK_FULL
            self.failure = None if self.disk_full else problem
        except Exception as problem:  # noqa: BLE001 - whatever it is, the run ends with it: see the class
            self.failure = problem

    def _tell(self, started: Started, error: str | None, result: dict[str, Any]) -> None:
        folder = self._folder.trial(started.record.trial)
        self._folder.refresh(folder)
        if (finished := read_result(folder)) is not None:
            self._book.tell_finished(started, finished)
            self._on_end(started, finished, "")
            return
        if has_hung(folder):
            explain_hang(folder)
            reason = TIMED_OUT
        elif error is not None:
            reason = "out_of_memory" if LOW_ON_MEMORY in error else CRASHED
        else:
            reason = str(result.get("reason") or CRASHED)
        if reason == NO_ROOM:
            self.disk_full = True
            return
        if reason == AWAY:
            raise StorageError(f"the store of {self._folder} did not answer a worker; run the same command again")
        if reason == BUSY:
            self._book.hand_back(started)
            return
        self._book.tell_failed(started, reason)
        self._on_end(started, None, reason)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles the searcher with its own state, which ichsearch never reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the source of truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

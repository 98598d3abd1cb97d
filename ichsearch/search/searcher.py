"""Ray Tune's view of the book: asked for a trial when a slot of the cluster is free, told what became of it.

In: a `Book`. Out: configurations for Ray Tune; events for whoever watches.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ray.tune.search import Searcher

from ichsearch.errors import StorageError
from ichsearch.files import write_text
from ichsearch.search.book import Book, Started
from ichsearch.search.nodes import Nodes
from ichsearch.search.resources import Node, Request, Requests, has_room, slots
from ichsearch.search.room import DISK_FULL, NO_ROOM, no_room
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.watchdog import explain_hang, has_hung
from ichsearch.search.worker import AWAY, BUSY, CRASHED, LEAVING, TIMED_OUT
from ichsearch.train.trial import TrialResult, read_result

NODES_EVERY_S: Final = 1.0
"""How often the cluster is looked at while it is full."""
LONG_WAIT_S: Final = 60.0
"""For a node that could hold a trial: a cluster that scales by itself may take as long."""
LOW_ON_MEMORY: Final = "running low on memory"
"""What Ray says when its memory monitor has killed a worker of a host that runs out."""
NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.]+")
"""A backbone's name may hold `hf_hub:` and slashes."""
LONGEST_NAME: Final = 40
NODE_LOST: Final = "node lost"
NODE_DIED: Final = "because its node has died"
"""What Ray says of a worker that it lost with its node, be it before the trial had begun there."""


@dataclass(frozen=True)
class Hearers:
    """Who hears of what happens to trials: they start, end, wait for a node, are run again, and avoid a node.

    `on_again` hears the reason, and Ray's id of the node where that was, if it is known.
    """

    on_start: Callable[[Started], None]
    on_end: Callable[[Started, TrialResult | None, str], None]
    on_wait: Callable[[Request], None]
    on_again: Callable[[Started, str, str | None], None]
    on_avoid: Callable[[str], None]


def job_of(
    started: Started, request: Request, avoid: Collection[str] = (), limit_s: float = math.inf
) -> dict[str, Any]:
    """What Ray Tune hands to a worker for one trial, which no node of `avoid` gets, and which ends at its limit."""
    record, config = started.record, started.config
    return {
        "trial": record.trial,
        "label": label_of(started),
        "config": config.model_dump(),
        "parent": record.parent,
        "threads": int(request["CPU"]),
        "avoid": sorted(avoid),
        "limit_s": limit_s,
    }


def label_of(started: Started) -> str:
    """A trial's name for Ray's dashboard and the process list: `resnet18-b32-4ep-0007`."""
    backbone = NO_NAME.sub("_", started.config.backbone)[:LONGEST_NAME]
    return f"{backbone}-b{started.config.batch_size}-{started.config.epochs}ep-{started.record.trial}"


def _reason_of(folder: Path, error: str | None, result: dict[str, Any]) -> str:
    """Why a trial has no score; `error` is Ray's account of a lost worker."""
    if has_hung(folder):
        explain_hang(folder)
        return TIMED_OUT
    if error is not None:
        return "out_of_memory" if LOW_ON_MEMORY in error else CRASHED
    return str(result.get("reason") or CRASHED)


def _explain_death(folder: Path, reason: str, node: str | None) -> None:
    """Say where it was that a process ended without a word of its own."""
    if not (folder / "error.txt").is_file():
        where = f" on node {node[:8]}" if node else ""
        write_text(folder / "error.txt", f"{reason}: the worker process ended{where}, and left no error\n")


class BookSearcher(Searcher):
    """Hands out the book's trials; keeps no state that the journal does not have.

    Once `disk_full` says of which it hands out no more; the trial that found out goes on when there is room. What
    else goes wrong here is kept in `failure`, since Ray Tune would take it for a fault of the trial. It has `given_up`
    when the run's time is over and no node is left that could hold the trials that Ray Tune has: they may never begin.

    A trial that crashed is tried again `max_retries` times, elsewhere if there is room. The book hands it out again,
    not Ray Tune, which could neither send it elsewhere nor tell a crash from the loss of a node.
    """

    def __init__(
        self, book: Book, folder: RunFolder, requests: Requests, nodes: Nodes, hearers: Hearers, max_retries: int
    ) -> None:
        super().__init__()
        self._book, self._folder, self._requests, self._nodes = book, folder, requests, nodes
        self._hear, self._max_retries = hearers, max_retries
        self._running: dict[str, Started] = {}
        self._places: dict[str, str] = {}
        self._avoid: dict[str, Collection[str]] = {}
        self._told: set[str] = set()
        self._crashes = Counter[str]()
        self._crashed: list[Started] = []
        self._crashed_on: dict[str, str] = {}
        self._images_per_s: dict[str, float] = {}
        self._quiet_until_s = 0.0
        self._say_wait_at_s: float | None = None
        self.errors: dict[str, str] = {}
        self.disk_full, self.given_up = "", False
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
        live = self._nodes.live()
        nodes = self._nodes.usable(live)
        if self._waits_in_vain(nodes):
            self.given_up = bool(self._running)
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation leaves it out
        if not self._has_room(nodes, self._requests.least):
            self._quiet_until_s = time.monotonic() + NODES_EVERY_S
            return None
        started = None if self.disk_full else self._next(nodes)
        if isinstance(started, Started):
            last = {self._crashed_on.get(started.record.trial, "")} & nodes.keys()
            avoid = self._nodes.shunned(live, nodes) | (last if self._has_room_elsewhere(started, nodes) else set())
            self._running[trial_id], self._avoid[trial_id] = started, avoid
            self._tell_start(started)
            return job_of(started, self._requests.of(started.config.backbone), avoid, self._book.limit_s(started))
        if started is None and (self.disk_full or not self._running):
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation leaves it out
        self._quiet_until_s = math.inf if self._running else time.monotonic() + NODES_EVERY_S
        return None  # one that runs may yet be handed back, or make the book go on

    def _tell_start(self, started: Started) -> None:
        """Once a trial: that one is run again is told otherwise."""
        if started.record.trial not in self._told:
            self._told.add(started.record.trial)
            self._hear.on_start(started)

    def _next(self, nodes: Mapping[str, Node]) -> Started | Literal["wait"] | None:
        """A trial that crashed once another node has room for it; else one of the book's."""
        elsewhere = (started for started in self._crashed if self._has_room_elsewhere(started, nodes))
        found = next(elsewhere, None) or self._book.next()
        if not isinstance(found, Started) and self._crashed:
            found = self._crashed[0]
        if found in self._crashed:
            self._crashed.remove(found)
        return found

    def _has_room_elsewhere(self, started: Started, nodes: Mapping[str, Node]) -> bool:
        """Whether a trial could start now on another node than that on which it crashed."""
        last = self._crashed_on.get(started.record.trial)
        others = {name: node for name, node in nodes.items() if name != last}
        return self._has_room(others, self._requests.of(started.config.backbone))

    def _could_run_elsewhere(self, started: Started, node: str | None) -> bool:
        """Whether another node of those to be used could hold a trial, if it were free."""
        usable = self._nodes.usable(self._nodes.live())
        request = self._requests.of(started.config.backbone)
        return any(slots(usable[name], request) for name in usable.keys() - {node})

    def _waits_in_vain(self, nodes: Mapping[str, Node]) -> bool:
        """Whether no node could hold any trial, and the run's time is over; a long wait is told once."""
        if any(slots(node, self._requests.least) for node in nodes.values()):
            self._say_wait_at_s = None
            return False
        now_s = time.monotonic()
        if self._say_wait_at_s is None:
            self._say_wait_at_s = now_s + LONG_WAIT_S
        if now_s >= self._say_wait_at_s:
            self._say_wait_at_s = math.inf
            self._hear.on_wait(self._requests.least)
        return self._book.is_out_of_time()

    def _has_room(self, nodes: Mapping[str, Node], request: Request) -> bool:
        """Whether nodes have room beside the trials that run there, or are not known to run elsewhere."""
        here = [started for name, started in self._running.items() if self._places.get(name, "") in {"", *nodes}]
        return has_room(nodes.values(), [self._requests.of(started.config.backbone) for started in here], request)

    def is_stuck(self) -> bool:
        """Whether all that run wait for nodes that have gone meanwhile, and must not run on those that are there."""
        if not self._running or self._places.keys() & self._running.keys():
            return False
        live = self._nodes.live()
        return all(self._must_wait(started, live, self._avoid[name]) for name, started in self._running.items())

    def _must_wait(self, started: Started, live: Mapping[str, Node], avoid: Collection[str]) -> bool:
        request = self._requests.of(started.config.backbone)
        could = {name for name, node in live.items() if slots(node, request)}
        return bool(could) and could <= set(avoid)

    def hand_back_all(self) -> None:
        """Give the book back what waits in vain: it hands that out anew."""
        for started in self._running.values():
            self._book.hand_back(started)
        self._running.clear()
        self._quiet_until_s = 0.0

    def on_place(self, trial_id: str, node: str | None) -> None:
        """Know on which node a trial begins."""
        if node:
            self._places[trial_id] = node

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Results stand in the trial's folder; only its speed is of interest while it runs."""
        self._images_per_s[trial_id] = float(result.get("images_per_s") or 0.0)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the book, from the trial's own files, and from Ray only that a worker was lost."""
        started, node = self._running.pop(trial_id, None), self._places.pop(trial_id, None)
        for kept in (self._avoid, self._images_per_s):
            kept.pop(trial_id, None)
        self._quiet_until_s = 0.0
        if started is None:
            return
        try:
            self._tell(started, node, self.errors.pop(trial_id, "") if error else None, result or {})
        except OSError as problem:
            if problem.errno in DISK_FULL:
                self.disk_full = no_room(self._folder)
            else:
                self.failure = problem
        except Exception as problem:  # noqa: BLE001 - whatever it is, the run ends with it: see the class
            self.failure = problem

    def _tell(self, started: Started, node: str | None, error: str | None, result: dict[str, Any]) -> None:
        folder = self._folder.trial(started.record.trial)
        self._folder.refresh(folder)
        if (finished := read_result(folder)) is not None:
            if node:
                self._nodes.finished(node)
            self._book.tell_finished(started, finished)
            self._hear.on_end(started, finished, "")
            return
        reason = _reason_of(folder, error, result)
        again = self._why_again(started, node, reason, error) if error is not None and reason != TIMED_OUT else ""
        if reason.startswith(NO_ROOM):
            self.disk_full = reason
        elif reason == AWAY:
            raise StorageError(f"the store of {self._folder} did not answer a worker; run the same command again")
        elif reason == BUSY:
            self._book.hand_back(started)
        elif reason == LEAVING or again:
            self._run_again(started, node, again or reason)
        else:
            if error is not None:
                _explain_death(folder, reason, node)
            self._book.tell_failed(started, reason)
            self._hear.on_end(started, None, reason)

    def _run_again(self, started: Started, node: str | None, reason: str) -> None:
        if node and (reason == LEAVING or (reason == NODE_LOST and node in self._nodes.live())):
            self._nodes.leaves(node)
        if reason not in (LEAVING, NODE_LOST) and self._could_run_elsewhere(started, node):
            self._crashed.append(started)
        else:
            self._book.hand_back(started)
        self._hear.on_again(started, reason, node)

    def _why_again(self, started: Started, node: str | None, reason: str, error: str) -> str:
        """Why a trial that a worker was lost with is run again; "" if that tells enough of its configuration.

        The loss of a node says nothing of it, and a crash on a node where all crash neither.
        """
        name = started.record.trial
        if NODE_DIED in error or (node and self._nodes.is_lost(node)):
            return NODE_LOST
        if node:
            self._crashed_on[name] = node
            if reason == CRASHED and self._nodes.crashed(node, str(sorted(started.record.parameters.items()))):
                self._hear.on_avoid(node)
            if self._nodes.is_avoided(node):
                return reason
        self._crashes[name] += 1
        return reason if self._crashes[name] <= self._max_retries else ""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles the searcher with its own state, which ichsearch never reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the source of truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

"""Ray Tune's view of the book: asked for a trial when a slot of the cluster is free, told what became of it.

In: a `Book`. Out: configurations for Ray Tune; events for whoever watches.
"""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from ichsearch.search.book import Book, Started
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.worker import NO_ROOM
from ichsearch.train.trial import TrialResult, read_result

OnStart = Callable[[Started], None]
OnEnd = Callable[[Started, TrialResult | None, str], None]


class BookSearcher(Searcher):
    """Hands out the book's trials; keeps no state that the journal does not have.

    Once `disk_full` it hands out no more, and the trial that found out is not told: it goes on when there is room.
    """

    def __init__(
        self, book: Book, folder: RunFolder, free_slots: Callable[[int], bool], on_start: OnStart, on_end: OnEnd
    ) -> None:
        super().__init__()
        self._book, self._folder, self._free_slots = book, folder, free_slots
        self._on_start, self._on_end = on_start, on_end
        self._running: dict[str, Started] = {}
        self.disk_full = False

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A trial for a free slot; None when there is none, so that nothing is proposed before it can start."""
        if not self._free_slots(len(self._running)):
            return None
        started = None if self.disk_full else self._book.next()
        if started is None:
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation leaves it out
        self._running[trial_id] = started
        self._on_start(started)
        return {"trial": started.record.trial, "config": started.config.model_dump()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Results stand in the trial's folder; nothing to do."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the book, from the trial's own files, and from Ray only that a worker was lost."""
        started = self._running.pop(trial_id)
        finished = read_result(self._folder.trial(started.record.trial))
        if finished is not None:
            self._book.tell_finished(started, finished)
            self._on_end(started, finished, "")
            return
        reason = "crashed" if error or not result else str(result.get("reason") or "crashed")
        if reason == NO_ROOM:
            self.disk_full = True
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

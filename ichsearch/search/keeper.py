"""Which trials keep their weights: the best of the run, and all that may yet be promoted; the others' go.

In: the history, the trials' folders. Out: files removed.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ichsearch.search.history import History
from ichsearch.search.promotion import due_promotions, promotable
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.sections import Keep
from ichsearch.train.lineage import STATE, WEIGHTS


class Keeper:
    """Removes what nothing will be made of, as the search goes on."""

    def __init__(self, folder: RunFolder, keep: Keep, rungs: Sequence[int], eta: int) -> None:
        self._folder, self._keep, self._rungs, self._eta = folder, keep, rungs, eta
        self._bytes: dict[str, int] = {}

    def sweep(self, history: History, left: float) -> None:
        """Remove the weights and states that are not worth their room, when `left` more trials may come."""
        finished = [entry.trial for entry in history.all_finished()]
        for trial in finished:
            if trial not in self._bytes:
                self._bytes[trial] = sum(path.stat().st_size for path in _files(self._folder.trial(trial)))
        best = finished[: self._keep.best]
        in_use = {entry.parent for entry in history.entries.values() if entry.state == "running" and entry.parent}
        hopeful = promotable(history, self._rungs, self._eta, left)
        for trial in set(finished) - {*best, *hopeful, *in_use}:
            self._remove(trial)
        if self._keep.disk_gb is not None:
            due = {entry.trial for entry in due_promotions(history, self._rungs, self._eta)}
            least_first = [*sorted(hopeful.keys() - set(best), key=lambda trial: -hopeful[trial]), *reversed(best)]
            fixed = {*best[:1], *due, *in_use}
            self._make_room([trial for trial in least_first if trial not in fixed], self._keep.disk_gb * 1e9)

    def _make_room(self, spare: list[str], most_bytes: float) -> None:
        """Bring what is kept below the cap, from the least promising on."""
        for trial in spare:
            if sum(self._bytes.values()) <= most_bytes:
                return
            self._remove(trial)

    def _remove(self, trial: str) -> None:
        if not self._bytes[trial]:
            return
        folder = self._folder.trial(trial)
        (folder / WEIGHTS).unlink(missing_ok=True)
        shutil.rmtree(folder / STATE, ignore_errors=True)
        self._bytes[trial] = 0


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / WEIGHTS, *(folder / STATE).rglob("*")) if path.is_file()]

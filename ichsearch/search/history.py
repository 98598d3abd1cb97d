"""What the search knows of its trials: a trial is one visit of a rung by a configuration.

In: trials as they start and end. Out: who stands where at each rung.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ichsearch.search.drawing import Configuration

State = Literal["running", "finished", "failed"]


@dataclass(frozen=True)
class Entry:
    """One trial. `loss` is its score turned so that lower is better; `configuration` is None outside the space."""

    trial: str
    epochs: int
    configuration: Configuration | None
    parent: str | None = None
    state: State = "running"
    loss: float | None = None
    point: int | None = None


@dataclass
class History:
    """All trials, in the order in which they started.

    `rungs` are those of the search as it is now, ascending. A trial of an earlier one that ended between two of them
    counts at the lower one; one that is shorter than all of them at none. Without `rungs` each length is one.
    """

    rungs: Sequence[int] = ()
    entries: dict[str, Entry] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)
    _places: dict[str, int] = field(init=False, default_factory=dict)
    _visitors: dict[int, dict[str, Entry]] = field(init=False, default_factory=lambda: defaultdict(dict))
    _finished: dict[int, list[Entry]] = field(init=False, default_factory=lambda: defaultdict(list))
    _all_finished: list[Entry] = field(init=False, default_factory=list)

    def add(self, entry: Entry) -> None:
        """Know a trial that runs."""
        self._places[entry.trial] = len(self.entries)
        self._keep(entry)
        if entry.parent is not None:
            self.promoted.add(entry.parent)

    def end(self, trial: str, loss: float | None) -> Entry:
        """Know how a trial ended; without a loss it failed."""
        ended = replace(self.entries[trial], state="failed" if loss is None else "finished", loss=loss)
        self._keep(ended)
        if loss is not None:
            insort(self._all_finished, ended, key=self._order)
            if (rung := self.rung_of(ended)) is not None:
                insort(self._finished[rung], ended, key=self._order)
        return ended

    def _keep(self, entry: Entry) -> None:
        self.entries[entry.trial] = entry
        if (rung := self.rung_of(entry)) is not None:
            self._visitors[rung][entry.trial] = entry

    def _order(self, entry: Entry) -> tuple[float, int]:
        return loss_of(entry), self._places[entry.trial]

    def count(self, state: State) -> int:
        """How many trials are in a state."""
        return sum(entry.state == state for entry in self.entries.values())

    def rung_of(self, entry: Entry) -> int | None:
        """The rung that a trial counts at; None at none, or outside the space."""
        if entry.configuration is None:
            return None
        if not self.rungs:
            return entry.epochs
        return max((rung for rung in self.rungs if rung <= entry.epochs), default=None)

    def visited(self) -> list[int]:
        """All rungs that trials of the space have visited, the highest first."""
        return sorted(self._visitors, reverse=True)

    def at(self, epochs: int) -> list[Entry]:
        """The trials of a rung that the space could have proposed, running ones included."""
        return list(self._visitors[epochs].values()) if epochs in self._visitors else []

    def finished(self, epochs: int) -> Sequence[Entry]:
        """The finished trials of a rung, the best first; equal ones in the order of their start."""
        return self._finished.get(epochs, ())

    def all_finished(self) -> Sequence[Entry]:
        """Every trial that has a loss, the best first, at whichever rung, of this space or an earlier one."""
        return self._all_finished

    def running(self, epochs: int) -> list[Entry]:
        """The trials of a rung that have not ended."""
        return [entry for entry in self.at(epochs) if entry.state == "running"]

    def failed(self) -> list[Entry]:
        """The trials of all rungs whose configuration could not be run."""
        return [entry for entry in self.entries.values() if entry.state == "failed" and entry.configuration]

    def roots(self) -> Iterator[Entry]:
        """The first trial of every configuration."""
        return (entry for entry in self.entries.values() if entry.parent is None)


def loss_of(entry: Entry) -> float:
    """The loss of a finished trial."""
    assert entry.loss is not None
    return entry.loss


def known(entry: Entry) -> Configuration:
    """The configuration of a trial that the space could have proposed."""
    assert entry.configuration is not None
    return entry.configuration

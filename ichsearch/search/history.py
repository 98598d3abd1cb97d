"""What the search knows of its trials: a trial is one visit of a rung by a configuration.

In: trials as they start and end. Out: who stands where at each rung.
"""

from collections.abc import Iterator
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
    """All trials, in the order in which they started."""

    entries: dict[str, Entry] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)

    def add(self, entry: Entry) -> None:
        """Know a trial."""
        self.entries[entry.trial] = entry
        if entry.parent is not None:
            self.promoted.add(entry.parent)

    def end(self, trial: str, loss: float | None) -> Entry:
        """Know how a trial ended; without a loss it failed."""
        state: State = "failed" if loss is None else "finished"
        self.entries[trial] = replace(self.entries[trial], state=state, loss=loss)
        return self.entries[trial]

    def count(self, state: State) -> int:
        """How many trials are in a state."""
        return sum(entry.state == state for entry in self.entries.values())

    def at(self, epochs: int) -> list[Entry]:
        """The trials of a rung that the space could have proposed, running ones included."""
        return [entry for entry in self.entries.values() if entry.epochs == epochs and entry.configuration]

    def finished(self, epochs: int) -> list[Entry]:
        """The finished trials of a rung, the best first; equal ones in the order of their start."""
        return sorted((entry for entry in self.at(epochs) if entry.loss is not None), key=loss_of)

    def all_finished(self) -> list[Entry]:
        """Every trial that has a loss, at whichever rung, of this space or an earlier one."""
        return [entry for entry in self.entries.values() if entry.loss is not None]

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

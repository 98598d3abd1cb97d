"""What runs next: a promotion, a new configuration, or nothing yet.

In: the history and what the budget has room for. Out: a decision; the same for the same history.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ichsearch.search.drawing import Configuration
from ichsearch.search.history import Entry, History
from ichsearch.search.promotion import climbs, due_promotion, leader, missing_steps, next_rung
from ichsearch.search.proposals import Proposal, Proposer


@dataclass(frozen=True)
class Promotion:
    """A trial goes on to the next rung."""

    parent: Entry
    epochs: int


Decision = Promotion | Proposal | Literal["wait", "no_room", "exhausted"]


class Room(Protocol):
    """What is left of a budget."""

    @property
    def trials(self) -> float:
        """How many trials may still start."""

    def has(self, configuration: Configuration, steps: Sequence[tuple[int, int]]) -> bool:
        """Whether trials of these epochs, before and after, fit into the time that is left."""


class Strategy:
    """Asynchronous promotion over rungs; with one rung, a plain search of full-length trials."""

    def __init__(self, history: History, proposer: Proposer, rungs: Sequence[int], eta: int) -> None:
        self._history, self._proposer, self._rungs, self._eta = history, proposer, tuple(rungs), eta

    def next(self, number: int, room: Room) -> Decision:
        """What trial `number` is: a promotion that is due, or else a new configuration.

        The last trials of a budget belong to the leader: a search must not end without a trial of full length.
        """
        if room.trials < 1:
            return "no_room"
        missing = missing_steps(self._history, self._rungs)
        if 0 < missing < len(self._rungs) and (room.trials <= missing or not self._room_to_explore(room)):
            return self._climb(room)
        parent = due_promotion(self._history, self._rungs, self._eta)
        if parent is not None and self._fits(parent, room):
            return self._promotion(parent)
        proposal = self._proposer.propose(number)
        if proposal is None:
            decision = self._climb(room) if missing else "exhausted"
            return "exhausted" if decision == "no_room" else decision
        return proposal if room.has(proposal.configuration, [(0, self._rungs[0])]) else "no_room"

    def _promotion(self, parent: Entry) -> Promotion:
        return Promotion(parent, next_rung(self._rungs, parent.epochs))

    def _climb(self, room: Room) -> Decision:
        best = leader(self._history, self._rungs)
        if best is None:
            return "wait" if self._history.count("running") else "no_room"
        return self._promotion(best) if self._fits(best, room) else "no_room"

    def _fits(self, parent: Entry, room: Room) -> bool:
        assert parent.configuration is not None, "only trials of the space are promoted"
        return room.has(parent.configuration, [(parent.epochs, next_rung(self._rungs, parent.epochs))])

    def _room_to_explore(self, room: Room) -> bool:
        """Whether a first rung fits in beside the leader's way to the top."""
        best = leader(self._history, self._rungs)
        if best is None or best.configuration is None:
            return True
        return room.has(best.configuration, [(0, self._rungs[0]), *climbs(self._rungs, best.epochs)])

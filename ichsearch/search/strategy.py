"""What runs next: a promotion, a new configuration, or nothing yet.

In: the history and what the budget has room for. Out: a decision; the same for the same history.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ichsearch.search.drawing import Configuration
from ichsearch.search.history import Entry, History, known
from ichsearch.search.promotion import climbs, due_promotions, leaders, missing_steps
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
        """What trial `number` is: one that the space asks for, or else a promotion that is due, or a new configuration.

        A search must not end without a trial of full length: the last of a budget belongs to the leader. And what is
        left when a new configuration could no longer climb to the top goes to the best of those that are there.
        """
        if room.trials < 1:
            return "no_room"
        missing = missing_steps(self._history, self._rungs)
        if 0 < missing < len(self._rungs) and (room.trials <= missing or not self._room_to_explore(room)):
            climbing = any(self._history.running(epochs) for epochs in self._rungs[-missing - 1 : -1])
            return "wait" if climbing else self._next_climb(room) or "no_room"
        listed = self._proposer.listed()
        if listed is not None and room.has(listed.configuration, [(0, self._rungs[0])]):
            return listed
        return self._due(room) or self._new(number, room)

    def _due(self, room: Room) -> Promotion | None:
        due = due_promotions(self._history, self._rungs, self._eta)
        if (promotion := self._first_that_fits(due, room)) is not None:
            return promotion
        return self._next_climb(room) if room.trials < len(self._rungs) else None

    def _new(self, number: int, room: Room) -> Decision:
        proposal = self._proposer.propose(number)
        if proposal is None:
            return self._next_climb(room) or "exhausted"
        way = [(0, self._rungs[0]), *climbs(self._rungs, self._rungs[0])]
        if not room.has(proposal.configuration, way) and (climb := self._next_climb(room)):
            return climb
        return proposal if room.has(proposal.configuration, way[:1]) else "no_room"

    def _next_climb(self, room: Room) -> Promotion | None:
        return self._first_that_fits(leaders(self._history, self._rungs), room)

    def _first_that_fits(self, parents: Iterable[Entry], room: Room) -> Promotion | None:
        """The best trial whose next rung the budget has room for: the best of all may be too dear."""
        for parent in parents:
            step = climbs(self._rungs, parent.epochs)[0]
            if room.has(known(parent), [step]):
                return Promotion(parent, step[1])
        return None

    def _room_to_explore(self, room: Room) -> bool:
        """Whether a first rung fits in beside some trial's way to the top."""
        ways = [(known(entry), climbs(self._rungs, entry.epochs)) for entry in leaders(self._history, self._rungs)]
        return not ways or any(room.has(configuration, [(0, self._rungs[0]), *way]) for configuration, way in ways)

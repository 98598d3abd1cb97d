"""ichsearch's own searcher on tables of learning curves: its history, proposer and strategy, without Ray or a journal.

In: a ledger and a seed. Out: what the ledger remembers. A trial's score is the best epoch of its chain, as `schedule:
whole` has it; a chain that has diverged failed.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

import numpy as np
from search_table import Contestant, Ledger

from ichsearch.search.drawing import Configuration, Drawn, Suggests
from ichsearch.search.history import Entry, History
from ichsearch.search.promotion import rungs_of
from ichsearch.search.proposals import Proposal, Proposer, Sampler
from ichsearch.search.strategy import Promotion, Strategy

ETA: Final = 4
RANDOM_SHARE: Final = 1 / 3
Child = Literal["continue", "restart"]


class Unlimited:
    """A budget that the ledger watches over, not the searcher."""

    trials = math.inf

    def has(self, configuration: Configuration, steps: Sequence[tuple[int, int]]) -> bool:  # noqa: ARG002
        """Always."""
        return True


def promote(ledger: Ledger, seed: int, *, sampler: Sampler = "tpe", child: Child = "continue") -> None:
    """The default strategy over rungs of 1, eta, eta² … epochs."""
    names = ledger.task.names

    def draw(trial: Suggests) -> Drawn:
        return {name: trial.suggest_float(name, 0.0, 1.0, step=None, log=False) for name in names}

    history = History()
    proposer = Proposer(draw, names, history, sampler=sampler, seed=seed, random_share=RANDOM_SHARE)
    rungs = rungs_of(ledger.task.epochs, ETA, 1)
    strategy = Strategy(history, proposer, rungs, ETA)
    while True:
        number = len(history.entries)
        decision = strategy.next(number, Unlimited())
        if isinstance(decision, Promotion):
            entry = Entry(str(number), decision.epochs, decision.parent.configuration, decision.parent.trial)
            trained = decision.parent.epochs if child == "continue" else 0
        else:
            assert isinstance(decision, Proposal), "one worker never waits, and the cube has no end"
            entry, trained = Entry(str(number), rungs[0], decision.configuration, point=decision.point), 0
        assert entry.configuration is not None, "all are of this space"
        history.add(entry)
        index = ledger.nearest(np.array([entry.configuration.drawn[name] for name in names]))
        losses = ledger.train(index, trained, entry.epochs)
        parent = history.entries[entry.parent].loss if entry.parent else None
        history.end(entry.trial, None if np.isnan(losses).any() else min(losses.min(), parent or math.inf))


OURS: Final[dict[str, Contestant]] = {
    "ichsearch": promote,
    "ichsearch, children restart": partial(promote, child="restart"),
    "ichsearch, sampler qmc": partial(promote, sampler="qmc"),
    "ichsearch, sampler random": partial(promote, sampler="random"),
}

"""Which trial goes on to the next rung: asynchronous successive halving by promotion.

In: the history, the rungs. Out: a trial to promote, or none. Source: Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from ichsearch.search.history import Entry, History


def rungs_of(epochs: int, eta: int, first: int) -> tuple[int, ...]:
    """The rungs of a search, in epochs, ascending: first, first · eta, … and the full length.

    One that is more than half of the full length is left out: it would cost nearly as much and tell little.
    """
    rungs = [min(first, epochs)]
    while 2 * (longer := rungs[-1] * eta) <= epochs:
        rungs.append(longer)
    return tuple(rungs) if rungs[-1] == epochs else (*rungs, epochs)


def due_promotions(history: History, rungs: Sequence[int], eta: int) -> Iterator[Entry]:
    """The trials among the best 1/eta of their rung that were not promoted yet: highest rung first, best first."""
    for epochs in reversed(rungs[:-1]):
        ended = sum(entry.state != "running" for entry in history.at(epochs))
        due = history.finished(epochs)[: ended // eta]
        yield from (entry for entry in due if entry.trial not in history.promoted)


def climbs(rungs: Sequence[int], epochs: int) -> list[tuple[int, int]]:
    """The steps from a trial of so many epochs to the top, as epochs before and after."""
    return list(pairwise([epochs, *(rung for rung in rungs if rung > epochs)]))


def leaders(history: History, rungs: Sequence[int]) -> Iterator[Entry]:
    """The finished trials below the top that were not promoted: highest rung first, best first."""
    for epochs in reversed(rungs[:-1]):
        yield from (entry for entry in history.finished(epochs) if entry.trial not in history.promoted)


def missing_steps(history: History, rungs: Sequence[int]) -> int:
    """How many promotions are missing until someone is at the top; 0 once a trial of full length runs or finished.

    A trial whose child failed climbs no more.
    """
    for missing, epochs in enumerate(reversed(rungs)):
        alive = (entry for entry in history.at(epochs) if entry.state != "failed")
        if any(missing == 0 or entry.trial not in history.promoted for entry in alive):
            return missing
    return len(rungs)


def promotable(history: History, rungs: Sequence[int], eta: int, left: float) -> dict[str, float]:
    """The trials that could yet be promoted if all that run, and `left` more, ended at their rung and were worse.

    Of each the share of its rung that did better. The best of those that were not promoted are among them: the last
    trials of a budget are theirs.
    """
    found: dict[str, float] = {}
    last = min(left, len(rungs) - 1)
    for epochs in rungs[:-1]:
        here = history.at(epochs)
        ended = sum(entry.state != "running" for entry in here)
        waiting = 0
        for place, entry in enumerate(history.finished(epochs)):
            if entry.trial not in history.promoted:
                if (place + 1) * eta <= len(here) + left or waiting < last:
                    found[entry.trial] = place / ended
                waiting += 1
    return found

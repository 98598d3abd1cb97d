"""Which trial goes on to the next rung: asynchronous successive halving by promotion.

In: the history, the rungs. Out: a trial to promote, or none. Source: Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2.
"""

import math
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
    """The trials that could yet be promoted if `left` more came; of each the share of its rung that did better."""
    found: dict[str, float] = {}
    for epochs in rungs[:-1]:
        here, finished = history.at(epochs), history.finished(epochs)
        ended = sum(entry.state != "running" for entry in here)
        gone_on = sum(entry.trial in history.promoted for entry in finished)
        more = _most_promotions(len(here), gone_on, eta, left, min(left, len(rungs) - 1))
        waiting = [(place, entry) for place, entry in enumerate(finished) if entry.trial not in history.promoted]
        for place, entry in waiting if more == math.inf else waiting[: int(more)]:
            found[entry.trial] = place / ended
    return found


def _most_promotions(here: int, gone_on: int, eta: int, left: float, last: float) -> float:
    """How many of a rung could be promoted with `left` trials, of which the `last` need no quota.

    The others are shared by promotions and by new trials of the rung, of which eta make room for one promotion. What
    the quota has room for now counts in any case: the run may be extended.
    """
    if left == math.inf:
        return left
    due = max(0, here // eta - gone_on)
    earned = (left - last + here - gone_on * eta) // (eta + 1)
    return max(due, last + min(left - last, max(due, earned)))

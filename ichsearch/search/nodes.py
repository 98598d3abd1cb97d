"""Which nodes of the live cluster trials are sent to: not to one that is about to go, or on which trials only crash.

In: the nodes that live, and what became of trials on each. Out: the nodes that may be used; those to keep away from.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from ichsearch.search.resources import Node, Request, slots

CRASHES: Final = 2
"""So many different configurations that crash on a node, while none finishes there, speak against the node."""
LEAVES_WITHIN_S: Final = 300.0
"""Clouds take a machine within two minutes of their notice; one that is still there later may be used again."""


class Nodes:
    """The nodes of a cluster as a run's trials know them; nothing is kept beyond the driver's life."""

    def __init__(
        self, look: Callable[[], Mapping[str, Node]], request: Request, is_lost: Callable[[str], bool]
    ) -> None:
        self._look, self._request, self.is_lost = look, request, is_lost
        self._crashed: dict[str, set[str]] = defaultdict(set)
        self._leaves_by_s: dict[str, float] = {}

    def live(self) -> Mapping[str, Node]:
        """The nodes that live and are not drained, by their ids."""
        return self._look()

    def usable(self, live: Mapping[str, Node]) -> Mapping[str, Node]:
        """The nodes to send trials to: those that are not avoided, unless no other one could hold a trial."""
        good = {name: node for name, node in live.items() if not self.is_avoided(name)}
        return good if any(slots(node, self._request) for node in good.values()) else live

    def shunned(self, live: Mapping[str, Node], usable: Mapping[str, Node]) -> set[str]:
        """The nodes that a trial must be kept from by name: those, too, that Ray empties, where workers still wait."""
        leaving = {name for name in self._leaves_by_s if self.is_avoided(name)}
        return (live.keys() | leaving) - usable.keys()

    def is_avoided(self, node: str) -> bool:
        """Whether trials should keep away from a node."""
        leaves = self._leaves_by_s.get(node, 0.0) > time.monotonic()
        return leaves or len(self._crashed.get(node, ())) >= CRASHES

    def leaves(self, node: str) -> None:
        """Know that a node was given notice, or has gone already though Ray does not know it yet."""
        self._leaves_by_s[node] = time.monotonic() + LEAVES_WITHIN_S

    def finished(self, node: str) -> None:
        """Know that a trial has finished on a node, which is good then."""
        self._crashed.pop(node, None)

    def crashed(self, node: str, configuration: str) -> bool:
        """Know that a configuration crashed on a node; whether that is why the node is avoided from now on.

        Where trials crash on every node the nodes are not to blame: then all is forgotten.
        """
        before = self.is_avoided(node)
        self._crashed[node].add(configuration)
        others = (name for name, held in self._look().items() if slots(held, self._request))
        if all(self.is_avoided(name) for name in others):
            self._crashed.clear()
        return self.is_avoided(node) and not before

"""Work that is wanted often and done now and then.

In: work, and wishes for it. Out: the work done, at most in a bounded share of the time.
"""

import time
from collections.abc import Callable
from typing import Final

LEAST_PAUSE_S: Final = 2.0
SHARE: Final = 0.05


class Throttled:
    """Does `work` when it is due, so that it takes at most `SHARE` of the time."""

    def __init__(self, work: Callable[[], None], *, least_pause_s: float = LEAST_PAUSE_S) -> None:
        self._work, self._least_pause_s = work, least_pause_s
        self._due, self._not_before_s = False, 0.0

    def ask(self) -> None:
        """Say that the work is due."""
        self._due = True

    def tick(self) -> None:
        """Do the work if it is due and the pause is over."""
        if self._due and time.monotonic() >= self._not_before_s:
            self.now()

    def now(self) -> None:
        """Do the work in any case."""
        started_s = time.monotonic()
        self._work()
        ended_s = time.monotonic()
        self._due = False
        self._not_before_s = ended_s + max(self._least_pause_s, (ended_s - started_s) / SHARE)

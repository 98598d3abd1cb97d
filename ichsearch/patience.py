"""Patience with a store that is away: what fails for that is tried again, after pauses that double.

In: a read or a write. Out: its result, or why the store is given up.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import pyarrow as pa

from ichsearch.errors import ConfigError, StorageError

PATIENCE: Final = "ICHSEARCH_STORE_PATIENCE_S"
PATIENCE_S: Final = 120.0
"""How long a store that is away is tried again, unless `ICHSEARCH_STORE_PATIENCE_S` says otherwise."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
AWAY: Final = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_(TIMEOUT|TIME_TOO)|"
    r"HTTP (status|response code) (429|5\d\d)|\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b|curlCode|"
    r"time(d )?out|connection|ServerBusy|InternalError",
    re.IGNORECASE,
)
"""What Arrow's file systems say of a store that may be back soon; it has no type for that."""

Result = TypeVar("Result")


def patiently(where: str, work: Callable[[], Result]) -> Result:
    """Do `work`, at the location `where`, again and again while the store is away.

    Pauses double, and each is shortened by chance.

    Raises:
        StorageError: it stayed away.
    """
    until_s, pause_s = time.monotonic() + patience_s(), FIRST_PAUSE_S
    while True:
        try:
            return work()
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError | PermissionError) or not _is_away(error, where):
                raise
            if time.monotonic() + pause_s > until_s:
                raise StorageError(
                    f"the store of {where} must answer, but has not for {patience_s():.0f} s ({error}); "
                    "run the same command again when it does"
                ) from error
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that workers do not come back all at once
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _is_away(error: Exception, where: str) -> bool:
    """Whether an error says that a store is away; the names of a place, which it repeats, say nothing."""
    names = "|".join(re.escape(name) for name in re.split(r"[/@]", where.partition("://")[2]) if name)
    return AWAY.search(re.sub(rf"(?<!\w)({names})(?!\w)", "", str(error))) is not None


def patience_s() -> float:
    """`ICHSEARCH_STORE_PATIENCE_S`, or its default."""
    text = os.environ.get(PATIENCE, str(PATIENCE_S))
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise ConfigError(f"{PATIENCE} must be a number of seconds, but is {text!r}; mend it")
    return float(text)


@contextmanager
def giving_up_after(seconds: float) -> Iterator[None]:
    """Another default within the block: what the environment says still holds."""
    if PATIENCE in os.environ:
        yield
        return
    os.environ[PATIENCE] = str(seconds)
    try:
        yield
    finally:
        del os.environ[PATIENCE]

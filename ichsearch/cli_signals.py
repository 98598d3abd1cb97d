"""How SIGINT and SIGTERM end a command: in order, once, and in bounded time.

In: signals. Out: `KeyboardInterrupt` or `Terminated` in the main thread; the end of the process should that hang.
"""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shlex import join
from types import FrameType
from typing import Final

from ichsearch.errors import Terminated, code_of, reason_of
from ichsearch.hard_end import end_as_it_stands

GRACE_S: Final = 8.0
"""Until a process that was told to end has written what it must and stopped Ray; then it is ended as it stands. All
files are whole or absent, and those of Ray's processes that belong to it end with it."""
SIGNALS: Final[dict[signal.Signals, type[KeyboardInterrupt]]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


class _Stop:
    """The signal that this process was told to end by."""

    interrupt: KeyboardInterrupt | None = None


_stop: Final = _Stop()


def meant_by(interrupt: KeyboardInterrupt) -> KeyboardInterrupt:
    """What the signal raised: whoever waits for Ray gets a plain `KeyboardInterrupt` instead."""
    return _stop.interrupt or interrupt


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at SIGINT and `Terminated` at SIGTERM; a second signal changes nothing.

    It would interrupt what the first one has begun: state being saved, Ray's processes being ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ray reads this when it is imported: its own handler would print a dump at SIGTERM, end with 134, and leave none.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    _stop.interrupt = None

    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    except BaseException as end:
        if _stop.interrupt is None:
            raise
        raise _stop.interrupt from end  # typer makes another of it, and what was cut short may raise what it likes
    finally:
        if _stop.interrupt is None:  # else the process is ending: until it has, no signal may disturb that
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_at_once() -> None:
    """End a process that a signal has ended, the last thing `atexit` does.

    Python would go over half a million objects several times; meanwhile nothing of ours runs that could end it in time.
    """
    if _stop.interrupt is not None:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code_of(_stop.interrupt))


def _on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as Python calls it
    if _stop.interrupt is None:
        _stop.interrupt = SIGNALS[signal.Signals(number)]()
        _end_in_time(_stop.interrupt)
        raise _stop.interrupt


def _end_in_time(interrupt: KeyboardInterrupt) -> None:
    """End this process with the signal's code when `GRACE_S` have passed, unless it has ended by then.

    Not a `threading.Thread`: to start one takes locks that the interrupted code may hold.
    """
    _thread.start_new_thread(_end_later, (interrupt,))


def _end_later(interrupt: KeyboardInterrupt) -> None:
    time.sleep(GRACE_S)
    command = join(["ichsearch", *sys.argv[1:]])
    line = f"ichsearch: ended as it stands after {GRACE_S:.0f} s of waiting. To go on:\n  {command}\n"
    end_as_it_stands(code_of(interrupt), reason_of(interrupt), line)

"""A process whose main thread hangs is ended as it stands, and says so first, if anybody listens.

In: an exit code, and why. Out: last words, and the end.
"""

import _thread
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

WORDS_S: Final = 1.0
"""What last words may take: a pipe may be full, and nobody read it."""
_speakers: Final[list[Callable[[int, str], object]]] = []


@contextmanager
def last_words(speak: Callable[[int, str], object]) -> Iterator[None]:
    """Have `speak(exit code, reason)` called should the process be ended as it stands while the block runs."""
    _speakers.append(speak)
    try:
        yield
    finally:
        _speakers.remove(speak)


def end_as_it_stands(code: int, reason: str, line: str) -> NoReturn:
    """End this process with `code`, after the last words and a line on stderr; whatever becomes of these.

    Not by a `threading.Thread`: to start one takes locks that the main thread may hold.
    """
    said = _thread.allocate_lock()
    said.acquire()

    def speak() -> None:
        try:
            with suppress(OSError):  # nobody listens, where a pipe is closed
                sys.stderr.write(line)
                sys.stderr.flush()
            for speaker in _speakers:
                speaker(code, reason)
        finally:
            said.release()

    try:
        _thread.start_new_thread(speak, ())
        said.acquire(timeout=WORDS_S)
    finally:
        os._exit(code)

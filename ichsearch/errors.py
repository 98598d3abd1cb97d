"""Errors that a user can mend, each with the exit code it ends the command with.

A message says the rule, the value and the remedy. Anything else that escapes is a fault of ichsearch (exit code 1).
"""

from typing import ClassVar, Final

INTERRUPTED: Final = 130
"""Exit code of a command that Ctrl+C has ended."""
TERMINATED: Final = 143
"""Exit code of a command that SIGTERM has ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever Ctrl+C ends, it ends in the same order."""


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that a signal has ended."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def reason_of(interrupt: KeyboardInterrupt) -> str:
    """Why a command ended that a signal has ended."""
    return "terminated" if isinstance(interrupt, Terminated) else "interrupted"


class IchsearchError(Exception):
    """Base of all errors with a documented exit code; `str(error)` is what the user reads."""

    exit_code: ClassVar[int] = 1


class DataError(IchsearchError):
    """DICOM files, labels or shards that cannot be used."""

    exit_code = 3


class ConfigError(IchsearchError):
    """A space, an option or a folder that contradicts what was asked for."""

    exit_code = 4


class NoTrialFinishedError(IchsearchError):
    """Every trial of a run failed."""

    exit_code = 5


class ClusterError(IchsearchError):
    """The Ray cluster cannot be reached, is none to work with, or went away."""

    exit_code = 6


class StorageError(IchsearchError):
    """A disk is full or a folder cannot be written."""

    exit_code = 7


class UnreadableError(StorageError, OSError):
    """A store answers, but cannot be read: no permission, or a key that it refuses."""


class AlreadyRunningError(IchsearchError):
    """Another driver holds the run folder, or another process that of a trial."""

    exit_code = 8

"""How a command ends that cannot do what it was asked for.

In: exceptions. Out: one message and the documented exit code; a traceback only with `ICHSEARCH_DEBUG`.
"""

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console

from ichsearch.errors import IchsearchError, StorageError, code_of, reason_of
from ichsearch.terminal import literal

UNUSABLE: Final = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG,
)  # fmt: skip


@contextmanager
def exit_codes(console: Console) -> Iterator[None]:
    """Turn whatever is raised within into a message on `console` and an exit code."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of ours still ends with a message and a code
        message, code = _explained(error)
    except KeyboardInterrupt as error:
        message, code = reason_of(error), code_of(error)
    else:
        return
    _fail(console, message, code)


def _explained(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, IchsearchError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = error.filename or "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(error.filename)
            return (
                f"the disk is full (writing {where}{free}); make room and run the command again",
                StorageError.exit_code,
            )
        if error.errno in UNUSABLE:
            return f"{where} must be readable and writable, but: {error.strerror}; check it", StorageError.exit_code
    if os.environ.get("ICHSEARCH_DEBUG"):
        traceback.print_exception(error)
    message = f"internal error: {type(error).__name__}: {error} (ICHSEARCH_DEBUG=1 shows where)"
    return message, IchsearchError.exit_code


def _free_bytes(path: str | None) -> str:
    if path is None:
        return ""
    try:
        folder = next(parent for parent in Path(path).resolve().parents if parent.is_dir())
        return f", {shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        return ""


def _fail(console: Console, message: str, code: int) -> NoReturn:
    console.print(f"[bold red]ichsearch:[/] {literal(message)}")
    sys.exit(code)

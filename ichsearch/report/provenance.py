"""By which commands a run was made, and with what.

In: a command as it is started. Out: a line of `commands.jsonl` in the run folder; all of them, read back.
"""

import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from shlex import join
from typing import Any, Final

import torch

from ichsearch import __version__
from ichsearch.files import from_json, write_bytes
from ichsearch.search.events import Event
from ichsearch.search.run_folder import RunFolder

BEGINNINGS: Final = ("opened", "confirming")
LIBRARIES: Final = ("torch", "torchvision", "timm", "ray", "optuna", "numpy", "pandas", "scikit-learn", "pydicom")


def noting(tell: Callable[[Event], None], folder: RunFolder, command: Sequence[str]) -> Callable[[Event], None]:
    """`tell`, and once a run or a confirmation has begun its command is kept; one that is refused writes nothing."""
    due = [command]

    def told(event: Event) -> None:
        if event.kind in BEGINNINGS and due:
            note_command(folder, due.pop())
        tell(event)

    return told


def note_command(folder: RunFolder, command: Sequence[str]) -> None:
    """Keep that a command works on this run, since when, and in which environment."""
    known = folder.commands.read_bytes() if folder.commands.is_file() else b""
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "command": join(command), **environment()}
    write_bytes(folder.commands, known + json.dumps(entry).encode() + b"\n")


def read_commands(folder: RunFolder) -> list[dict[str, Any]]:
    """All commands of a run in their order."""
    lines = folder.commands.read_bytes().splitlines() if folder.commands.is_file() else []
    return [from_json(line, folder.commands.name) for line in lines]


def environment() -> dict[str, Any]:
    """Versions, and the machine that the command was given on."""
    return {
        "ichsearch": __version__,
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

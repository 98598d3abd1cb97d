"""What was found out about backbones, kept in this node's cache: a run with a hundred of them starts at once again.

In: questions about a backbone. Out: the answers of the same versions of timm and torch, or new ones.
"""

import contextlib
import json
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import timm
import torch
import torchvision

from ichsearch.shards.identity import cache_folder

Question = ParamSpec("Question")
Answer = TypeVar("Answer", str | None, int | None, bool)


def kept(find_out: Callable[Question, Answer]) -> Callable[Question, Answer]:
    """Ask once: an answer, a JSON value, depends on the arguments and the libraries' versions alone."""

    @wraps(find_out)
    def ask(*question: Question.args, **named: Question.kwargs) -> Answer:
        known, key = _known(_path()), json.dumps([find_out.__name__, question, named])
        if key not in known:
            known[key] = find_out(*question, **named)
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
                _append(_path(), key, known[key])
        answer: Answer = known[key]
        return answer

    return ask


def _path() -> Path:
    versions = "-".join(f"{library.__name__}{library.__version__}" for library in (timm, torch, torchvision))
    return cache_folder() / "backbones" / f"{versions}.jsonl"


@cache
def _known(path: Path) -> dict[str, Any]:
    """Answers of earlier processes; a line that a dying one left half-written is passed over."""
    known: dict[str, Any] = {}
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            key, answer = json.loads(line)
            known[key] = answer
    return known


def _append(path: Path, key: str, answer: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps([key, answer]) + "\n")

"""YAML 1.2 read with care: what could mislead, run code or fill the memory is refused with its place.

In: text of a file or an option. Out: its content, and the place of every key and item.
"""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ichsearch.errors import ConfigError
from ichsearch.search.rules import Location

MAX_FILE_BYTES: Final = 256 * 2**10
MAX_DEPTH: Final = 12
MAX_DIGITS: Final = 30
TAG: Final = "tag:yaml.org,2002:"


class Document(NamedTuple):
    """What a text says, and the line of each of its keys and items."""

    content: Any
    lines: dict[Location, int]


def read_file(path: Path) -> str:
    """The text of a space file.

    Raises:
        ConfigError: it is no file, too large, or no text.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is none"
        raise ConfigError(f"a space must be a file, but {path} {what}; give the path of a YAML file")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{path}: a space file has at most {MAX_FILE_BYTES:,} bytes, but this one has {size:,}; shorten it"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: a space file is UTF-8 text, but this is none; save it as UTF-8") from None


def parse(text: str, origin: str) -> Document:
    """The content of a text that comes from `origin`, which an error names.

    Raises:
        ConfigError: it is no YAML 1.2, or holds aliases, tags, directives, keys that are no text, a key twice, infinite
            or huge numbers, dates, or is nested deeply.
    """
    try:
        for problem in _dangerous(text):
            raise _refusal(origin, *problem)
        root = YAML(typ="rt", pure=True).compose(io.StringIO(text))
        if root is None:
            return Document(None, {})
        for problem in _misleading(root):
            raise _refusal(origin, *problem)
        return Document(YAML(typ="safe", pure=True).load(text), dict(_lines(root, ())))
    except YAMLError as error:
        raise _refusal(origin, *_explained(text, error)) from None


def _refusal(origin: str, line: int, message: str) -> ConfigError:
    return ConfigError(f"{origin}:{line}: {message}")


def _explained(text: str, error: YAMLError) -> tuple[int, str]:
    """Line and words of a parser's error."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        line, problem = error.problem_mark.line + 1, str(error.problem or error.context).removeprefix("but ")
    else:
        place = int(getattr(error, "position", 0))
        line, problem = text.count("\n", 0, place) + 1, str(error).partition("\n")[0]
    return line, f"the text must be YAML 1.2, but {problem}; correct it"


def _dangerous(text: str) -> Iterator[tuple[int, str]]:
    """What must not even be composed."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            yield line, f"a space file has no aliases, but *{event.anchor} is one; write it out"
        if isinstance(event, DocumentStartEvent) and (event.tags or event.version not in (None, (1, 2))):
            yield line, "a space file is YAML 1.2 without directives, but has one; remove the line that begins with %"
        if _is_tagged(event):
            yield line, f"a space file has no tags, but {event.tag} is one; remove it"
        if depth > MAX_DEPTH:
            yield line, f"a space file is nested at most {MAX_DEPTH} deep, but this is deeper; flatten it"


def _is_tagged(event: Event) -> bool:
    return getattr(event, "ctag", None) is not None and not (isinstance(event, ScalarEvent) and event.implicit[0])


def _misleading(node: Node) -> Iterator[tuple[int, str]]:
    """Keys and values that are not what they look like."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag != f"{TAG}str":
                shown = repr(key.value)[:40] if isinstance(key, ScalarNode) else "a list or a mapping"
                yield (
                    key.start_mark.line + 1,
                    f"a key must be text, but {shown} is none; put it in quotes or correct it",
                )
            yield from _misleading(value)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from _misleading(value)
    elif (problem := _odd_scalar(str(node.tag).removeprefix(TAG), str(node.value))) is not None:
        yield node.start_mark.line + 1, problem


def _odd_scalar(kind: str, text: str) -> str | None:
    """Why a scalar is refused; None if it is not."""
    shown = repr(text[:40])
    if kind == "float" and not _is_finite(text.lower()):
        return f"a number must be finite, but got {shown}; write one that is"
    if kind == "int" and len(text) > MAX_DIGITS:
        return f"a number has at most {MAX_DIGITS} digits, but {shown} … has {len(text)}; write a smaller one"
    if kind not in ("str", "int", "float", "bool", "null"):
        return f"a value must be a number, text, true or false, but {shown} is a {kind}; put it in quotes"
    if not text.isprintable():
        return f"text must be printable, but {shown} holds a control character or half of one; remove it"
    return None


def _is_finite(number: str) -> bool:
    return not number.endswith((".nan", ".inf")) and math.isfinite(float(number.replace("_", "")))


def _lines(node: Node, at: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))

"""Space files: found by path or by shipped name, read as YAML 1.2, refused with the line of what is wrong.

In: a YAML file. Out: a `Space`; and a `Space` written back as resolved, and compared with another.
"""

import difflib
import io
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from ichsearch.errors import ConfigError
from ichsearch.files import write_text
from ichsearch.search.domains import KINDS
from ichsearch.search.space import SEARCHED, Space, SpaceRuleError

MAX_FILE_BYTES: Final = 256 * 2**10
MAX_DEPTH: Final = 12
Location = tuple[str | int, ...]


def find_space(name: str) -> Path:
    """The space file: a path, or the name of a shipped one when the working folder has none of that name.

    Raises:
        ConfigError: neither exists; the shipped ones are named.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.name: path for path in _shipped_folder().glob("*.yaml")}
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped ones: {', '.join(sorted(shipped))}"
    raise ConfigError(f"--space must be a file or a shipped space, but {name} is neither; {hint}")


def _shipped_folder() -> Path:
    package = Path(str(files("ichsearch")))
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def load_space(path: Path, overrides: Mapping[str, Any] | None = None) -> Space:
    """Read and validate a space file; `overrides` replace its top-level values.

    Raises:
        ConfigError: with file, line, rule, value and remedy of everything that is wrong.
    """
    content, lines = _read(path)
    content |= overrides or {}
    try:
        return Space.model_validate(content)
    except SpaceRuleError as error:
        raise ConfigError(_at(path, lines, tuple(error.where), str(error))) from None
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_messages(path, lines, error)))) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[Location, int]]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"a space file has at most {MAX_FILE_BYTES} bytes, but {path} has {path.stat().st_size}")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_dangerous(path, text)
        content = YAML(typ="safe", pure=True).load(text)
        root = YAML(typ="rt", pure=True).compose(io.StringIO(text))
    except UnicodeDecodeError:
        raise ConfigError(f"a space file is UTF-8 text, but {path} is not") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem) if isinstance(error, MarkedYAMLError) else str(error).partition("\n")[0]
        raise ConfigError(f"{path}{line}: a space file must be YAML 1.2, but {problem}") from None
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(f"{path}: a space file maps names to values, but this one {what}")
    return content, dict(_lines(root, ()))


def _refuse_dangerous(path: Path, text: str) -> None:
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = event.start_mark.line + 1
        depth += {"MappingStartEvent": 1, "SequenceStartEvent": 1, "MappingEndEvent": -1, "SequenceEndEvent": -1}.get(
            type(event).__name__, 0
        )
        if isinstance(event, AliasEvent):
            raise ConfigError(f"{path}:{line}: a space file has no aliases, but *{event.anchor} is one; write it out")
        if getattr(event, "ctag", None) is not None and not (isinstance(event, ScalarEvent) and event.implicit[0]):
            raise ConfigError(f"{path}:{line}: a space file has no tags, but {event.tag} is one; remove it")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}:{line}: a space file is nested at most {MAX_DEPTH} deep; this is deeper")


def _lines(node: Node, at: Location) -> Iterator[tuple[Location, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*at, key.value), key.start_mark.line + 1
            yield from _lines(value, (*at, key.value))
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index))


def _messages(path: Path, lines: dict[Location, int], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, SpaceRuleError):
            yield _at(path, lines, tuple(cause.where), str(cause))
            continue
        where = _in_file(item["loc"])
        message = str(cause) if cause else f"{item['msg']}, but got {item['input']!r}"
        if item["type"] == "extra_forbidden":
            message = f"unknown key {where[-1]!r}{_nearest(str(where[-1]), where)}"
        elif item["type"] == "missing":
            message = f"{where[-1]} must be given, but is missing"
        yield _at(path, lines, where, message)


def _in_file(location: Location) -> Location:
    """A place in the model as a place in the file: `domain` and the kind behind it stand in the model only."""
    parts: list[str | int] = []
    previous: str | int = ""
    for part in location:
        if part != "domain" and not (previous == "domain" and part in KINDS):
            parts.append("if" if part == "condition" else part)
        previous = part
    return tuple(parts)


def _nearest(key: str, where: Location) -> str:
    known = _known_keys(where)
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _known_keys(where: Location) -> list[str]:
    if where[0] == "parameters":
        return list(SEARCHED) if len(where) == 2 else [*KINDS, "log", "step", "when", "if"]
    if len(where) == 1:
        return list(Space.model_fields)
    section = Space.model_fields[str(where[0])].annotation
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _at(path: Path, lines: dict[Location, int], where: Location, message: str) -> str:
    for length in range(len(where), 0, -1):
        if where[:length] in lines:
            return f"{path}:{lines[where[:length]]}: {'.'.join(map(str, where))}: {message}"
    return f"{path}: {'.'.join(map(str, where))}: {message}" if where else f"{path}: {message}"


def resolved(space: Space) -> dict[str, Any]:
    """The space as a space file that says everything, defaults included."""
    content = space.model_dump(by_alias=True, exclude={"parameters"}, mode="json")
    return content | {"parameters": {name: _written(item.model_dump(by_alias=True, mode="json"))
                                     for name, item in space.parameters.items()}}  # fmt: skip


def _written(parameter: dict[str, Any]) -> Any:
    domain = {key: value for key, value in parameter["domain"].items() if value not in (None, False)}
    if "factor" in domain:
        del domain["log"]
    cases = [{"if": case["condition"], **_as_mapping(_written({"domain": case["domain"], "when": []}))}
             for case in parameter["when"]]  # fmt: skip
    if set(domain) == {"value"} and not cases:
        return domain["value"]
    return domain | ({"when": cases} if cases else {})


def _as_mapping(written: Any) -> dict[str, Any]:
    return written if isinstance(written, dict) else {"value": written}


def save_space(space: Space, path: Path) -> None:
    """Write the space as resolved."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment,unused-ignore]
    text = io.StringIO()
    yaml.dump(resolved(space), text)
    write_text(path, text.getvalue())


def differences(old: Space, new: Space) -> list[str]:
    """What differs, a line a value: `epochs: 6 in the run, 8 asked for`."""
    return list(_differences(resolved(old), resolved(new), ""))


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield f"{where}: {old} in the run, {new} asked for"

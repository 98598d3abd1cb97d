"""Space files: found by path or by shipped name, read as YAML 1.2, refused with the line of what is wrong.

In: a YAML file, and options that replace its values. Out: a `Space`.
"""

import difflib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from ichsearch.errors import ConfigError
from ichsearch.search.backbone_choice import settled
from ichsearch.search.domains import KINDS
from ichsearch.search.overrides import override
from ichsearch.search.parameters import SEARCHED
from ichsearch.search.rules import Location, SpaceRuleError, nearest
from ichsearch.search.space import KEYS, Space
from ichsearch.search.yaml_text import parse, read_file

BOUNDS: Final = {
    "greater_than": "raise it",
    "greater_than_equal": "raise it",
    "less_than": "lower it",
    "less_than_equal": "lower it",
}
REMEDIES: Final = BOUNDS | {
    "bool_type": "write true or false, without quotes",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number, without quotes",
    "string_type": "put it in quotes",
    "string_pattern_mismatch": "use letters, digits, dots, hyphens and underscores",
    "dict_type": "write keys and values below it",
    "model_type": "write keys and values below it",
    "list_type": "write a list: [..., ...]",
    "tuple_type": "write a list of two: [low, high]",
    "too_long": "write two values: [low, high]",
    "too_short": "write at least one",
}

SHORT_FORM: Final = 0.45
"""How alike a value and the one that was meant may be at least: `auc` means `auroc_any`."""


def find_space(name: str) -> Path:
    """The space file: a path, or the name of a shipped one when the working folder has none of that name.

    Raises:
        ConfigError: neither exists; the shipped ones are named.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.name: path for path in shipped_folder().glob("*.yaml")}
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped ones: {', '.join(sorted(shipped))}"
    what = "is a folder" if Path(name).is_dir() else "is neither"
    raise ConfigError(f"a space must be a file or a shipped space, but {name} {what}; {hint}")


def shipped_folder() -> Path:
    """The folder of the shipped spaces, in an installation or a clone."""
    package = Path(str(files("ichsearch")))
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def load_space(path: Path, options: Sequence[str] = (), *, may_leak: bool = True) -> Space:
    """Read and validate a space file; patterns of backbones become the names that the installed libraries have.

    Args:
        path: the file.
        options: `key=value`, which replace or add to what the file says: see `overrides`.
        may_leak: whether it may be split by slice, as some runs of a paper file are; not what a person asks for.

    Raises:
        ConfigError: with file and line, or option, and rule, value and remedy of everything that is wrong.
    """
    content, at = read_content(path, options)
    space = space_of(content, at)
    if space.split == "slice" and not may_leak:
        raise ConfigError(
            at.told(
                ("split",),
                "a search is judged on patients that it has not seen, but slice puts slices of one patient on both "
                "sides; say patient (only a run of a paper file may leak: `leaky: true`)",
            )
        )
    return space


def read_content(path: Path, options: Sequence[str] = ()) -> tuple[dict[str, Any], "Places"]:
    """The content of a space file or a paper file, and where each of its keys stands; errors as of `load_space`."""
    document = parse(read_file(path), str(path))
    content = document.content
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(f"{path}:1: a space file maps names to values, but this one {what}; begin with `name: ...`")
    places = {where: f"{path}:{line}" for where, line in document.lines.items()}
    override(content, places, options)
    return content, Places(str(path), places)


def space_of(content: dict[str, Any], at: "Places") -> Space:
    """The space that a content says; errors as of `load_space`."""
    try:
        return settled(content)
    except SpaceRuleError as error:
        raise ConfigError(at.told(error.where, str(error))) from None
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(_messages(at, content, error)))) from None


class Places:
    """Where each key and item of a space file stands: in a line, or in an option."""

    def __init__(self, file: str, places: dict[Location, str]) -> None:
        self._file, self._places = file, places

    def within(self, *parts: Location) -> "Places":
        """Of the content that lies below these places, the later ones over the earlier."""
        moved = {
            where[len(part) :]: place
            for part in parts
            for where, place in self._places.items()
            if where[: len(part)] == part
        }
        return Places(self._file, moved)

    def told(self, where: Location, message: str) -> str:
        """A message with its place, which is that of the nearest key above that stands anywhere."""
        above = (where[:length] for length in range(len(where), 0, -1))
        place = next((self._places[key] for key in above if key in self._places), self._file)
        return f"{place}: {'.'.join(map(str, where))}: {message}" if where else f"{place}: {message}"


def _messages(at: Places, content: dict[str, Any], error: ValidationError) -> Iterator[str]:
    """A line for each wrong value, however many of its possible types it is not."""
    told: dict[Location, list[Any]] = {}
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, SpaceRuleError):
            yield at.told(cause.where, str(cause))
        else:
            told.setdefault(_in_file(item["loc"], content), []).append(item)
    for where, items in told.items():
        yield at.told(where, _message(where, items))


def _message(where: Location, items: list[Any]) -> str:
    """Rule, value and remedy."""
    first = items[0]
    value = first["input"]
    if first["type"] == "extra_forbidden":
        return f"unknown key {where[-1]!r}; {_key_hint(where)}"
    if first["type"] == "missing":
        return f"{where[-1]} must be given, but is missing; add it"
    if cause := first.get("ctx", {}).get("error"):
        return str(cause)
    rule = " or ".join(dict.fromkeys(item["msg"].replace("Input should be", "must be", 1) for item in items))
    rule = rule.replace(" or must be ", " or ")
    return f"{rule}, but got {_shown(value)}; {_remedy(items, value)}"


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _remedy(items: list[Any], value: Any) -> str:
    if value is None:
        return "give a value, or remove the key"
    if items[0]["type"] == "domain" and isinstance(value, dict):
        return next((nearest(key, KINDS) for key in value if difflib.get_close_matches(str(key), KINDS)), "correct it")
    literal = next((item for item in items if item["type"] == "literal_error"), None)
    if literal is not None and len(items) == 1:
        known = [word.strip("' ") for word in literal["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=SHORT_FORM)
        return f"did you mean {near[0]}?" if near else "choose one of them"
    return REMEDIES.get(items[0]["type"], "correct it")


def _in_file(location: Location, content: Any) -> Location:
    """A place in the model as a place in the file, which has no names of types, nor `domain` and the kind behind it."""
    parts: list[str | int] = []
    previous: str | int = ""
    for part in location:
        is_kind = part == "domain" or (previous == "domain" and part in KINDS)
        previous = part
        if is_kind:
            continue
        parts.append("if" if part == "condition" else part)
        if isinstance(content, dict):
            content = content.get(parts[-1])
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            parts.pop()
            break
    return tuple(parts)


def _key_hint(where: Location) -> str:
    key, known = str(where[-1]), _known_keys(where)
    if len(where) == 1 and key in SEARCHED:
        return "it belongs below `parameters`, not beside it"
    return nearest(key, known)


def _known_keys(where: Location) -> list[str]:
    if where[0] == "parameters":
        return [*KINDS, "log", "step", "when", "if"]
    if len(where) == 1:
        return KEYS
    kind = Space.model_fields[str(where[0])].annotation
    sections = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
    return [key for section in sections for key in section.model_fields]

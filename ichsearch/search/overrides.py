"""Options `-o key=value`: values of a space file given on the command line instead.

In: dotted keys with values in YAML. Out: the file's content, changed, and where its values come from.
"""

from collections.abc import Sequence
from typing import Any

from ichsearch.errors import ConfigError
from ichsearch.search.rules import Location
from ichsearch.search.yaml_text import parse

MAX_OPTION_CHARACTERS = 4096


def override(content: dict[str, Any], places: dict[Location, str], options: Sequence[str]) -> None:
    """Change `content` as `options` say, the last of one key winning; errors then name the option as the place.

    Args:
        content: of a space file; `parameters.size` is its key `size` below `parameters`.
        places: where each key stands, for errors.
        options: each `key=value`.

    Raises:
        ConfigError: an option is not of that form, or its value is no YAML.
    """
    for option in options:
        shown = f"-o {option[:60]}"
        key, equals, text = option.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path) or len(option) > MAX_OPTION_CHARACTERS:
            raise ConfigError(f"{shown}: an option must be key=value, such as -o epochs=4 or -o parameters.size=64")
        value = parse(text, shown).content
        _set(content, path, value, shown)
        for stale in [place for place in places if place[: len(path)] == path]:
            del places[stale]
        places[path] = shown


def _set(content: dict[str, Any], path: tuple[str, ...], value: Any, shown: str) -> None:
    for depth, key in enumerate(path[:-1], start=1):
        below = content.setdefault(key, {})
        if not isinstance(below, dict):
            whole = ".".join(path[:depth])
            raise ConfigError(
                f"{shown}: {whole} must have keys to set one of them, but is {str(below)[:60]}; give it as a whole: "
                f"-o '{whole}={{{path[depth]}: ...}}'"
            )
        content = below
    content[path[-1]] = value

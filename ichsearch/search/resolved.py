"""A space written back as a file that says everything, and two spaces compared.

In: a `Space`. Out: the content of a space file without patterns or omissions; differences as text.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from ichsearch.files import write_text
from ichsearch.search.space import Space


def resolved(space: Space) -> dict[str, Any]:
    """The space as a space file that says everything, defaults included."""
    content = space.model_dump(by_alias=True, exclude={"parameters"}, mode="json")
    return content | {"parameters": {name: _written(item.model_dump(by_alias=True, mode="json"))
                                     for name, item in space.parameters.items()}}  # fmt: skip


def _written(parameter: dict[str, Any]) -> Any:
    domain = {key: value for key, value in parameter["domain"].items() if value not in (None, False) or key == "value"}
    cases = [{"if": case["condition"], **_as_mapping(_written({"domain": case["domain"], "when": []}))}
             for case in parameter["when"]]  # fmt: skip
    if set(domain) == {"value"} and not cases:
        return domain["value"]
    return domain | ({"when": cases} if cases else {})


def _as_mapping(written: Any) -> dict[str, Any]:
    return written if isinstance(written, dict) else {"value": written}


def as_text(space: Space) -> str:
    """The space as resolved, as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment,unused-ignore]
    text = io.StringIO()
    yaml.dump(resolved(space), text)
    return text.getvalue()


def save_space(space: Space, path: Path) -> None:
    """Write the space as resolved."""
    write_text(path, as_text(space))


class Difference(NamedTuple):
    """A value that two spaces do not share: its keys from the top of the file on, and what each says."""

    keys: tuple[str, ...]
    old: Any
    new: Any

    def __str__(self) -> str:
        """As in `epochs: 6 in the run, 8 asked for`."""
        return f"{'.'.join(self.keys)}: {self.old} in the run, {self.new} asked for"


def differences(old: Space, new: Space) -> list[Difference]:
    """What differs, value by value."""
    return list(_differences(resolved(old), resolved(new)))


def _differences(old: Any, new: Any, *keys: str) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), *keys, str(key))
    elif old != new:
        yield Difference(keys, old, new)

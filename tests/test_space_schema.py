"""The JSON Schema that editors check space files with, held against the grammar itself."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from spaces import FULL, SMALL, write_space
from wrong_spaces import WRONG

from ichsearch.errors import ConfigError
from ichsearch.files import to_json
from ichsearch.search.resolved import resolved
from ichsearch.search.schema import space_schema
from ichsearch.search.space_file import find_space, load_space, shipped_folder

VALIDATOR = jsonschema.Draft7Validator(space_schema())
SHIPPED = ("quickstart.yaml", "architectures.yaml", "paper.yaml")


def wrong(content: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(content)]


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(space_schema())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_pass_and_name_the_schema_beside_them(name: str) -> None:
    text = find_space(name).read_text()
    assert text.startswith("# yaml-language-server: $schema=space.schema.json\n")
    assert not wrong(parsed(text))


def test_the_schema_beside_the_shipped_spaces_is_this_one() -> None:
    assert (shipped_folder() / "space.schema.json").read_bytes() == to_json(space_schema())


@pytest.mark.parametrize("content", [SMALL, FULL])
def test_what_the_grammar_takes_passes_as_written_and_as_resolved(tmp_path: Path, content: str) -> None:
    assert not wrong(parsed(content))
    assert not wrong(resolved(load_space(write_space(tmp_path, content))))


def test_a_resolved_shipped_space_passes() -> None:
    assert not wrong(resolved(load_space(find_space("architectures.yaml"))))


SEEN = [
    "unknown key", "unknown key of a section", "unknown key of an optional section", "confirm nothing",
    "key below the parameters", "parameter beside the parameters",
    "unknown parameter", "unknown key of a domain", "wrong type", "number in quotes", "parameter in quotes",
    "truth for a number", "half an epoch", "yes for true", "below its minimum", "unknown metric", "text for a list",
    "null", "null parameter", "null in a choice", "missing parameter", "missing name", "neither constant nor domain",
    "misspelt domain", "code", "code for a section", "empty choice", "choice with a value twice", "range of three",
    "factor elsewhere", "factor out of bounds", "factor of text", "boolean for a parameter",
    "range where the LR finder needs values", "condition on an unknown parameter", "case without if",
    "case without domain", "removed without default", "removed without condition", "duration", "duration below zero",
    "eta", "neither number nor auto", "forbidden nothing", "forbidden unknown", "huge", "name with a path",
]  # fmt: skip
"""What compares two values, or values with installed libraries, `ichsearch validate` finds, not a schema."""


@pytest.mark.parametrize("case", SEEN)
def test_an_editor_sees_what_is_wrong(tmp_path: Path, case: str) -> None:
    old, new, *_ = WRONG[case]
    content = SMALL.replace(old, new, 1)
    assert wrong(parsed(content))
    with pytest.raises(ConfigError):
        load_space(write_space(tmp_path, content))

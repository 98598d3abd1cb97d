"""The JSON Schema of space and paper files as a person writes them, for editors that complete and check.

In: the models of the grammar. Out: a JSON Schema (draft 7, which yaml-language-server reads).
"""

from typing import Any, Final

from ichsearch.search.paper import DECIDED, RUNS_KEY, SHARED_KEY, PaperEntry, PaperFile
from ichsearch.search.parameters import FACTORS, FINITE, REQUIRED, SEARCHED, TASK, default_of, value_type
from ichsearch.search.space import Space
from ichsearch.train.config import TrialConfig

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
SECTIONS: Final = ("Confirm", "Constraints", "Keep", "LrFinder", "PhantomCohort", "Promotion", "Resources")

PART: Final = "part"
"""Of a space: all of its keys that a paper file may say, none of them needed."""
RANGE: Final = ("log", "step")

Schema = dict[str, Any]


def space_schema() -> Schema:
    """The schema of a space file, or of a paper file, which has `runs`.

    What spans several keys (conditions, constraints) only `validate` can check.
    """
    whole = Space.model_json_schema(ref_template="#/definitions/{model}")
    sections = {name: whole["$defs"][name] for name in SECTIONS}
    sections["Constraints"]["properties"]["forbidden"]["items"] = _some(_one_or_several, SEARCHED)
    whole["properties"]["first_trials"]["items"] = _some(_value, SEARCHED)
    whole["properties"]["parameters"] = {
        "type": "object",
        "description": "What configurations are drawn from.",
        "properties": {name: _parameter(name) for name in SEARCHED},
        "additionalProperties": False,
    }
    properties = {key: _untitled(value) for key, value in whole["properties"].items()}
    part = {key: value for key, value in properties.items() if key not in DECIDED}
    return {
        "$schema": DRAFT,
        "title": "A space file of ichsearch",
        "if": {"required": [RUNS_KEY]},
        "then": _paper(),
        "else": {
            "type": "object",
            "properties": {key: _of_part(key) if key in part else value for key, value in properties.items()}
            | {"parameters": {"allOf": [_of_part("parameters"), {"required": list(REQUIRED)}]}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        },
        "definitions": {
            PART: {"type": "object", "properties": part, "additionalProperties": False},
            **{name: _untitled(section) for name, section in sections.items()},
            "condition": _some(_one_or_several, (*SEARCHED, TASK)),
            **{name: _untitled(value_type(name).json_schema()) for name in SEARCHED},
            **{f"{name} when": _cases(name) for name in SEARCHED},
            TASK: _untitled(whole["properties"][TASK]),
        },
    }


def _paper() -> Schema:
    """A paper file: parts of a space laid over one another."""
    file, entry = (_untitled(model.model_json_schema()) for model in (PaperFile, PaperEntry))
    entry["properties"]["space"] = file["properties"][SHARED_KEY] = {"$ref": f"#/definitions/{PART}"}
    file["properties"][RUNS_KEY] |= {"additionalProperties": entry}
    file["properties"][RUNS_KEY].pop("patternProperties", None)
    return {key: value for key, value in file.items() if key not in ("$defs", "description")}


def _of_part(key: str) -> Schema:
    return {"$ref": f"#/definitions/{PART}/properties/{key}"}


def _untitled(schema: Schema) -> Schema:
    """Without the titles that pydantic makes of names."""
    nested = {key: _untitled(value) if isinstance(value, dict) else value for key, value in schema.items()}
    return {key: value for key, value in nested.items() if key != "title" or isinstance(value, dict)}


def _value(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _one_or_several(name: str) -> Schema:
    return {"anyOf": [_value(name), _list_of(_value(name))]}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}


def _some(schema_of: Any, names: tuple[str, ...]) -> Schema:
    """A mapping of at least one of the names."""
    properties = {name: schema_of(name) for name in names}
    return {"type": "object", "properties": properties, "minProperties": 1, "additionalProperties": False}


def _parameter(name: str) -> Schema:
    when = {"$ref": f"#/definitions/{name} when"}
    mappings = [_mapping({**domain, "when": when}, optional=("when", *RANGE)) for domain in _domains(name)]
    schema: Schema = {"anyOf": [_value(name), *mappings]}
    if description := TrialConfig.model_fields[name].description:
        schema["description"] = description
    return schema if name in REQUIRED else schema | {"default": default_of(name)}


def _cases(name: str) -> Schema:
    """What may stand below `when`."""
    condition = {"if": {"$ref": "#/definitions/condition"}}
    removed: list[Schema] = [] if name in REQUIRED else [{"remove": {"const": True}}]
    cases = [_mapping(condition | domain, optional=RANGE) for domain in [*_domains(name), *removed]]
    return {"type": "array", "items": {"anyOf": cases}, "description": "The first case whose `if` holds counts."}


def _domains(name: str) -> list[Schema]:
    """The keys of each kind of domain that a parameter may have."""
    value = value_type(name).json_schema()
    domains: list[Schema] = [{"value": _value(name)}, {"choice": _list_of(_value(name))}]
    if name == "lr":
        number = {"type": "number", "minimum": FACTORS[0], "maximum": FACTORS[1]}
        factors = [number, _pair(number), _mapping({"choice": _list_of(number)})]
        domains.append({"factor": {"anyOf": factors, "description": "Times the LR finder's suggestion."}})
    if name in FINITE:
        return domains
    range_keys = {"log": {"type": "boolean"}, "step": {"type": "number", "exclusiveMinimum": 0}}
    if value.get("type") in ("integer", "number"):
        domains.append({"int": _pair({"type": "integer"}), **range_keys})
    if value.get("type") == "number":
        domains.append({"float": _pair({"type": "number"}), **range_keys})
    return domains


def _pair(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 2, "maxItems": 2, "description": "[low, high]"}


def _mapping(properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    required = [key for key in properties if key not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

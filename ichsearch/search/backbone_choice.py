"""Which backbones a space really has: patterns become names, and what cannot be trained or is too large goes.

In: the content of a space file. Out: a `Space` without patterns, and without the backbones that no trial can have.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from ichsearch.data.channels import CHANNELS, Channels
from ichsearch.errors import ConfigError
from ichsearch.model.backbones import check_backbone, fits
from ichsearch.model.blueprint import known_backbones
from ichsearch.model.heads import Head
from ichsearch.search.combinations import MOST_LISTED, combinations
from ichsearch.search.domains import as_list
from ichsearch.search.parameters import FINITE
from ichsearch.search.rules import Location, SpaceRuleError
from ichsearch.search.space import Space

MOST_OF_A_PATTERN: Final = 100
"""Backbones that one pattern may stand for: the LR finder runs for each."""
MOST_LOOKED_AT: Final = 300
"""Matches of a pattern that are worth the seconds it takes to look at them."""
WILD: Final = frozenset("*?[")
BACKBONE: Final[Location] = ("parameters", "backbone")

Renaming = Callable[[Any], list[Any]]
"""What stands in the place of one value: several, or none."""


class _Input(NamedTuple):
    """What a backbone must see, and which head it must bear."""

    size: int
    channels: int
    head: Head


def settled(content: dict[str, Any]) -> Space:
    """The space of a file's content.

    Raises:
        pydantic.ValidationError: the content breaks a rule of the grammar.
        SpaceRuleError: a pattern matches nothing or too much, a backbone cannot be trained, or none is left.
    """
    patterns: dict[str, list[str]] = {}
    content = _with_choices(content, lambda value: _matching(value, patterns))
    names = _choices(content)
    for name in names:
        if isinstance(name, str) and name not in known_backbones():
            _check(name, 224, 3, "linear")
    content = _with_conditions(content, lambda value: _among(value, names))
    space = Space.model_validate(content)
    left_out = _left_out(space, patterns)
    if left_out:
        _refuse_empty(space, left_out)
        content = _with_choices(content, lambda value: [] if value in left_out else [value])
        content = _with_conditions(content, lambda value: [] if value in left_out else [value])
        space = Space.model_validate(content)
    if space.strategy == "grid" and "trials" not in content:  # every combination once
        space = Space.model_validate(content | {"trials": len(space.grid())})
    kept = {pattern: [name for name in matches if name not in left_out] for pattern, matches in patterns.items()}
    return space.noted(kept, left_out)


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and not WILD.isdisjoint(value)


def _matching(value: Any, patterns: dict[str, list[str]]) -> list[Any]:
    """The names that a pattern of a choice stands for, noted in `patterns`; any other value as it is."""
    if not _is_pattern(value):
        return [value]
    tagged = "." in value  # names with a tag of weights are for who asks for them
    names = (name for name in known_backbones() if tagged or "." not in name)
    found = sorted(name for name in names if fnmatchcase(name, value))
    if not found:
        raise SpaceRuleError(
            BACKBONE, f"a pattern must match models of timm or torchvision, but {value!r} matches none; correct it"
        )
    if len(found) > MOST_LOOKED_AT:
        raise SpaceRuleError(BACKBONE, _too_many(value, len(found)))
    patterns[value] = found
    return list(found)


def _among(value: Any, names: Iterable[Any]) -> list[Any]:
    """The backbones of the space that a pattern of a condition stands for; itself where it matches none."""
    found = [name for name in names if isinstance(name, str) and _is_pattern(value) and fnmatchcase(name, value)]
    return found or [value]


def _with_choices(content: dict[str, Any], renaming: Renaming) -> dict[str, Any]:
    """The content with the values that backbone is drawn from replaced, each once."""
    content = deepcopy(content)
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or "backbone" not in parameters:
        return content
    backbone = parameters["backbone"]
    if isinstance(backbone, str):
        parameters["backbone"] = _renamed_domain({"value": backbone}, renaming)
    elif isinstance(backbone, dict):
        parameters["backbone"] = _renamed_domain(backbone, renaming)
        if isinstance(cases := backbone.get("when"), list):
            parameters["backbone"]["when"] = [
                _renamed_domain(case, renaming) if isinstance(case, dict) else case for case in cases
            ]
    return content


def _renamed_domain(domain: dict[str, Any], renaming: Renaming) -> dict[str, Any]:
    """A domain with its values replaced, those that patterns stand for once each."""
    values = domain.get("choice", [domain["value"]] if "value" in domain else None)
    if not isinstance(values, list) or (names := [name for value in values for name in renaming(value)]) == values:
        return dict(domain)
    once = [name for place, name in enumerate(names) if name not in names[:place]]
    return {"choice": once} | {key: item for key, item in domain.items() if key not in ("choice", "value")}


def _choices(content: dict[str, Any]) -> list[Any]:
    """All values that backbone may be drawn from."""
    found: list[Any] = []
    _with_choices(content, lambda value: found.append(value) or [value])  # type: ignore[func-returns-value]
    return found


def _with_conditions(content: dict[str, Any], renaming: Renaming) -> dict[str, Any]:
    """The content with the backbones of conditions and forbidden combinations replaced; what has none left goes."""
    content = deepcopy(content)
    parameters, constraints = content.get("parameters"), content.get("constraints")
    for parameter in parameters.values() if isinstance(parameters, dict) else ():
        if isinstance(parameter, dict) and isinstance(cases := parameter.get("when"), list):
            parameter["when"] = [
                case for case in cases if not isinstance(case, dict) or _meets(case.get("if"), renaming)
            ]
    if isinstance(constraints, dict) and isinstance(entries := constraints.get("forbidden"), list):
        constraints["forbidden"] = [entry for entry in entries if _meets(entry, renaming)]
    return content


def _meets(condition: Any, renaming: Renaming) -> bool:
    """Replace the backbones of a condition; whether any is left."""
    if not isinstance(condition, dict) or not (values := as_list(condition.get("backbone", []))):
        return True
    names = [name for value in values for name in renaming(value)]
    condition["backbone"] = names[0] if len(names) == 1 else names
    return bool(names)


def _left_out(space: Space, patterns: dict[str, list[str]]) -> dict[str, str]:
    """Backbones that no trial can have, and why; those that a pattern brought are allowed not to fit."""
    brought = {name: pattern for pattern, names in reversed(patterns.items()) for name in names}
    left_out: dict[str, str] = {}
    kept = dict.fromkeys(patterns, 0)
    for name in dict.fromkeys(space.values_of("backbone")):
        pattern = brought.get(name)
        if (why := _obstacle(space, name, brought=pattern is not None)) is not None:
            left_out[name] = why
        elif pattern is not None:
            kept[pattern] += 1
            if kept[pattern] > MOST_OF_A_PATTERN:
                raise SpaceRuleError(BACKBONE, _too_many(pattern, len(patterns[pattern])))
    for pattern, number in kept.items():
        if not number and (reasons := [left_out[name] for name in patterns[pattern] if name in left_out]):
            raise SpaceRuleError(
                BACKBONE,
                f"a pattern must match a backbone that can be trained, but none of the {len(patterns[pattern])} that "
                f"{pattern!r} matches can be ({reasons[0]}); correct it, or loosen constraints",
            )
    return left_out


def _too_many(pattern: str, matches: int) -> str:
    return (
        f"a pattern may stand for at most {MOST_OF_A_PATTERN} backbones that can be trained, but {pattern!r} matches "
        f"{matches}; narrow it, or set constraints.max_parameters"
    )


def _obstacle(space: Space, backbone: str, *, brought: bool) -> str | None:
    """Why no trial can have a backbone; None if one can.

    Raises:
        SpaceRuleError: a backbone that was not `brought` by a pattern cannot be trained on what the space proposes.
    """
    inputs, reasons = _inputs(space, backbone)
    for size, channels, head in inputs:
        if brought and not fits(backbone, size, channels=channels, head=head):
            return f"it cannot be trained on {channels} channels of {size} px with a {head} head"
        if not brought:
            _check(backbone, size, channels, head)
    return reasons[0] if reasons and not inputs else None


def _inputs(space: Space, backbone: str) -> tuple[list[_Input], list[str]]:
    """What the allowed configurations show a backbone; and why other configurations are forbidden."""
    names = {*FINITE, *(name for entry in space.constraints.forbidden for name in entry)}
    inputs: dict[_Input, None] = {}
    reasons: dict[str, None] = {}
    possible = combinations(space.parameters, names, space.task, given={"backbone": backbone})
    for drawn in islice(possible, MOST_LISTED):
        if (why := space.allows(drawn)) is not None:
            reasons[why] = None
        else:
            channels = CHANNELS[cast(Channels, drawn.get("channels", "windows"))]
            inputs[_Input(int(drawn["size"]), channels, cast(Head, drawn.get("head", "linear")))] = None
    return list(inputs), list(reasons)


def _check(backbone: str, size: int, channels: int, head: Head) -> None:
    try:
        check_backbone(backbone, size, channels=channels, head=head)
    except ConfigError as error:
        raise SpaceRuleError(BACKBONE, str(error)) from None


def _refuse_empty(space: Space, left_out: dict[str, str]) -> None:
    """Every domain that is met must have a backbone left."""
    for domain in space.parameters["backbone"].domains():
        names = [str(name) for name in domain.values()]
        if all(name in left_out for name in names):
            reasons = list(dict.fromkeys(left_out[name] for name in names))
            key = reasons[0].partition(" ")[0].rstrip(":")
            raise SpaceRuleError(
                ("constraints", key),
                f"constraints must leave a backbone, but of {', '.join(names)[:100]} none is left "
                f"({'; '.join(reasons)[:200]}); loosen them",
            )

"""Which combinations of values a space has: listed, counted, and held against its constraints.

In: parameters and constraints. Out: combinations as a trial would draw them.
"""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from math import prod
from typing import Any, Final, NamedTuple, cast

from ichsearch.data.channels import CHANNELS, Channels
from ichsearch.data.tasks import Task, task_labels
from ichsearch.model.backbones import parameter_count
from ichsearch.model.heads import Head
from ichsearch.search.domains import Scalar, as_list, same
from ichsearch.search.parameters import EFFECTS, FINITE, TASK, Parameters, default_of, domain_for, draw_order
from ichsearch.search.sections import Constraints

MOST_LISTED: Final = 100_000
"""Combinations that are looked at, at most, for what can only be found by listing them."""


def combinations(
    parameters: Parameters, names: Collection[str], task: Task, given: Mapping[str, Scalar] | None = None
) -> Iterator[dict[str, Scalar]]:
    """Every combination of values of `names` and of what these depend on, once each, in the order of drawing.

    What is drawn from a continuous range, or does not count, is not in a combination. Only those are listed in which
    the parameters of `given` can have their values.
    """
    given = given or {}
    closure = _closure(parameters, {*names, *given})
    order = [name for name in draw_order(parameters) if name in closure]

    def extended(drawn: dict[str, Scalar], place: int) -> Iterator[dict[str, Scalar]]:
        if place == len(order):
            yield {name: value for name, value in drawn.items() if name != TASK}
            return
        name = order[place]
        found = domain_for(parameters, name, drawn)
        if name in given:
            if found is not None and found[0].contains(given[name]):
                yield from extended(drawn | {name: given[name]}, place + 1)
        elif found is None or found[0].count() is None:
            yield from extended(drawn, place + 1)
        else:
            for value in found[0].values():
                yield from extended(drawn | {name: value}, place + 1)

    return extended({TASK: task}, 0)


def _closure(parameters: Parameters, names: Collection[str]) -> set[str]:
    """The names, with all parameters that these depend on."""
    found: set[str] = set()
    missing = set(names) & set(parameters)
    while missing:
        found |= missing
        needed = {other for name in missing for case in parameters[name].when for other in case.condition}
        needed |= {EFFECTS[name].of for name in missing if name in EFFECTS}
        missing = (needed & set(parameters)) - found
    return found


def why_not(parameters: Parameters, constraints: Constraints, task: Task, drawn: Mapping[str, Scalar]) -> str | None:
    """Which constraint forbids what was drawn, in words; None if none does.

    `drawn` may be a combination of some parameters: then only what these decide is forbidden.
    """
    values = dict(drawn)
    for name in {name for entry in constraints.forbidden for name in entry} - set(drawn):
        if domain_for(parameters, name, {TASK: task, **drawn}) is None:
            values[name] = default_of(name)
    for entry in constraints.forbidden:
        if all(name in values and _is_one_of(values[name], wanted) for name, wanted in entry.items()):
            return "forbidden: " + ", ".join(f"{name} {values[name]}" for name in entry)
    return _too_large(constraints, task, values)


def _is_one_of(value: Scalar, wanted: Any) -> bool:
    return any(same(value, one) for one in as_list(wanted))


def _too_large(constraints: Constraints, task: Task, values: Mapping[str, Scalar]) -> str | None:
    if constraints.max_parameters is None or not {"backbone", "size", "channels", "head"} <= values.keys():
        return None
    count = parameter_count(
        str(values["backbone"]),
        int(values["size"]),
        CHANNELS[cast(Channels, values["channels"])],
        len(task_labels(task)),
        cast(Head, values["head"]),
    )
    if count is None or count <= constraints.max_parameters:
        return None
    return f"max_parameters {constraints.max_parameters:,}: {values['backbone']} has {count:,}"


def allowed(
    parameters: Parameters, constraints: Constraints, task: Task, names: Collection[str]
) -> Iterator[dict[str, Scalar]]:
    """The combinations of `names` that no constraint forbids."""
    for drawn in combinations(parameters, names, task):
        if why_not(parameters, constraints, task, drawn) is None:
            yield drawn


class Size(NamedTuple):
    """How many combinations a space has: of its finite parameters, if some are `continuous`."""

    combinations: int
    continuous: list[str]
    complete: bool


def size_of(parameters: Parameters, constraints: Constraints, task: Task) -> Size:
    """Count what a space allows; parameters on which nothing depends are multiplied, the others listed."""
    continuous = [name for name, parameter in parameters.items() if None in [d.count() for d in parameter.domains()]]
    tied = {name for entry in constraints.forbidden for name in entry}
    tied |= {name for name, parameter in parameters.items() if parameter.when}
    tied |= {name for name in EFFECTS if name in parameters}
    tied |= set(FINITE) if constraints.max_parameters is not None else set()
    tied = _closure(parameters, tied)
    free = [parameters[name].domain.count() or 1 for name in parameters if name not in tied]
    listed = sum(1 for _ in islice(allowed(parameters, constraints, task, tied), MOST_LISTED + 1))
    return Size(min(listed, MOST_LISTED) * prod(free), continuous, complete=listed <= MOST_LISTED)

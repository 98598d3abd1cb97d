"""How a broken rule of the grammar is told: where it stands in the space, what it says, which name was meant.

In: places and names. Out: errors and hints.
"""

import difflib
from collections.abc import Collection

Location = tuple[str | int, ...]
"""A key or an item of a space file: ("parameters", "size", "when", 0)."""


class SpaceRuleError(ValueError):
    """A rule that spans more than one field; `where` is the place of the offending key."""

    def __init__(self, where: Location, message: str) -> None:
        self.where = where
        super().__init__(message)


def nearest(name: str, known: Collection[str]) -> str:
    """A hint at the name that may have been meant, else at all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"

"""Durations as people write them: `90s`, `20m`, `8h`, `1d`, or a number of seconds.

In: a value of a space file or an option. Out: seconds; and these as a person reads them.
"""

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
PATTERN: Final = r"^[0-9]+(\.[0-9]+)?[smhd]$"
LONGEST_S: Final = 366.0 * UNITS_S["d"]


def seconds_of(value: Any) -> Any:
    """The seconds of a duration in text; whatever is no text stays as it is.

    Raises:
        ValueError: the text is no duration.
    """
    if not isinstance(value, str):
        return value
    if not re.match(PATTERN, value, re.ASCII):
        raise ValueError(
            f"a duration must be a number with s, m, h or d behind it, such as 90s or 8h, or a number of seconds, "
            f"but got {value[:40]!r}"
        )
    return float(value[:-1]) * UNITS_S[value[-1]]


_AS_WRITTEN: Final = {"anyOf": [{"type": "string", "pattern": PATTERN}, {"type": "number", "exclusiveMinimum": 0}]}
Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0, le=LONGEST_S), WithJsonSchema(_AS_WRITTEN)]
"""In seconds."""


def duration_text(seconds: float) -> str:
    """A duration as a person reads it: 0.4 s, 90 s, 2.5 min, 12 min, 3 h 5 min, 8 h, 2 d 4 h."""
    for unit, part in (("d", "h"), ("h", "m")):
        if seconds >= UNITS_S[unit]:
            whole, rest = divmod(round(seconds / UNITS_S[part]), UNITS_S[unit] // UNITS_S[part])
            return f"{whole} {unit}" + (f" {rest} {'min' if part == 'm' else part}" if rest else "")
    value, name = (seconds / UNITS_S["m"], "min") if seconds >= 2 * UNITS_S["m"] else (seconds, "s")
    return f"{value:.2g} {name}" if value < 10 else f"{value:.0f} {name}"

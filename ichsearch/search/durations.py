"""Durations as people write them: `90s`, `20m`, `8h`, `1d`, or a number of seconds.

In: a value of a space file or an option. Out: seconds.
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

"""Text from outside on a terminal: it can neither colour it, nor move its cursor, nor retitle its window.

In: any text. Out: what rich prints as that very text, control characters shown by their code.
"""

import re
from typing import Final

from rich.markup import escape

CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What moves, colours, or turns the direction of reading; not tab and line feed, which our own messages hold."""


def literal(text: str) -> str:
    """The text for rich to print as it is: nothing in it is markup or an escape sequence."""
    return escape(CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text))

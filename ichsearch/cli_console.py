"""Where the command line prints.

In: text. Out: lines on stdout and stderr.
"""

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print text as it is: nothing in it is markup."""
    out.print(escape(text))

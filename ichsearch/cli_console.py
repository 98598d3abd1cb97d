"""Where the command line prints.

In: text. Out: lines on stdout and stderr.
"""

from rich.console import Console

from ichsearch.terminal import literal

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print text as it is."""
    out.print(literal(text))

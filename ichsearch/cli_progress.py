"""Progress of long stages: a bar each on a terminal, a line each where the output goes to a file.

In: (stage, done, total). Out: bars or lines.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows how far each stage is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    said: dict[str, int] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            # Said again at the end when the total was not known at the start: the folder was still being listed.
            if not console.is_terminal and (stage not in said or done == total != said[stage]):
                console.print(f"{stage}: {total}")
                said[stage] = total
            shown.update(bars[stage], completed=done, total=total, visible=done < total)

        yield show

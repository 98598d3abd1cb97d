"""A run on the terminal: a line an event for a person, or a JSON object an event for a program.

In: events of a run. Out: lines; with `--json` objects on stdout (see `ichsearch.search.events`) and lines on stderr.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from typing import Final

from rich.console import Console

from ichsearch.cli_signals import meant_by
from ichsearch.errors import IchsearchError, code_of, reason_of
from ichsearch.hard_end import last_words
from ichsearch.search import events
from ichsearch.search.book import Standing
from ichsearch.search.durations import UNITS_S
from ichsearch.search.events import Event
from ichsearch.terminal import literal

OPTIONS: Final = {"trials": "--trials", "time": "--time", "device_hours": "--device-hours"}


class RunPrinter:
    """Prints the events of one run; the last one however it ends, once it has begun."""

    def __init__(self, out: Console, err: Console, command: Sequence[str], *, as_json: bool) -> None:
        self._out, self._err, self._command, self._as_json = out, err, list(command), as_json
        self._opened = False
        self._standing: Standing | None = None

    def say(self, text: str) -> None:
        """Text for a person."""
        (self._err if self._as_json else self._out).print(literal(text))

    def tell(self, event: Event) -> None:
        """Print an event."""
        self._opened = True
        self._standing = event.standing or self._standing
        if event.line:
            self.say(event.line)
        if self._as_json:
            self._out.file.write(f"{event.as_json()}\n")
            self._out.file.flush()

    @contextmanager
    def ending(self, leaderboard: str | Path, metric: str) -> Iterator[None]:
        """Say how a run ends that is interrupted or fails; nothing of one that was refused before it began."""

        def speak(code: int, reason: str) -> None:
            if self._opened:
                self.tell(events.done(leaderboard, metric, self._standing, "", code, reason))

        try:
            with last_words(speak):
                yield
        except KeyboardInterrupt as error:
            line = f"stopped; what is finished is kept. To go on:\n  {join(self._command)}"
            meant = meant_by(error)
            self.tell(events.done(leaderboard, metric, self._standing, line, code_of(meant), reason_of(meant)))
            raise
        except Exception as error:
            speak(error.exit_code if isinstance(error, IchsearchError) else IchsearchError.exit_code, str(error))
            raise

    def close(self, leaderboard: str | Path, metric: str, standing: Standing) -> None:
        """Say that a run has ended by itself, and what may come next."""
        more = next_command(self._command, standing)
        self.tell(events.finished(leaderboard, metric, standing, more))


def next_command(command: Sequence[str], standing: Standing) -> str:
    """The command that goes on with a run, with twice as much of what it has used up."""
    more = {
        "trials": f"{2 * standing.trials}",
        "time": f"{2 * max(standing.time_s or 0.0, standing.spent_s):.0f}s",
        "device_hours": f"{2 * max(standing.device_limit_s or 0.0, standing.device_s) / UNITS_S['h']:.3g}",
    }
    short = [name for name in OPTIONS if name == standing.done or _is_nearly_spent(standing, name)]
    if standing.done not in OPTIONS:
        return f"{join(_without(command, [], ['--extend', '--json']))} --extend   (with a larger space)"
    kept = join(_without(command, [OPTIONS[name] for name in short], ["--extend", "--json"]))
    return " ".join([kept, "--extend", *(f"{OPTIONS[name]} {more[name]}" for name in short)])


def _is_nearly_spent(standing: Standing, budget: str) -> bool:
    """Whether more than half of a budget of time is used: twice as many trials would not fit into what is left."""
    if budget == "time":
        return standing.time_s is not None and standing.spent_s > standing.time_s / 2
    if budget == "device_hours":
        return standing.device_limit_s is not None and standing.device_s > standing.device_limit_s / 2
    return False


def _without(command: Sequence[str], options: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """The words of a command without some options, whose values go with them, and flags."""
    words = iter(command)
    for word in words:
        if word in options:
            next(words, None)
        elif word not in flags and word.partition("=")[0] not in options:
            yield word

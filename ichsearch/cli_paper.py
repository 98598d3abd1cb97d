"""`ichsearch run` of a paper file: its runs one after the other, then a page that holds them against the paper.

In: arguments of the verb. Out: run folders, `paper.html`, `paper.csv`, lines.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ichsearch.cli_console import err, out
from ichsearch.cli_events import RunPrinter
from ichsearch.cli_progress import progress
from ichsearch.locations import disk_path
from ichsearch.report.leaderboard import write_leaderboard
from ichsearch.report.lr_plot import draw_curve
from ichsearch.report.paper_page import write_paper
from ichsearch.report.paper_results import ACCURACY, CSV
from ichsearch.report.paper_table import as_table
from ichsearch.report.provenance import noting
from ichsearch.report.report import drawn_at_the_end
from ichsearch.report.summary import summarise, summary_text
from ichsearch.search import events
from ichsearch.search.paper import Paper
from ichsearch.search.paper_runs import PaperWatchers, run_paper
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.runner import Outcome
from ichsearch.search.stages import Watchers


def run_paper_file(
    paper: Paper, data: str | None, folder: str | None, *, address: str | None, as_json: bool, command: Sequence[str]
) -> None:
    """Run a paper file, or go on with it, and print what it came to; without `folder` in runs/<its name>.

    Its folder and shards are on a disk.
    """
    root = disk_path(folder) if folder is not None else Path("runs") / paper.name
    shards_folder = disk_path(data) if data is not None else None
    printer = RunPrinter(out, err, command, as_json=as_json)

    def ended(outcome: Outcome) -> None:
        printer.say(summary_text(summarise(outcome.folder, outcome.shards)))
        printer.say(drawn_at_the_end(outcome.folder, outcome.shards))

    with printer.ending(root / CSV, ACCURACY), progress(err) as show:

        def watchers(folder: RunFolder) -> Watchers:
            return Watchers(noting(printer.tell, folder, command), show, write_leaderboard, draw_curve)

        shards = run_paper(
            paper, shards_folder, root, address=address, command=command,
            watchers=PaperWatchers(watchers, printer.tell, ended),
        )  # fmt: skip
        result = write_paper(root, shards)
    Console(width=250, stderr=as_json).print(as_table(result.table))  # so that lines may wrap, but cells do not
    for line in result.verdict:
        printer.say(line)
    line = f"page: {result.page}\ntable: {root / CSV} · not for clinical use"
    printer.tell(events.done(root / CSV, ACCURACY, None, line, 0, "all runs have ended"))

"""The verb that looks at a cluster before a run does; in the manner of `cli.py`, which it is a plain verb of.

In: arguments. Out: a table of checks, and the exit code that they make.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ichsearch.cli_console import out
from ichsearch.terminal import literal

if TYPE_CHECKING:
    from rich.table import Table

    from ichsearch.search.doctor import Check

app = typer.Typer()
STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster; default RAY_ADDRESS, else this machine.")] = None,
    data: Annotated[str | None, typer.Option(help="Shards that every node must read.")] = None,
    run_folder: Annotated[
        str | None, typer.Option("--out", help="Run folder, new or not, that every node must write to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the checks and the exit code.")] = False,
) -> None:
    """Check nodes, GPUs, versions, storage, weights, cache and security of a cluster before a run needs them."""
    from ichsearch.files import to_json
    from ichsearch.search import doctor as library

    checks = list(library.examine(address, data, run_folder))
    if as_json:
        sys.stdout.write(to_json(library.as_json(checks)).decode())
    else:
        out.print(_table(checks))
    raise typer.Exit(library.exit_code(checks))


def _table(checks: "list[Check]") -> "Table":
    from rich.table import Table

    table = Table("check", "", "found", "remedy")
    for check in checks:
        status = f"[{STYLES[check.status]}]{check.status}[/]"
        table.add_row(literal(check.name), status, literal(check.found), literal(check.remedy))
    return table

"""Searchers on a table of learning curves, side by side; on demand, no test.

    python tests/benchmarks/search.py TABLE.npz [--seeds 20] [--budgets 2 5 15 60] [--only NAME ...] [--against NAME]
        [--rows FILE.csv] [--processes 2]

In: a table as `search_table` reads it. Out: for each budget the normalised regret of every searcher, its difference to
`--against`, and as the last line all figures as one JSON object. One run to the largest budget gives the figures of
all. With `--rows` every single regret is kept in a CSV file, and searchers found there are compared without a rerun.
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import json
import multiprocessing
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
from measuring import Figures, cpu_model, new_table, timed
from rich.console import Console
from search_peers import PEERS
from search_statistics import Bounds, FloatArray, difference, mean_and_error
from search_table import Contestant, Exhausted, Ledger, Task, load_tasks, normalised_regret

PACKAGES: Final = ("ichsearch", "optuna", "ray", "numpy")
CONTESTANTS: Final[dict[str, Contestant]] = {**PEERS}
SEEDS_OF_A_TASK: Final = 10_000
"""Tasks often share their configurations: with the same seed their runs would not be independent."""


class Run(NamedTuple):
    contestant: str
    task: str
    seed: int


def main() -> None:
    """Run all, print it for a reader, and for a program on the last line."""
    options = _options()
    tasks = load_tasks(options.table)
    rows, wall_s = timed(lambda: _rows(tasks, options))
    if options.rows:
        rows = _kept(options.rows, rows)
    figures = {"setting": _setting(options, tasks, wall_s), "budgets": _compare(rows, tasks, options)}
    _show(figures, options.against)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Searchers on a table of learning curves, side by side.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 5, 15, 60], help="in trials of full length")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument(
        "--against",
        choices=CONTESTANTS,
        metavar="NAME",
        help="whose paired difference to each is shown; default: first",
    )
    parser.add_argument("--rows", type=Path, help="a CSV file that keeps all runs; may hold searchers run before")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.against = options.against or options.only[0]
    if options.against not in options.only and not (options.rows and options.rows.exists()):
        parser.error(f"--against must be one of --only or be kept in --rows, but got {options.against}")
    return options


def _rows(tasks: dict[str, Task], options: argparse.Namespace) -> pd.DataFrame:
    """One row per searcher, task, seed and budget."""
    batches = [[Run(*one, seed) for seed in range(options.seeds)] for one in product(options.only, tasks)]
    work = partial(_regrets, tasks, tuple(options.budgets))
    rows: list[Figures] = []
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for number, some in enumerate(pool.map(work, batches), start=1):
            rows += some
            if number % len(tasks) == 0:
                sys.stderr.write(f"{some[0]['contestant']}: done\n")
    return pd.DataFrame(rows)


def _regrets(tasks: dict[str, Task], budgets: Sequence[int], runs: list[Run]) -> list[Figures]:
    return [row for run in runs for row in _regrets_of(tasks, budgets, run)]


def _regrets_of(tasks: dict[str, Task], budgets: Sequence[int], run: Run) -> Iterator[Figures]:
    task = tasks[run.task]
    ledger = Ledger(task, max(budgets) * task.epochs)
    _, seconds = timed(partial(_search, ledger, run, list(tasks).index(run.task) * SEEDS_OF_A_TASK + run.seed))
    for budget in budgets:
        regret = normalised_regret(task, ledger.best(budget * task.epochs))
        yield {**run._asdict(), "budget": budget, "regret": regret, "run_s": round(seconds, 4)}


def _search(ledger: Ledger, run: Run, seed: int) -> None:
    with suppress(Exhausted):
        CONTESTANTS[run.contestant](ledger, seed)


def _kept(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """These rows and those of the other searchers in the file, which then holds them all."""
    if path.exists():
        before = pd.read_csv(path)
        rows = pd.concat([rows, before[~before["contestant"].isin(rows["contestant"])]])
    rows.to_csv(path, index=False)
    return rows


def _compare(rows: pd.DataFrame, tasks: dict[str, Task], options: argparse.Namespace) -> Figures:
    """By budget and searcher."""
    return {str(budget): _compare_at(rows[rows["budget"] == budget], tasks, options) for budget in options.budgets}


def _compare_at(rows: pd.DataFrame, tasks: dict[str, Task], options: argparse.Namespace) -> Figures:
    regrets = {str(name): _by_task_and_seed(some, tasks, options.seeds) for name, some in rows.groupby("contestant")}
    against = regrets[options.against]
    figures: Figures = {}
    for name in sorted(regrets, key=lambda name: regrets[name].mean()):
        mean, error = mean_and_error(regrets[name])
        figures[name] = {"regret": mean, "standard_error": error}
        if name != options.against:
            figures[name]["difference"] = difference(against, regrets[name])._asdict()
    return figures


def _by_task_and_seed(rows: pd.DataFrame, tasks: dict[str, Task], seeds: int) -> FloatArray:
    """(T, S); a searcher that was kept with fewer tasks or seeds is refused."""
    table = rows.pivot(index="task", columns="seed", values="regret").reindex(index=list(tasks), columns=range(seeds))
    if table.isna().any(axis=None):
        raise SystemExit(
            f"{rows['contestant'].iloc[0]} must have been run on all {len(tasks)} tasks with {seeds} seeds and to "
            "this budget: run it again"
        )
    return table.to_numpy()


def _setting(options: argparse.Namespace, tasks: dict[str, Task], wall_s: float) -> Figures:
    task = next(iter(tasks.values()))
    return {
        "table": options.table.name,
        "tasks": len(tasks),
        "configurations": len(task.curves),
        "epochs": task.epochs,
        "parameters": len(task.names),
        "seeds": options.seeds,
        "against": options.against,
        "processes": options.processes,
        "wall_s": wall_s,
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _show(figures: Figures, against: str) -> None:
    console = Console(width=140)
    setting = figures["setting"]
    console.print(f"{setting['tasks']} tasks × {setting['seeds']} seeds in {setting['wall_s']:.0f} s; lower is better")
    for budget, searchers in figures["budgets"].items():
        columns = (
            "searcher",
            "regret",
            f"{against} less it",
            "95 %, these tasks",
            "95 %, such tasks",
            "tasks won–lost",
        )
        table = new_table(f"Budget: {budget} trials of full length", *columns)
        for name, row in searchers.items():
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f}"
            table.add_row(name, f"{row['regret']:.3f}{error}", *_difference_cells(row.get("difference")))
        console.print(table)


def _difference_cells(row: Figures | None) -> tuple[str, ...]:
    if row is None:
        return ()
    bounds = (_bounds_text(row[kind]) for kind in ("these_tasks", "such_tasks"))
    return (f"{row['mean']:+.3f}", *bounds, f"{row['tasks_won']}–{row['tasks_lost']}")


def _bounds_text(bounds: Bounds | None) -> str:
    return "" if bounds is None else f"{bounds[0]:+.3f} … {bounds[1]:+.3f}"


if __name__ == "__main__":
    main()

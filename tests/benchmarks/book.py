"""What the search's own decisions cost when it knows many trials; on demand, no test.

    python tests/benchmarks/book.py [--trials 500 2000 10000] [--asked 40] [--folder FOLDER]

In: nothing. Out: CPU time of a proposal and of a tell by how many trials the book knows, and of opening the run, over
rungs and with trials of full length alone, which one model has all to learn from; as the last line all figures as one
JSON object. Trials are told without training any.
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any, Final

from measuring import Figures, Result, cpu_model, new_table, spread, spread_text
from rich.console import Console

from ichsearch.search.book import Book, Started
from ichsearch.search.journal import open_storage
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.train.trial import TrialResult

PACKAGES: Final = ("ichsearch", "optuna", "numpy")
BACKBONES: Final = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
STRATEGIES: Final = ("promote", "full")
SPACE: Final[dict[str, Any]] = {
    "name": "book",
    "epochs": 9,
    "promotion": {"eta": 3},
    "parameters": {
        "backbone": {"choice": list(BACKBONES)},
        "batch_size": {"choice": [32, 64], "when": [{"if": {"backbone": "densenet121"}, "choice": [16, 32]}]},
        "size": 256,
        "augment": {"float": [0.0, 1.0]},
        "label_smoothing": {"float": [0.0, 0.2]},
        "weight_decay": {"float": [1e-5, 0.1], "log": True},
        "rise": {"float": [0.1, 0.5]},
        "imbalance": {"choice": ["none", "loss", "sampler"]},
        "lr": {"factor": [0.3, 3.0]},
    },
}


def main() -> None:
    """Measure all, print it for a reader, and for a program on the last line."""
    options = _options()
    rows: list[Figures] = []
    for strategy in STRATEGIES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for known in sorted(options.trials):
                _fill(Path(folder), strategy, known)
                rows.append(_measure(Path(folder), strategy, known, options.asked))
                sys.stderr.write(f"{strategy}, {known} trials: done\n")
    figures = {"setting": _setting(options), "rows": rows}
    _show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU time of the search's own decisions.")
    parser.add_argument("--trials", type=int, nargs="+", default=[500, 2000, 10_000], help="that the book knows")
    parser.add_argument("--asked", type=int, default=40, help="trials asked for and told at each of these")
    parser.add_argument("--folder", type=Path, help="where the run is kept meanwhile; its disk does not count")
    return parser.parse_args()


def _book(folder: Path, strategy: str, trials: int, sampler: str) -> Book:
    space = Space.model_validate({**SPACE, "strategy": strategy, "trials": trials, "sampler": sampler})
    run = RunFolder(folder)
    weights = dict.fromkeys(BACKBONES, "scratch")
    return Book(space, run, open_storage(run.journal), suggest_lr=lambda config: 0.01, weights_of=weights)


def _fill(folder: Path, strategy: str, trials: int) -> None:
    """Independent configurations cost least to propose."""
    book = _book(folder, strategy, 2 * trials, "random")
    while book.standing().finished + book.standing().failed < trials:
        _tell(book, _next(book))


def _next(book: Book) -> Started:
    started = book.next()
    assert isinstance(started, Started), "there is one worker, and the space has no end"
    return started


def _tell(book: Book, started: Started) -> None:
    config = started.config
    if config.backbone == "alexnet" and config.augment > 0.9:
        book.tell_failed(started, "diverged")
        return
    score = 0.9 - 0.1 * (config.augment - 0.3) ** 2 - 0.1 * config.label_smoothing - 1 / (100 * config.epochs)
    epochs = config.epochs - config.epochs_before
    book.tell_finished(started, TrialResult(score, config.epochs, {}, 1.0 * epochs, 100.0, 8, epochs, epochs))


def _measure(folder: Path, strategy: str, known: int, asked: int) -> Figures:
    book, open_s = _cpu_timed(lambda: _book(folder, strategy, 4 * known, "tpe"))
    next_ms, tell_ms = [], []
    for _ in range(asked):
        started, seconds = _cpu_timed(lambda: _next(book))
        if started.record.parent is None:
            next_ms.append(1e3 * seconds)
        tell_ms.append(1e3 * _cpu_timed(partial(_tell, book, started))[1])
    figures = {"open_s": open_s, "proposal_ms": spread(next_ms), "tell_ms": spread(tell_ms)}
    return {"strategy": strategy, "known": known, **figures}


def _cpu_timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and the CPU seconds of this process."""
    start = process_time()
    result = work()
    return result, process_time() - start


def _setting(options: argparse.Namespace) -> Figures:
    return {
        "asked": options.asked,
        "parameters": len(SPACE["parameters"]),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _show(figures: Figures) -> None:
    columns = ("strategy, trials known", "proposal, ms", "tell, ms", "opening the run, s")
    table = new_table("CPU time, median [lowest–highest]", *columns)
    for row in figures["rows"]:
        proposal, tell = spread_text(row["proposal_ms"], 1), spread_text(row["tell_ms"], 1)
        table.add_row(f"{row['strategy']}, {row['known']:,}", proposal, tell, f"{row['open_s']:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

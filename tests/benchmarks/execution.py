"""What the search costs between its trials; on demand, no test.

    python tests/benchmarks/execution.py [--trials 200] [--reports 20000] [--trial-s 0.05]

In: trials that do next to nothing, run on two slots of a local Ray cluster by the search's own execution. Out: tables,
and as the last line all figures as one JSON object: from a trial's end to the next one's start in the same worker, with
the journal of a real book and with a book in memory; reports a second; the driver's memory after each fifth of them.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import ray
from measuring import cpu_model, new_table
from ray import tune
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from spaces import write_space

from ichsearch.report.leaderboard import write_leaderboard
from ichsearch.search.book import Book, Standing, Started
from ichsearch.search.execution import Execution, run_trials
from ichsearch.search.journal import Place, open_storage
from ichsearch.search.resources import Requests
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space_file import load_space
from ichsearch.train.config import TrialConfig
from ichsearch.train.trial import TrialResult

SPACE: Final = """\
name: nothing
trials: {trials}
epochs: 1
parameters:
  {{backbone: test_resnet, batch_size: 8, size: 32, lr: {{float: [0.001, 0.1]}}, augment: {{float: [0.0, 1.0]}}}}
"""
RESULT: Final = {
    "score": 0.5, "best_epoch": 1, "metrics": {"auroc_any": 0.5}, "seconds": 1.0, "images_per_s": 1.0,
    "parameters_m": 1.0, "micro_batch": 8, "epochs_trained": 1,
}  # fmt: skip
PARTS: Final = 5

Figures = dict[str, Any]
console = Console(width=100)


def main() -> None:
    """Measure, print for a reader, and for a program on the last line."""
    options = _options()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    figures: Figures = {"setting": _setting(options)}
    for name, make in (("journal", _real_book), ("memory", _MemoryBook)):
        figures[f"between_trials_{name}"] = _between_trials(make, options)
    figures["reports"] = _reports(options)
    ray.shutdown()
    _show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the search costs between its trials.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--trial-s", type=float, default=0.05, help="what a trial sleeps, so that both slots are used")
    parser.add_argument("--reports", type=int, default=20_000, help="of two trials together")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Figures:
    packages = {name: version(name) for name in ("ichsearch", "ray", "optuna", "torch")}
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "python": platform.python_version(), **packages} | vars(
        options
    )


class _MemoryBook:
    """A book that remembers nothing: what is left is Ray Tune and what the search adds to it."""

    def __init__(self, folder: RunFolder, trials: int) -> None:
        self._folder, self._trials = folder, trials
        self._handed_out = self._ended = 0

    def next(self) -> Started | None:
        if self._handed_out == self._trials:
            return None
        self._handed_out += 1
        config = TrialConfig(backbone="test_resnet", batch_size=8, size=32, lr=0.01, epochs=1)
        record = TrialRecord(
            trial=f"{self._handed_out:04d}",
            status="running",
            parameters={"lr": 0.01},
            config=config.model_dump(),
            lr_suggestion=None,
            weights="scratch",
            epochs=1,
        )
        return Started(record, config, Place("study", self._handed_out))

    def tell_finished(self, started: Started, result: TrialResult) -> None:  # noqa: ARG002
        self._ended += 1

    def tell_failed(self, started: Started, reason: str) -> None:
        raise AssertionError(f"{started.record.trial}: {reason}")

    def is_out_of_time(self) -> bool:
        return False

    def keep_time(self) -> None:
        pass

    def standing(self) -> Standing:
        running = self._handed_out - self._ended
        return Standing(self._ended, 0, running, self._trials, ("0001", 0.5), 0.0, None, 0.0, None, None, "")


def _real_book(folder: RunFolder, trials: int) -> Book:
    space = load_space(write_space(folder.root, SPACE.format(trials=trials)))
    return Book(
        space,
        folder,
        open_storage(folder.journal),
        suggest_lr=lambda config: 0.01,
        weights_of={"test_resnet": "scratch"},
    )


def _trial(
    folder: RunFolder, times: Path, *, reports: int = 0, trial_s: float = 0.0
) -> Callable[[dict[str, Any]], None]:
    def trial(job: dict[str, Any]) -> None:
        began_s = time.time()
        for epoch in range(reports):
            tune.report({"epoch": epoch, "seconds": 1.0, "images_per_s": 1.0})
        time.sleep(trial_s)
        own = folder.trial(job["trial"])
        own.mkdir(parents=True, exist_ok=True)
        (own / "metrics.json").write_text(json.dumps({"epochs": [], "result": RESULT}), encoding="utf-8")
        with (times / str(os.getpid())).open("a", encoding="utf-8") as file:
            file.write(f"{began_s} {time.time()}\n")
        tune.report({"score": 0.5, "reason": "", "done": True})

    return trial


def _run(
    make: Callable[[RunFolder, int], Any], trials: int, watch: Callable[[], None], **trial: Any
) -> list[list[tuple[float, float]]]:
    """Run trials; when they began and ended, for each worker."""
    with tempfile.TemporaryDirectory(prefix="ichsearch-bench-") as root:
        folder, times = RunFolder(Path(root) / "run"), Path(root) / "times"
        times.mkdir()
        folder.root.mkdir()
        execution = Execution(
            name="nothing",
            metric="auroc_any",
            folder=folder,
            requests=Requests({"CPU": 1.0, "GPU": 0.0}),
            max_retries=0,
            trial=_trial(folder, times, **trial),
            tell=lambda event: watch(),
            write_leaderboard=write_leaderboard,
        )
        run_trials(make(folder, trials), execution)
        rows = [[line.split() for line in path.read_text(encoding="utf-8").splitlines()] for path in times.iterdir()]
        return [[(float(began), float(ended)) for began, ended in worker] for worker in rows]


def _between_trials(make: Callable[[RunFolder, int], Any], options: argparse.Namespace) -> Figures:
    workers = _run(make, options.trials, lambda: None, trial_s=options.trial_s)
    gaps = [after[0] - before[1] for worker in workers for before, after in pairwise(worker)]
    assert sum(map(len, workers)) == options.trials
    cuts = statistics.quantiles(gaps, n=20)
    return {
        "n": len(gaps),
        "workers": len(workers),
        "median_s": statistics.median(gaps),
        "p95_s": cuts[-1],
        "max_s": max(gaps),
    }


def _reports(options: argparse.Namespace) -> Figures:
    each = options.reports // 2 // PARTS
    memory_mb: list[float] = []
    workers = _run(_MemoryBook, 2 * PARTS, lambda: memory_mb.append(_resident_mb()), reports=each)
    trials = [trial for worker in workers for trial in worker]
    busy_s = max(ended for _, ended in trials) - min(began for began, _ in trials)
    total = each * len(trials)
    return {"n": total, "per_s": total / busy_s, "driver_mb": memory_mb[:: len(memory_mb) // PARTS]}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _show(figures: Figures) -> None:
    table = new_table("from a trial's end to the next one's start in its worker", "book", "n", "median", "95 %", "max")
    for name in ("journal", "memory"):
        found = figures[f"between_trials_{name}"]
        shown = (f"{1000 * found[key]:.0f} ms" for key in ("median_s", "p95_s", "max_s"))
        table.add_row(f"{name} ({found['workers']} workers)", str(found["n"]), *shown)
    console.print(table)
    reports = figures["reports"]
    memory = " → ".join(f"{value:.0f}" for value in reports["driver_mb"])
    console.print(
        f"{reports['per_s']:.0f} reports/s (n = {reports['n']}); driver's memory in MB while they come: {memory}"
    )


if __name__ == "__main__":
    main()

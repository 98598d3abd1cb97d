"""How the search scales with the cluster and with its trials; on demand, no test.

    python tests/benchmarks/scale.py [--slots 1 4 16 48] [--trials-a-slot 42] [--trial-s 5]
    python tests/benchmarks/scale.py --searcher-only 10000

In: clusters that Ray simulates on this machine, nodes of up to eight logical GPUs, and trials that sleep; they go
through the search's own book, searcher and execution. Out: utilisation, the driver's CPU time and memory, the journal's
size, how long a suggestion takes; as the last line all figures as one JSON object. With `--searcher-only` no Ray runs:
the searcher and the journal are told so many trials, and the run is opened again.

A slot is used while a trial sleeps in it. `steady` leaves out the beginning, until every slot has had its first trial,
and the end, from when one finds no trial left: on a machine with few cores the workers of all nodes start one by one.
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
from ray.cluster_utils import Cluster
from rich.console import Console

from ichsearch.report.leaderboard import write_leaderboard
from ichsearch.search.book import Book, Started
from ichsearch.search.execution import Execution, run_trials
from ichsearch.search.journal import open_storage
from ichsearch.search.nodes import Nodes
from ichsearch.search.resources import Requests
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.searcher import BookSearcher, Hearers
from ichsearch.search.space import Space

GPUS_A_NODE: Final = 8
BACKBONES: Final = ("resnet18", "resnet50", "densenet121")
SPACE: Final[dict[str, Any]] = {
    "name": "scale",
    "epochs": 9,
    "promotion": {"eta": 3},
    "parameters": {
        "backbone": {"choice": list(BACKBONES)},
        "batch_size": {"choice": [16, 32, 64]},
        "size": 256,
        "augment": {"float": [0.0, 1.0]},
        "weight_decay": {"float": [1e-5, 0.1], "log": True},
        "lr": {"float": [1e-4, 1e-1], "log": True},
    },
}
MEMORY: Final = {"RssAnon": "own", "VmRSS": "resident"}
ONE_GPU: Final = Requests({"CPU": 1.0, "GPU": 1.0})

Figures = dict[str, Any]
console = Console(width=140)


def main() -> None:
    """Measure, print for a reader, and for a program on the last line."""
    options = _options()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    figures: Figures = {"setting": _setting(options)}
    if options.searcher_only:
        figures["searcher"] = _searcher_only(options.searcher_only)
        _show_searcher(figures["searcher"])
    else:
        figures["clusters"] = []
        for slots in options.slots:
            figures["clusters"].append(_cluster(slots, options))
            sys.stderr.write(f"{json.dumps(figures['clusters'][-1])}\n")
        _show_clusters(figures["clusters"])
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How the search scales with the cluster and with its trials.")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16, 48], help="logical GPUs of each cluster")
    parser.add_argument("--trials-a-slot", type=int, default=42)
    parser.add_argument("--trial-s", type=float, default=5.0, help="what a trial sleeps")
    parser.add_argument(
        "--searcher-only", type=int, default=0, metavar="TRIALS", help="no Ray: so many trials are told"
    )
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Figures:
    packages = {name: version(name) for name in ("ichsearch", "ray", "optuna")}
    load = os.getloadavg()[0]
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "load_before": load, "python": platform.python_version()}
    return {**machine, **packages, **vars(options)}


class _TimedBook(Book):
    """A book that notes how long each suggestion takes, in seconds."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.took_s: list[float] = []

    def next(self) -> Any:
        began_s = time.perf_counter()
        found = super().next()
        self.took_s.append(time.perf_counter() - began_s)
        return found


def _book(folder: RunFolder, trials: int, sampler: str = "tpe") -> _TimedBook:
    space = Space.model_validate({**SPACE, "trials": trials, "sampler": sampler})
    weights = dict.fromkeys(BACKBONES, "scratch")
    folder.root.mkdir(exist_ok=True)
    return _TimedBook(space, folder, open_storage(folder.journal), suggest_lr=lambda config: 0.01, weights_of=weights)


def _write_result(trials: str, job: dict[str, Any], seconds: float) -> None:
    """What a trial leaves; only the standard library, so that a worker starts as fast as Ray can."""
    config = job["config"]
    score = 0.9 - 0.1 * (config["augment"] - 0.3) ** 2 - 1 / (20 * config["epochs"])
    epochs = config["epochs"] - config["epochs_before"]
    result = {
        "score": score, "best_epoch": config["epochs"], "metrics": {"auroc_any": score}, "seconds": seconds,
        "images_per_s": 100.0, "parameters_m": 11.0, "micro_batch": config["batch_size"], "epochs_trained": epochs,
    }  # fmt: skip
    path = Path(trials) / job["trial"] / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"epochs": [], "result": result}), encoding="utf-8")


def _trial(folder: RunFolder, times: str, trial_s: float) -> Callable[[dict[str, Any]], None]:
    trials, write = str(folder.trials), _write_result

    def trial(job: dict[str, Any]) -> None:
        began_s = time.time()
        for epoch in range(2):
            time.sleep(trial_s / 2)
            tune.report({"epoch": epoch, "seconds": trial_s / 2, "images_per_s": 100.0})
        write(trials, job, trial_s)
        with (Path(times) / str(os.getpid())).open("a", encoding="utf-8") as file:
            file.write(f"{began_s} {time.time()}\n")
        tune.report({"score": 0.5, "reason": "", "done": True})

    return trial


def _cluster(slots: int, options: argparse.Namespace) -> Figures:
    trials = slots * options.trials_a_slot
    with tempfile.TemporaryDirectory(prefix="ics", ignore_cleanup_errors=True) as sockets:
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": sockets}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for first in range(0, slots, GPUS_A_NODE):
            gpus = min(GPUS_A_NODE, slots - first)
            cluster.add_node(num_cpus=gpus, num_gpus=gpus)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            return {"slots": slots, "trials": trials, **_run(slots, trials, options.trial_s)}
        finally:
            ray.shutdown()
            cluster.shutdown()


def _run(slots: int, trials: int, trial_s: float) -> Figures:
    with tempfile.TemporaryDirectory(prefix="ichsearch-bench-") as root:
        folder, times = RunFolder(Path(root) / "run"), Path(root) / "times"
        times.mkdir()
        book = _book(folder, trials)
        execution = Execution(
            name="scale",
            metric="auroc_any",
            folder=folder,
            requests=ONE_GPU,
            max_retries=0,
            trial=_trial(folder, str(times), trial_s),
            tell=lambda event: None,
            write_leaderboard=write_leaderboard,
        )
        began_s, cpu_s = time.time(), time.process_time()
        run_trials(book, execution)
        wall_s, cpu_s = time.time() - began_s, time.process_time() - cpu_s
        assert book.standing().finished == trials
        return {
            "wall_s": wall_s,
            **_utilisation(times, slots, began_s),
            "driver_cpu": cpu_s / wall_s,
            "driver_cpu_ms_a_trial": 1000 * cpu_s / trials,
            "driver_mb": _memory_mb(),
            "journal_mb": folder.journal.stat().st_size / 1e6,
            "suggestion_ms": _latency(book.took_s),
            "load": os.getloadavg()[0],
        }


def _utilisation(times: Path, slots: int, began_s: float) -> Figures:
    """The share of the slots' time in which trials slept; of the whole run, and while all slots were at work."""
    rows = [[line.split() for line in path.read_text(encoding="utf-8").splitlines()] for path in times.iterdir()]
    workers = [[(float(began), float(ended)) for began, ended in worker] for worker in rows]
    spans = [span for worker in workers for span in worker]
    last_s = max(ended for _, ended in spans)
    from_s = sorted(worker[0][0] for worker in workers)[min(slots, len(workers)) - 1]
    to_s = min(worker[-1][1] for worker in workers if worker[-1][1] > from_s)
    within = sum(max(0.0, min(ended, to_s) - max(began, from_s)) for began, ended in spans)
    gaps = [after[0] - before[1] for worker in workers for before, after in pairwise(worker)]
    return {
        "utilisation": sum(ended - began for began, ended in spans) / (slots * (last_s - began_s)),
        "steady": within / (slots * (to_s - from_s)),
        "steady_s": to_s - from_s,
        "all_slots_after_s": from_s - began_s,
        "workers": len(workers),
        "gap_ms": _latency(gaps),
    }


def _latency(took_s: list[float]) -> Figures:
    cuts = statistics.quantiles(took_s, n=100)
    return {"median": 1000 * cuts[49], "p95": 1000 * cuts[94], "max": 1000 * max(took_s)}


def _memory_mb() -> Figures:
    """Of this process: its own, and all that is resident, which is the libraries' files, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {name: float(line.split()[1]) / 1e3 for line in lines if (name := line.partition(":")[0]) in MEMORY}
    return {MEMORY[name]: value for name, value in found.items()}


def _searcher_only(trials: int) -> Figures:
    """Independent configurations, which cost least; then the run is opened again, and a model proposes a last tenth."""
    with tempfile.TemporaryDirectory(prefix="ichsearch-bench-") as root:
        folder = RunFolder(Path(root) / "run")
        parts = _told(_book(folder, trials, "random"), folder, trials * 9 // 10, trials // 10)
        began_s = time.perf_counter()
        book = _book(folder, trials, "tpe")
        again_s = time.perf_counter() - began_s
        parts += _told(book, folder, trials, trials // 10)
        assert book.standing().finished == trials
        return {
            "trials": trials,
            "parts": parts,
            "open_again_s": again_s,
            "suggestion_ms": _latency(book.took_s),
            "journal_mb": folder.journal.stat().st_size / 1e6,
        }


def _told(book: Book, folder: RunFolder, until: int, part: int) -> list[Figures]:
    """Tell trials until so many have finished, on 48 slots, in the order in which they began; figures of each part."""
    live = {f"node{number}": {"CPU": 8.0, "GPU": 8.0} for number in range(6)}
    searcher = BookSearcher(book, folder, ONE_GPU, Nodes(lambda: live, ONE_GPU.least, lambda node: False), _nobody(), 0)
    running: list[tuple[str, dict[str, Any]]] = []
    asked, ended = 0, book.standing().finished
    parts, part_s = list[Figures](), time.process_time()
    while ended < until:
        while isinstance(job := searcher.suggest(str(asked)), dict):
            running.append((str(asked), job))
            asked += 1
        name, job = running.pop(0)
        _write_result(str(folder.trials), job, 1.0)
        searcher.on_trial_complete(name, {"reason": ""})
        ended += 1
        if ended % part == 0:
            spent_ms = 1000 * (time.process_time() - part_s) / part
            parts.append({"trials": ended, "ms_a_trial": spent_ms, "driver_mb": _memory_mb()})
            part_s = time.process_time()
    if searcher.failure:
        raise searcher.failure
    return parts


def _nobody() -> Hearers:
    def hear(*told: Started | Any) -> None:
        pass

    return Hearers(hear, hear, hear, hear, hear)


def _latency_text(latency_ms: Figures) -> str:
    return f"{latency_ms['median']:.0f} ({latency_ms['p95']:.0f})"


def _memory_text(memory_mb: Figures) -> str:
    return f"{memory_mb['own']:.0f} ({memory_mb['resident']:.0f})"


def _show_clusters(rows: list[Figures]) -> None:
    columns = ("slots", "trials", "wall, s", "all slots after, s", "used, whole run", "used, steady", "gap, ms",
               "driver CPU", "driver's own (resident) MB", "journal MB", "suggestion, ms", "load")  # fmt: skip
    table = new_table("utilisation of simulated clusters; gap and suggestion: median (95 %)", *columns)
    for row in rows:
        gap, suggestion = (
            f"{row[name]['median']:.0f} ({row[name]['p95']:.0f})" for name in ("gap_ms", "suggestion_ms")
        )
        seconds = (f"{row[name]:.0f}" for name in ("wall_s", "all_slots_after_s"))
        shares = (f"{100 * row[name]:.1f} %" for name in ("utilisation", "steady"))
        driver = (f"{100 * row['driver_cpu']:.0f} %", _memory_text(row["driver_mb"]), f"{row['journal_mb']:.1f}")
        cells = (*seconds, *shares, gap, *driver, suggestion, f"{row['load']:.1f}")
        table.add_row(str(row["slots"]), f"{row['trials']:,}", *cells)
    console.print(table)


def _show_searcher(found: Figures) -> None:
    table = new_table(
        "the searcher and the journal alone", "trials told", "CPU a trial, ms", "driver's own (resident) MB"
    )
    for part in found["parts"]:
        table.add_row(f"{part['trials']:,}", f"{part['ms_a_trial']:.0f}", _memory_text(part["driver_mb"]))
    console.print(table)
    suggestion = _latency_text(found["suggestion_ms"])
    console.print(
        f"opened again with {found['trials'] * 9 // 10:,} trials in {found['open_again_s']:.1f} s; a suggestion then: "
        f"{suggestion} ms, median (95 %); journal at the end {found['journal_mb']:.1f} MB"
    )


if __name__ == "__main__":
    main()

"""What a search of the full RSNA 2019 set would take, on paper: no GPU is asked; on demand, no test.

    python tests/benchmarks/projection.py [--gpus 1 8 64] [--trials 30 200]

In: published training rates and the size of the set. Out: hours by the wall clock, GPU hours, utilisation and longest
wait of the search of `search_spaces/architectures.yaml`, its own book deciding what runs next in simulated time; as the
last line all figures as one JSON object.

Assumptions. 752,803 slices, three fifths to train, one fifth to validate after each epoch. An A100 trains ResNet-50 in
mixed precision on 2,470 images/s at 224 px (published), by (224 / 256)² fewer at 256 px; other backbones in the ratios
of an RTX 3090 (published: resnet18 3,482, resnet50 1,218, resnet101 748, densenet121 914), AlexNet as resnet18 (it
needs less). Validation takes a third of training. A GPU a trial; loading and augmentation keep up with it. The set was
decoded once a node before (99 GB), and the LR finder has run; neither is in the figures.
"""

import argparse
import heapq
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from measuring import Figures, new_table
from rich.console import Console

from ichsearch.search.book import Book, Started
from ichsearch.search.journal import open_storage
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.train.config import TrialConfig
from ichsearch.train.trial import TrialResult

SLICES: Final = 752_803
TRAINED: Final = 0.6
JUDGED: Final = 0.2
RESNET50_PER_S: Final = 2470 * (224 / 256) ** 2
RATIO: Final = {"resnet18": 3482, "resnet50": 1218, "resnet101": 748, "densenet121": 914, "alexnet": 3482}
FORWARD: Final = 1 / 3
BETWEEN_TRIALS_S: Final = 3.0
"""The hand-over, the slices opened and the model built."""


def main() -> None:
    """Project, print for a reader, and for a program on the last line."""
    parser = argparse.ArgumentParser(description="What a search of the full RSNA 2019 set would take, on paper.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--trials", type=int, nargs="+", default=[30, 200])
    options = parser.parse_args()
    rows = [_project(gpus, trials) for trials in options.trials for gpus in options.gpus]
    columns = ("trials", "GPUs", "wall clock, h", "GPU hours", "used", "full length", "the first after, h")
    table = new_table("the full RSNA 2019 set at 256 px", *columns)
    for row in rows:
        hours = (f"{row['wall_h']:.1f}", f"{row['gpu_h']:.1f}", f"{100 * row['utilisation']:.0f} %")
        table.add_row(str(row["trials"]), str(row["gpus"]), *hours, str(row["full"]), f"{row['first_full_h']:.1f}")
    Console(width=120).print(table)
    sys.stdout.write(json.dumps({"epoch_s": {name: epoch_s(name) for name in RATIO}, "rows": rows}) + "\n")


def epoch_s(backbone: str) -> float:
    """Training and validation of one epoch on one GPU."""
    per_s = RESNET50_PER_S * RATIO[backbone] / RATIO["resnet50"]
    return SLICES * (TRAINED + JUDGED * FORWARD) / per_s


def _project(gpus: int, trials: int) -> Figures:
    with tempfile.TemporaryDirectory() as root:
        space = load_space(Path(__file__).parents[2] / "search_spaces" / "architectures.yaml")
        space = space.model_copy(update={"trials": trials})
        folder = RunFolder(Path(root))
        weights = dict.fromkeys(RATIO, "scratch")
        book = Book(space, folder, open_storage(folder.journal), suggest_lr=lambda config: 1e-3, weights_of=weights)
        return {"gpus": gpus, "trials": trials, **_simulate(book, gpus)}


def _simulate(book: Book, gpus: int) -> Figures:
    """A queue of ends of trials; a GPU that becomes free asks the book at once."""
    running: list[tuple[float, int, Started, float]] = []
    now_s = busy_s = 0.0
    full: list[float] = []
    handed_out = 0
    while True:
        while len(running) < gpus and isinstance(started := book.next(), Started):
            config = started.config
            took_s = epoch_s(config.backbone) * (config.epochs - config.epochs_before)
            heapq.heappush(running, (now_s + took_s + BETWEEN_TRIALS_S, handed_out, started, took_s))
            handed_out += 1
        if not running:
            break
        now_s, _, started, took_s = heapq.heappop(running)
        busy_s += took_s
        book.tell_finished(started, _result(started.config, took_s))
        full += [now_s] if started.config.epochs == 9 else []
    return {
        "wall_h": now_s / 3600,
        "gpu_h": busy_s / 3600,
        "utilisation": busy_s / (gpus * now_s),
        "full": len(full),
        "first_full_h": min(full) / 3600,
    }


def _result(config: TrialConfig, took_s: float) -> TrialResult:
    """Some score that has a best place: which one it is does not matter here."""
    known: dict[str, Any] = {"resnet18": 0.0, "resnet50": 0.01, "resnet101": 0.012, "densenet121": 0.012}
    score = 0.9 + known.get(config.backbone, -0.02) - 0.02 * abs(config.augment - 0.4) - 0.03 / config.epochs
    epochs = config.epochs - config.epochs_before
    return TrialResult(score, config.epochs, {}, took_s, 1.0, 1.0, config.batch_size, epochs)


if __name__ == "__main__":
    main()

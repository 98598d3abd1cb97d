"""How fast a run predicts raw DICOM, and in how much memory; on demand, no test.

    python tests/benchmarks/predict.py RUN [--data SHARDS] [--slices 1000 10000] [--matrix 512] [--rounds 3]

In: a run; phantom slices are made. Out: tables, and as the last line all figures as one JSON object: slices a second of
`predict` beside those of its parts alone (every file decoded and cropped in a plain loop, then the model on ready
batches), round by round; and the peak memory of a process that predicts each number of slices.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from measuring import Figures, Result, cpu_model, new_table, ratio, spread, timed
from rich.console import Console

from ichsearch.deploy.models import BATCH, Predictor, load_predictor, series_neighbours
from ichsearch.deploy.outcome import Targets
from ichsearch.deploy.predict import predict_folder
from ichsearch.dicom.brain import cropped, locate_brain, union_box
from ichsearch.dicom.memory import keep_freed_memory
from ichsearch.dicom.pixels import read_image
from ichsearch.phantom import write_cohort
from ichsearch.search.run_folder import RunFolder

SLICES_A_PATIENT: Final = 20
console = Console(width=120)


class Task(NamedTuple):
    """What a process of its own does."""

    run: Path
    shards: Path | None
    dicom: Path
    rounds: int

    def predictor(self) -> Predictor:
        return load_predictor(RunFolder(self.run), None, ensemble=False, shards=self.shards)


def speeds(task: Task) -> Figures:
    """Seconds of `predict` and of its parts, round by round."""
    predictor, files = task.predictor(), sorted(task.dicom.rglob("*.dcm"))
    figures: dict[str, list[float]] = {"predict": [], "preprocess": [], "model": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(task.rounds + 1):
            _, whole_s = timed(lambda: predict_folder(predictor, str(task.dicom), Targets(Path(folder) / "all.csv")))
            hu, preprocess_s = timed(partial(preprocessed, predictor, files))
            _, model_s = timed(partial(probabilities, predictor, hu))
            for name, seconds in (("predict", whole_s), ("preprocess", preprocess_s), ("model", model_s)):
                figures[name].append(seconds)
    return {name: seconds[1:] for name, seconds in figures.items()} | {"slices": len(files)}  # the first warms up


def preprocessed(predictor: Predictor, files: list[Path]) -> np.ndarray[tuple[int, int, int], np.dtype[np.int16]]:
    """All files as stored slices; each patient's lie side by side."""
    keep_freed_memory()
    size = predictor.preprocessing.size
    stored = np.empty((len(files), size, size), np.int16)
    for start in range(0, len(files), SLICES_A_PATIENT):
        images = [read_image(path).hu for path in files[start : start + SLICES_A_PATIENT]]
        box = union_box([locate_brain(hu)[1] for hu in images], len(images[0]))
        for number, hu in enumerate(images, start=start):
            stored[number] = cropped(hu, box, size)
    return stored


@torch.inference_mode()
def probabilities(predictor: Predictor, hu: np.ndarray[tuple[int, int, int], np.dtype[np.int16]]) -> None:
    """The model on batches of slices that are there."""
    rows = series_neighbours(len(hu)) if predictor.needs_neighbours else np.arange(len(hu))[:, None]
    for start in range(0, len(hu), BATCH):
        batch = torch.from_numpy(hu[rows[start : start + BATCH]]).to(predictor.device)
        predictor.pipeline(batch).cpu()


def peak_mb(task: Task) -> float:
    """Peak memory of this process once it has predicted, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        predict_folder(task.predictor(), str(task.dicom), Targets(Path(folder) / "all.csv"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure ichsearch predict.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--slices", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: Figures = {}
    memory: Figures = {}
    for number, slices in enumerate(sorted(options.slices)):
        with tempfile.TemporaryDirectory() as folder:
            write_cohort(
                Path(folder) / "cohort", slices // SLICES_A_PATIENT, SLICES_A_PATIENT, 0, matrix=options.matrix
            )
            task = Task(options.run, options.data, Path(folder) / "cohort" / "dicom", options.rounds)
            if number == 0:
                seconds = alone(speeds, task)
            memory[str(slices)] = alone(peak_mb, task)
    _print(seconds, memory)


def alone(work: Callable[[Task], Result], task: Task) -> Result:
    """What `work` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, task).result()


def _print(seconds: Figures, memory: Figures) -> None:
    bare = [one + other for one, other in zip(seconds["preprocess"], seconds["model"], strict=True)]
    share = ratio(bare, seconds["predict"])
    table = new_table(f"{seconds['slices']} slices", "part", "slices/s", "[low–high]")
    for name in ("preprocess", "model", "predict"):
        rates = spread([seconds["slices"] / s for s in seconds[name]])
        table.add_row(name, f"{rates['median']:.0f}", f"[{rates['min']:.0f}–{rates['max']:.0f}]")
    console.print(table)
    console.print(f"predict / (preprocess + model): {share['median']:.2f} [{share['min']:.2f}–{share['max']:.2f}]")
    for slices, peak in memory.items():
        console.print(f"{slices} slices: peak memory {peak:.0f} MB")
    libraries = {name: version(name) for name in ("ichsearch", "torch", "numpy")}
    figures = {"seconds": seconds, "share": share, "peak_mb": memory}
    console.out(
        json.dumps(figures | {"cpu": cpu_model(), "python": platform.python_version(), **libraries}), highlight=False
    )


if __name__ == "__main__":
    main()

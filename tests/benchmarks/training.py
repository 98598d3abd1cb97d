"""What a trial costs beyond its arithmetic; on demand, no test.

    python tests/benchmarks/training.py [--gpu] [--backbones resnet18 ...] [--size 64] [--rounds 5]

In: synthetic slices made here. Out: tables, and as the last line all figures as one JSON object. On a CPU: `run_trial`
beside a bare loop over the same number of steps and passes, its inputs ready in RAM. With `--gpu`: images/s of a
trial's training (slices on the GPU, windows, augmentation, AdamW) beside the same loop on one synthetic batch. No Ray.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from measuring import ratio, spread, spread_text, timed
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from slice_sets import make_slices, split_of

from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import CHANNELS
from ichsearch.data.split import Split
from ichsearch.labels import LABELS
from ichsearch.train.config import TrialConfig
from ichsearch.train.setup import Training, make_training, parts_of, pick_device
from ichsearch.train.steps import predict
from ichsearch.train.trial import run_trial

PAPER: Final = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
PACKAGES: Final = ("ichsearch", "torch", "torchvision", "timm", "numpy")
EPOCHS: Final = 2
WARM_UP_STEPS: Final = 10
GPU_STEPS: Final = 60

Figures = dict[str, Any]
console = Console(width=100)


def main() -> None:
    """Measure, print for a reader, and for a program on the last line."""
    options = _options()
    device = torch.device("cuda") if options.gpu else torch.device("cpu")
    measure = _on_gpu if options.gpu else _on_cpu
    figures: Figures = {"setting": _setting(options, device)}
    figures["backbones"] = {name: measure(name, options) for name in options.backbones}
    _show(figures, gpu=options.gpu)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a trial costs beyond its arithmetic.")
    parser.add_argument("--gpu", action="store_true", help="images/s beside a synthetic-tensor loop, bf16")
    parser.add_argument("--backbones", nargs="+", default=None)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--augment", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.backbones = options.backbones or (PAPER if options.gpu else ["resnet18"])
    options.size = options.size or (256 if options.gpu else 64)
    options.batch_size = options.batch_size or (128 if options.gpu else 32)
    return options


def _setting(options: argparse.Namespace, device: torch.device) -> Figures:
    return {
        **{name: getattr(options, name) for name in ("size", "batch_size", "patients", "augment", "rounds")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _config(backbone: str, options: argparse.Namespace) -> TrialConfig:
    return TrialConfig(
        backbone=backbone,
        batch_size=options.batch_size,
        size=options.size,
        augment=options.augment,
        lr=1e-3,
        epochs=EPOCHS,
        min_brain=0.0,
    )


def _data(options: argparse.Namespace) -> tuple[SliceSet, Split]:
    slices = make_slices(patients=options.patients, slices=16, size=options.size)
    return slices, split_of(slices)


def _on_cpu(backbone: str, options: argparse.Namespace) -> Figures:
    """Seconds of `run_trial` and of the bare loop, round by round."""
    config, (slices, split) = _config(backbone, options), _data(options)
    bare = _BareLoop(config, slices, split)
    seconds: dict[str, list[float]] = {"run_trial": [], "bare loop": []}
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="ichsearch-benchmark-") as folder:
            took = {
                "run_trial": timed(lambda name=folder: run_trial(config, slices, split, Path(name)))[1],
                "bare loop": timed(bare.run)[1],
            }
        if number:
            for name, value in took.items():
                seconds[name].append(value)
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": ratio(seconds["bare loop"], seconds["run_trial"]),
    }


class _BareLoop:
    """The same model, optimizer, steps and passes, and nothing else; all inputs stand ready as float tensors."""

    def __init__(self, config: TrialConfig, slices: SliceSet, split: Split) -> None:
        self._config, self._slices = config, slices
        parts = parts_of(slices, split, config.min_brain)
        shape = (CHANNELS[config.channels], config.size, config.size)
        self._train = torch.randn(len(parts.train), *shape)
        self._labels = torch.from_numpy(slices.labels[parts.train])
        self._validation = torch.randn(len(parts.validation), *shape)
        self._rows = parts.train

    def run(self) -> None:
        """All epochs, a pass over the validation slices after each."""
        config = self._config
        training = make_training(config, self._slices, self._rows, None, torch.device("cpu"))
        for group in training.optimizer.param_groups:
            group["lr"] = config.lr
        for _ in range(config.epochs):
            self._epoch(training)
            predict(training.model, self._validation.split(2 * config.batch_size))

    def _epoch(self, training: Training) -> None:
        training.model.train()
        order = np.random.default_rng(0).permutation(len(self._train))
        size = self._config.batch_size
        for start in range(0, len(order) - size + 1, size):
            chosen = torch.from_numpy(order[start : start + size])
            training.optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                training.model(self._train[chosen]), self._labels[chosen]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            training.optimizer.step()


def _on_gpu(backbone: str, options: argparse.Namespace) -> Figures:
    """Images/s of a trial's own training steps, and of the same steps on one batch that never changes."""
    config, (slices, split) = _config(backbone, options), _data(options)
    device = pick_device()
    training = make_training(config, slices, parts_of(slices, split, 0.0).train, None, device)
    for group in training.optimizer.param_groups:
        group["lr"] = config.lr
    training.model.train()
    shape = (config.batch_size, CHANNELS[config.channels], config.size, config.size)
    synthetic = torch.randn(shape, device=device), torch.zeros(config.batch_size, len(LABELS), device=device)
    rate: dict[str, list[float]] = {"trial": [], "synthetic": []}
    for number in range(options.rounds + 1):
        took = {
            "trial": _steps(training, _endless(training)),
            "synthetic": _steps(training, iter(lambda: synthetic, None)),
        }
        if number:
            for name, seconds in took.items():
                rate[name].append(GPU_STEPS * config.batch_size / seconds)
    return {
        "images_per_s": {name: spread(values) for name, values in rate.items()},
        "ratio": ratio(rate["trial"], rate["synthetic"]),
        "micro_batch": training.stepper.micro.size,
        "peak_memory_mib": torch.cuda.max_memory_allocated(device) // 2**20,
    }


def _endless(training: Training) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch = 0
    while True:
        yield from training.batches.train(epoch)
        epoch += 1


def _steps(training: Training, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds of `GPU_STEPS` steps after some that warm up."""
    for inputs, labels in islice(batches, WARM_UP_STEPS):
        training.stepper.step(inputs, labels)
    torch.cuda.synchronize()
    start = perf_counter()
    for inputs, labels in islice(batches, GPU_STEPS):
        training.stepper.step(inputs, labels)
    torch.cuda.synchronize()
    return perf_counter() - start


def _show(figures: Figures, *, gpu: bool) -> None:
    setting = figures["setting"]
    console.print(
        f"{setting['size']} px, batches of {setting['batch_size']}, {setting['rounds']} interleaved rounds; median "
        f"\\[min–max]; {setting['device']}, {setting['threads']} threads, load average {setting['load_average']}"
    )
    kind, unit, digits = ("images_per_s", "images/s", 0) if gpu else ("seconds", "s", 2)
    table = Table("backbone", *next(iter(figures["backbones"].values()))[kind], "ratio")
    for name, measured in figures["backbones"].items():
        cells = [f"{spread_text(values, digits)} {unit}" for values in measured[kind].values()]
        table.add_row(name, *cells, spread_text(measured["ratio"], 3))
    console.print(table)


if __name__ == "__main__":
    main()

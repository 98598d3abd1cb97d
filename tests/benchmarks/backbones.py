"""The paper's five backbones on one data set with the default recipe: what each is worth, and what it costs.

    python tests/benchmarks/backbones.py --data SHARDS [--size 64] [--epochs 6] [--seed 0] [--backbones ...]

In: a folder of shards. Out: a table and, as the last line, all figures as one JSON object. Each backbone gets the LR
finder's suggestion and one complete trial; scores are of the validation patients, with 95 % intervals over resampled
patients, and beside them stands the rule that sees slice position alone.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, Final

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.split import Split, make_split
from ichsearch.labels import ANY, LABELS
from ichsearch.report.baseline_rules import position_baseline
from ichsearch.report.bootstrap import Interval
from ichsearch.report.statistics import as_predictions, resampled_scores
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.lr_finder import find_lr
from ichsearch.train.setup import parts_of
from ichsearch.train.trial import run_trial

PAPER: Final = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
BATCH: Final = {"densenet121": 16}
PACKAGES: Final = ("ichsearch", "torch", "torchvision", "timm", "numpy")

Figures = dict[str, Any]
console = Console(width=140)


def main() -> None:
    """Train all, print a row as each ends, and the figures on the last line."""
    options = _options()
    slices = open_slices(options.data, options.size)
    split = make_split(slices.table, slices.fingerprint, seed=0)
    figures: Figures = {"setting": _setting(options, slices, split), "backbones": {}}
    for name in options.backbones:
        with tempfile.TemporaryDirectory(prefix="ichsearch-benchmark-") as folder:
            figures["backbones"][name] = _judge(name, slices, split, Path(folder), options)
        console.print(f"{name}: {figures['backbones'][name]['seconds']:.0f} s")
    _show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's five backbones with the default recipe.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--augment", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbones", nargs="+", default=PAPER)
    return parser.parse_args()


def _setting(options: argparse.Namespace, slices: SliceSet, split: Split) -> Figures:
    parts = parts_of(slices, split, 0.02)
    truth = slices.labels[parts.validation][:, LABELS.index(ANY)]
    return {
        **{name: getattr(options, name) for name in ("size", "epochs", "batch_size", "augment", "seed")},
        "train_slices": len(parts.train),
        "validation_slices": len(parts.validation),
        "validation_positive": int(truth.sum()),
        "validation_patients": int(slices.table["patient"].iloc[parts.validation].nunique()),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _judge(backbone: str, slices: SliceSet, split: Split, folder: Path, options: argparse.Namespace) -> Figures:
    start_s = monotonic()
    inputs = InputConfig(
        backbone=backbone,
        batch_size=BATCH.get(backbone, options.batch_size),
        size=options.size,
        augment=options.augment,
        seed=options.seed,
    )
    curve = find_lr(inputs, slices, split, steps=60)
    finder_s = monotonic() - start_s
    config = TrialConfig(**inputs.model_dump(), epochs=options.epochs, lr=curve.lr)
    result = run_trial(config, slices, split, folder)
    seconds = monotonic() - start_s
    scores = _scores(pd.read_parquet(folder / "predictions.parquet"), slices, split)
    return {
        "lr": curve.lr,
        "lr_suggestions": curve.suggestions,
        "best_epoch": result.best_epoch,
        **{name: interval._asdict() for name, interval in scores.items() if interval},
        "lr_finder_s": finder_s,
        "seconds": seconds,
    }


def _scores(predictions: pd.DataFrame, slices: SliceSet, split: Split) -> dict[str, Interval | None]:
    parts, position = parts_of(slices, split, 0.0), slices.relative_position
    rates = position_baseline(position[parts.train], slices.labels[parts.train], position[parts.validation])
    baseline = predictions.assign(**{f"probability_{label}": rates[:, i] for i, label in enumerate(LABELS)})
    scores, rule = (resampled_scores(as_predictions(frame)) for frame in (predictions, baseline))
    return {
        "auroc": scores["auroc_any"].interval,
        "patient_auroc": scores["patient_auroc_any"].interval,
        "log_loss": scores["log_loss"].interval,
        "auroc_minus_position": scores["auroc_any"].minus(rule["auroc_any"]).interval,
    }


def _show(figures: Figures) -> None:
    setting = figures["setting"]
    console.print(
        f"{setting['train_slices']} slices to train, {setting['validation_slices']} of "
        f"{setting['validation_patients']} patients to validate ({setting['validation_positive']} positive); "
        f"{setting['size']} px, {setting['epochs']} epochs, {setting['threads']} threads; 95 % over patients"
    )
    names = ("auroc", "patient_auroc", "log_loss", "auroc_minus_position")
    table = Table("backbone", "lr", *names, "seconds")
    for backbone, measured in figures["backbones"].items():
        cells = [f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in map(measured.get, names)]
        table.add_row(backbone, f"{measured['lr']:.2g}", *cells, f"{measured['seconds']:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()

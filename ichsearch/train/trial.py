"""Train one configuration and score it; the same function as a plain call, under Ray, and on a bare GPU machine.

In: a `TrialConfig`, a `SliceSet`, a `Split` and a folder. Out: `config.json`, `metrics.json`, `predictions.parquet`
(validation slices, best epoch), `weights.safetensors` (best epoch), and a `TrialResult`. While it trains, the folder
holds checkpoints: called again, it goes on from the newest and ends with the same numbers.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.files import read_json, write_json, written_aside
from ichsearch.model.backbones import parameters_m
from ichsearch.train.checkpoint import save_weights
from ichsearch.train.config import TrialConfig, TrialFailedError
from ichsearch.train.metrics import Scores
from ichsearch.train.setup import pick_device
from ichsearch.train.trainer import EpochCallback, Trainer


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial is ranked by and what it cost."""

    score: float
    best_epoch: int
    metrics: Scores
    seconds: float
    images_per_s: float
    parameters_m: float
    micro_batch: int


def run_trial(
    config: TrialConfig,
    slices: SliceSet,
    split: Split,
    folder: Path,
    *,
    weights: Path | None = None,
    device: torch.device | None = None,
    on_epoch: EpochCallback = lambda record: None,
    checkpoint_every_s: float = math.inf,
) -> TrialResult:
    """Train for `config.epochs` epochs and score the best epoch on the validation fold.

    Args:
        config: what to train.
        slices: the data set at `config.size`.
        split: the patients' folds.
        folder: the trial's own; an interrupted trial goes on from it, a finished one is not run again.
        weights: safetensors of pretrained weights; None starts from random ones.
        device: None takes the GPU if there is one.
        on_epoch: called after each epoch with its record (epoch, losses, scores, seconds).
        checkpoint_every_s: how often to write a checkpoint, within epochs too; inf: now and then between them.

    Raises:
        TrialFailedError: the loss runs away, the score is undefined, or memory does not suffice in any way.
    """
    _start_folder(folder, config)
    if (known := read_result(folder)) is not None:
        return known
    try:
        trainer = Trainer(
            config,
            slices,
            split,
            folder,
            weights=weights,
            device=device or pick_device(),
            checkpoint_every_s=checkpoint_every_s,
        )
        trainer.run(on_epoch)
    except TrialFailedError:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nobody goes on from there
        raise
    except torch.OutOfMemoryError as error:  # not in a step, which knows how to shrink
        raise TrialFailedError("out_of_memory", "the model, its optimizer or its slices do not fit") from error
    return _finish(trainer, config, slices, folder)


def _start_folder(folder: Path, config: TrialConfig) -> None:
    """Keep the configuration; what a trial of another one left is not gone on from."""
    path, content = folder / "config.json", config.model_dump()
    for leftover in folder.glob(".*.aside"):  # of a killed worker
        leftover.unlink()
    if path.is_file() and read_json(path) != content:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        (folder / "metrics.json").unlink(missing_ok=True)
    write_json(path, content)


def read_result(folder: Path) -> TrialResult | None:
    """The result of a trial that has finished in this folder; None for any other."""
    path = folder / "metrics.json"
    saved = read_json(path) if path.is_file() else {}
    return TrialResult(**saved["result"]) if saved.get("result") else None


def _finish(trainer: Trainer, config: TrialConfig, slices: SliceSet, folder: Path) -> TrialResult:
    best, history = trainer.best, trainer.history
    trained_s = sum(record["trained_s"] for record in history)
    result = TrialResult(
        score=best.score,
        best_epoch=best.epoch,
        metrics=best.metrics,
        seconds=sum(record["seconds"] for record in history),
        images_per_s=config.epochs * trainer.images / trained_s,
        parameters_m=parameters_m(trainer.model),
        micro_batch=trainer.micro_batch,
    )
    with written_aside(folder / "predictions.parquet") as aside:
        _predictions(trainer, config, slices).to_parquet(aside, index=False)
    with written_aside(folder / "weights.safetensors") as aside:
        save_weights(aside, best.weights)
    write_json(folder / "metrics.json", {"epochs": history, "result": result.__dict__})
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return result


def _predictions(trainer: Trainer, config: TrialConfig, slices: SliceSet) -> pd.DataFrame:
    """A row a validation slice: its slice, its patient, and truth and probability of each label."""
    table = slices.table.iloc[trainer.validation_rows]
    frame = pd.DataFrame({"slice": table["slice"].to_numpy(), "patient": table["patient"].to_numpy()})
    for column, label in enumerate(config.labels):
        frame[f"label_{label}"] = trainer.truth[:, column].astype(np.int8)
        frame[f"probability_{label}"] = trainer.best.probabilities[:, column].astype(np.float32)
    return frame

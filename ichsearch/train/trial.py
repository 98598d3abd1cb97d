"""Train one configuration and score it; the same function as a plain call, under Ray, and on a bare GPU machine.

In: a `TrialConfig`, a `SliceSet`, a `Split` and a folder. Out: `config.json`, `metrics.json`, `predictions.parquet`
(validation slices, best epoch), `weights.safetensors` (best epoch), and a `TrialResult`. While it trains, the folder
holds checkpoints: called again, it goes on from the newest and ends with the same numbers.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.files import read_json, write_json, written_aside
from ichsearch.labels import LABELS
from ichsearch.model.backbones import parameters_m
from ichsearch.train.checkpoint import TrainState, load_checkpoint, save_checkpoint, save_weights
from ichsearch.train.config import TrialConfig, TrialFailedError
from ichsearch.train.metrics import FloatArray, Scores, better, score
from ichsearch.train.one_cycle import one_cycle
from ichsearch.train.setup import autocast, make_batches, make_model, make_optimizer, parts_of, pick_device, train_step

CHECKPOINT_EVERY_S: Final = 30.0
STEPS_BETWEEN_CHECKS: Final = 8
"""Looking at the loss waits for the GPU, so it is looked at every few steps; a trial with NaN ends within these."""


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial is ranked by and what it cost."""

    score: float
    best_epoch: int
    metrics: Scores
    seconds: float
    images_per_s: float
    parameters_m: float


EpochCallback = Callable[[dict[str, Any]], None]


def run_trial(
    config: TrialConfig,
    slices: SliceSet,
    split: Split,
    folder: Path,
    *,
    weights: Path | None = None,
    device: torch.device | None = None,
    on_epoch: EpochCallback = lambda record: None,
) -> TrialResult:
    """Train for `config.epochs` epochs, one cycle, and score the best epoch on the validation fold.

    Args:
        config: what to train.
        slices: the data set at `config.size`.
        split: the patients' folds.
        folder: the trial's own; an interrupted trial goes on from it, a finished one is not run again.
        weights: safetensors of pretrained weights; None starts from random ones.
        device: None takes the GPU if there is one.
        on_epoch: called after each epoch with its record (epoch, losses, scores, seconds).

    Raises:
        TrialFailedError: the loss is not finite, or the memory does not suffice.
    """
    device = device or pick_device()
    _start_folder(folder, config)
    if (known := read_result(folder)) is not None:
        return known
    try:
        trainer = _Trainer(config, slices, split, folder, weights, device)
        trainer.run(on_epoch)
        return trainer.finish()
    except torch.cuda.OutOfMemoryError as error:
        raise TrialFailedError("out_of_memory", f"batch of {config.batch_size} at {config.size} px") from error


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


class _Trainer:
    """The state of a trial between epochs."""

    def __init__(
        self,
        config: TrialConfig,
        slices: SliceSet,
        split: Split,
        folder: Path,
        weights: Path | None,
        device: torch.device,
    ) -> None:
        self._config, self._folder, self._device, self._slices = config, folder, device, slices
        parts = parts_of(slices, split, config.min_brain)
        self._validation = parts.validation
        self._truth = slices.labels[parts.validation]
        self._patients = slices.table["patient"].to_numpy(np.object_)[parts.validation]
        self._train_batches = make_batches(slices, parts.train, config, device)
        self._validation_batches = make_batches(slices, parts.validation, config, device)
        model = make_model(config, weights, device)
        self._state = TrainState(model, make_optimizer(model, config), {}, {"epochs": [], "best": None})
        load_checkpoint(folder / "checkpoint", self._state)

    @property
    def _history(self) -> list[dict[str, Any]]:
        epochs: list[dict[str, Any]] = self._state.records["epochs"]
        return epochs

    def run(self, on_epoch: EpochCallback) -> None:
        saved_at = time.monotonic()
        for epoch in range(len(self._history), self._config.epochs):
            record = self._epoch(epoch)
            write_json(self._folder / "metrics.json", {"epochs": self._history})
            last = epoch + 1 == self._config.epochs
            if not last and time.monotonic() - saved_at >= CHECKPOINT_EVERY_S:
                save_checkpoint(self._folder / "checkpoint", epoch + 1, self._state)
                saved_at = time.monotonic()
            on_epoch(record)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        torch.manual_seed(self._config.seed * 1_000_003 + epoch)  # dropout; whoever resumes here draws the same
        start = time.monotonic()
        train_loss = self._train(epoch)
        trained_s = time.monotonic() - start
        probabilities = self._predict()
        scores = score(self._truth, probabilities, LABELS, self._patients)
        record = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "trained_s": trained_s,
            "seconds": time.monotonic() - start,
            **scores,
        }
        self._history.append(record)
        self._keep_if_best(epoch, scores, probabilities)
        return record

    def _train(self, epoch: int) -> float:
        state, config = self._state, self._config
        steps = self._train_batches.steps
        total = torch.zeros((), device=self._device)
        state.model.train()
        for step, (inputs, labels) in enumerate(self._train_batches.train(epoch)):
            lr, momentum = one_cycle(epoch * steps + step, config.epochs * steps, config.lr)
            set_momentum(state.optimizer, momentum)
            total += train_step(state.model, state.optimizer, inputs, labels, lr)
            if step % STEPS_BETWEEN_CHECKS == 0 or step == steps - 1:
                _require_finite(total, epoch)
        return float(total) / steps

    def _predict(self) -> FloatArray:
        probabilities = predict(self._state.model, self._validation_batches, self._device)
        if not np.isfinite(probabilities).all():
            raise TrialFailedError("diverged", "a prediction is not finite")
        return probabilities

    def _keep_if_best(self, epoch: int, scores: Scores, probabilities: FloatArray) -> None:
        value = scores[self._config.metric]
        assert value is not None
        best = self._state.records["best"]
        if better(self._config.metric, value, best and best["score"]):
            self._state.records["best"] = {"score": value, "epoch": epoch + 1, "metrics": scores}
            self._state.best_weights = _copied(self._state.model)
            self._state.best_probabilities = torch.from_numpy(probabilities)

    def _write_predictions(self) -> None:
        probabilities = self._state.best_probabilities.numpy()
        table = self._slices.table.iloc[self._validation]
        frame = pd.DataFrame({"slice": table["slice"].to_numpy(), "patient": table["patient"].to_numpy()})
        for column, label in enumerate(LABELS):
            frame[f"label_{label}"] = self._truth[:, column].astype(np.int8)
            frame[f"probability_{label}"] = probabilities[:, column].astype(np.float32)
        with written_aside(self._folder / "predictions.parquet") as aside:
            frame.to_parquet(aside, index=False)

    def finish(self) -> TrialResult:
        best = self._state.records["best"]
        trained_s = sum(record["trained_s"] for record in self._history)
        images = self._config.epochs * self._train_batches.images
        result = TrialResult(
            score=best["score"],
            best_epoch=best["epoch"],
            metrics=best["metrics"],
            seconds=sum(record["seconds"] for record in self._history),
            images_per_s=images / trained_s,
            parameters_m=parameters_m(self._state.model),
        )
        self._write_predictions()
        with written_aside(self._folder / "weights.safetensors") as aside:
            save_weights(aside, self._state.best_weights)
        write_json(self._folder / "metrics.json", {"epochs": self._history, "result": result.__dict__})
        shutil.rmtree(self._folder / "checkpoint", ignore_errors=True)
        return result


def predict(model: nn.Module, batches: Batches, device: torch.device) -> FloatArray:
    """Probabilities of all slices of `batches`, (N, 6) float32, the model in evaluation mode."""
    model.eval()
    with torch.inference_mode(), autocast(device):
        logits = [model(inputs).float() for inputs in batches.evaluate()]
    probabilities: FloatArray = torch.cat(logits).sigmoid().cpu().numpy()
    return probabilities


def set_momentum(optimizer: torch.optim.Optimizer, momentum: float) -> None:
    """Adam's first beta is its momentum."""
    for group in optimizer.param_groups:
        group["betas"] = (momentum, group["betas"][1])


def _require_finite(total: Tensor, epoch: int) -> None:
    if not math.isfinite(float(total)):
        raise TrialFailedError("diverged", f"the loss is not finite in epoch {epoch + 1}")


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}

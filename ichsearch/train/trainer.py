"""The loop of a trial: epochs of steps, each epoch judged, the best one kept, and checkpoints to go on from.

In: a `TrialConfig`, data, and the trial's folder. Out: records of epochs, and files in the folder.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.files import write_json
from ichsearch.labels import LABELS
from ichsearch.model.groups import freeze_body, unfreeze
from ichsearch.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ichsearch.train.config import TrialConfig, TrialFailedError
from ichsearch.train.guard import LossGuard
from ichsearch.train.memory import MicroBatch
from ichsearch.train.metrics import FloatArray, Scores, better, score
from ichsearch.train.optimizer import set_step
from ichsearch.train.schedule import phase_of, phases, step_at
from ichsearch.train.setup import make_training, parts_of
from ichsearch.train.steps import predict

SECONDS_BETWEEN_CHECKPOINTS: Final = 30.0
"""At the ends of epochs, at most; within an epoch a checkpoint is written only when it is asked for."""

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Best:
    """The best epoch of a trial, counted from 1."""

    score: float
    epoch: int
    metrics: Scores
    weights: dict[str, Tensor]
    probabilities: FloatArray


class Trainer:
    """A trial between its first and its last step; made in a folder with checkpoints, it goes on from the newest."""

    def __init__(
        self,
        config: TrialConfig,
        slices: SliceSet,
        split: Split,
        folder: Path,
        *,
        weights: Path | None,
        device: torch.device,
        checkpoint_every_s: float,
    ) -> None:
        self._config, self._folder, self._checkpoint_every_s = config, folder, checkpoint_every_s
        parts = parts_of(slices, split, config.min_brain, config.task)
        # Before the training: that finds out how large a batch fits into what is left of a GPU's memory.
        self._validation = Batches(slices, parts.validation, config.recipe, device)
        self.validation_rows = parts.validation
        self.truth = slices.labels[parts.validation][:, [LABELS.index(name) for name in config.labels]]
        self._patients = slices.table["patient"].to_numpy(np.str_)[parts.validation]
        self._training = make_training(config, slices, parts.train, weights, device)
        self._evaluated = MicroBatch(2 * self._training.stepper.micro.size)  # nothing is kept for a backward pass
        self._plan, self._pretrained = phases(config), weights is not None
        self._guard = LossGuard()
        records: dict[str, Any] = {"epochs": [], "best": None, "within": None}
        self._state = TrainState(self._training.model, self._training.optimizer, {}, records)
        self._resumed = load_checkpoint(folder / "checkpoint", self._state)
        if self._resumed:
            self._training.stepper.restore(self._state.records["stepper"])
            self._guard.restore(self._state.records["guard"])
        self._saved_at_s = time.monotonic()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all finished epochs."""
        epochs: list[dict[str, Any]] = self._state.records["epochs"]
        return epochs

    @property
    def model(self) -> nn.Module:
        """The model as it stands."""
        return self._training.model

    @property
    def micro_batch(self) -> int:
        """How many slices of a batch went through the model at once, in the end."""
        return self._training.stepper.micro.size

    @property
    def best(self) -> Best:
        """The best epoch so far."""
        known = self._state.records["best"]
        return Best(**known, weights=self._state.best_weights, probabilities=self._state.best_probabilities.numpy())

    @property
    def images(self) -> int:
        """Slices shown in an epoch of training."""
        return self._training.batches.images

    def run(self, on_epoch: EpochCallback) -> None:
        """Train all epochs that are missing."""
        for epoch in range(len(self.history), self._config.epochs):
            record = self._epoch(epoch)
            write_json(self._folder / "metrics.json", {"epochs": self.history})
            waited_s = time.monotonic() - self._saved_at_s
            every_s = min(SECONDS_BETWEEN_CHECKPOINTS, self._checkpoint_every_s)
            if epoch + 1 < self._config.epochs and waited_s >= every_s:
                self._save(epoch + 1)
            on_epoch(record)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        within = self._state.records["within"] or {"step": 0, "loss": 0.0, "trained_s": 0.0}
        if not (self._resumed and within["step"]):
            torch.manual_seed(self._config.seed * 1_000_003 + epoch)  # dropout; whoever resumes here draws the same
        self._resumed = False
        phase, _ = phase_of(self._plan, epoch)
        (freeze_body if phase.body_frozen and self._pretrained else unfreeze)(self.model)
        train_loss, trained_s = self._train(epoch, **within)
        self._state.records["within"] = None
        start_s = time.monotonic()
        probabilities = self._predict()
        scores = score(self.truth, probabilities, self._config.labels, self._patients)
        record = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "trained_s": trained_s,
            "seconds": trained_s + time.monotonic() - start_s,
            "micro_batch": self.micro_batch,
            **scores,
        }
        self.history.append(record)
        self._keep_if_best(epoch, scores, probabilities)
        return record

    def _train(self, epoch: int, step: int, loss: float, trained_s: float) -> tuple[float, float]:
        """Steps from `step` to the end of an epoch, of which the earlier ones gave `loss` and took `trained_s`."""
        batches, steps = self._training.batches, self._training.batches.steps
        total = torch.tensor(loss, device=batches.labels.device)
        start_s = time.monotonic()
        self.model.train()
        for number, (inputs, labels) in enumerate(batches.train(epoch, first_step=step), start=step):
            set_step(self._training.optimizer, *step_at(self._plan, epoch, number, steps))
            loss_now = self._training.stepper.step(inputs, labels)
            self._guard.watch(loss_now)
            total += loss_now
            if number + 1 < steps and time.monotonic() - self._saved_at_s >= self._checkpoint_every_s:
                passed_s = trained_s + time.monotonic() - start_s
                self._state.records["within"] = {"step": number + 1, "loss": float(total), "trained_s": passed_s}
                self._save(epoch, number + 1)
        self._guard.look()
        return float(total) / steps, trained_s + time.monotonic() - start_s

    def _save(self, epoch: int, step: int = 0) -> None:
        self._guard.look()
        self._state.records |= {"stepper": self._training.stepper.state(), "guard": self._guard.state()}
        save_checkpoint(self._folder / "checkpoint", epoch, self._state, step)
        self._saved_at_s = time.monotonic()

    def _predict(self) -> FloatArray:
        stepper = self._training.stepper
        probabilities = predict(self.model, self._validation.evaluate(), micro=self._evaluated, kind=stepper.kind)
        if not np.isfinite(probabilities).all():
            raise TrialFailedError("diverged", "a prediction is not finite")
        return probabilities

    def _keep_if_best(self, epoch: int, scores: Scores, probabilities: FloatArray) -> None:
        value = scores[self._config.metric]
        if value is None:
            raise TrialFailedError("undefined_score", f"{self._config.metric} of slices of one class")
        best = self._state.records["best"]
        if better(self._config.metric, value, best and best["score"]):
            self._state.records["best"] = {"score": value, "epoch": epoch + 1, "metrics": scores}
            self._state.best_weights = _copied(self.model)
            self._state.best_probabilities = torch.from_numpy(probabilities)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}

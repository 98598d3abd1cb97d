"""The loop of a trial: epochs of steps, each epoch judged, the best one kept, and checkpoints to go on from.

In: a `Start`, data, and the trial's folder. Out: records of epochs, and files in the folder. Of several ranks all train
and predict; the first one alone judges, watches the clock, and writes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.files import write_json
from ichsearch.model.backbones import parameters_m
from ichsearch.model.groups import freeze_body, unfreeze
from ichsearch.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ichsearch.train.config import TrialFailedError, TrialStoppedError
from ichsearch.train.guard import LossGuard
from ichsearch.train.lineage import CHECKPOINT, METRICS, STATE, Start
from ichsearch.train.memory import MicroBatch
from ichsearch.train.metrics import FloatArray, Scores, better, score
from ichsearch.train.optimizer import set_step
from ichsearch.train.parallel import ALONE, Ranks
from ichsearch.train.predictions import truth_of
from ichsearch.train.schedule import Step, phase_of, phases, step_at
from ichsearch.train.setup import make_training, parts_of
from ichsearch.train.steps import predict

SECONDS_BETWEEN_CHECKPOINTS: Final = 30.0
"""At the ends of epochs, at most; within an epoch a checkpoint is written only when it is asked for."""
CHECKPOINT_SHARE: Final = 0.02
"""The share of a trial's time that checkpoints at the ends of epochs may take: short trials lose little, too."""

FIRST_SAVE_S: Final = 0.1
"""What a checkpoint is taken to cost until one was written."""

EpochCallback = Callable[[dict[str, Any]], None]
MustStop = Callable[[], bool]


@dataclass(frozen=True)
class Best:
    """The best epoch of a trial, counted from 1 where its chain of parents began."""

    score: float
    epoch: int
    metrics: Scores
    weights: dict[str, Tensor]
    probabilities: FloatArray


class Trainer:
    """A trial between its first and its last step."""

    def __init__(
        self,
        start: Start,
        slices: SliceSet,
        split: Split,
        folder: Path,
        *,
        weights: Path | None,
        device: torch.device,
        checkpoint_every_s: float,
        limit_s: float,
        ranks: Ranks = ALONE,
        must_stop: MustStop,
    ) -> None:
        config = self._config = start.config
        self._ranks = ranks
        self._folder, self._checkpoint_every_s, self._limit_s = folder, checkpoint_every_s, limit_s
        self._must_stop = must_stop
        parts = parts_of(slices, split, config.min_brain, config.task)
        # Before the training: that finds out how large a batch fits into what is left of a GPU's memory.
        judged = parts.validation[ranks.share.part(len(parts.validation))]
        self._validation = Batches(slices, judged, config.recipe, device)
        self.validation_rows = parts.validation
        self.truth = truth_of(slices, parts.validation, config.labels)
        self._patients = slices.table["patient"].to_numpy(np.str_)[parts.validation]
        self._training = make_training(config, slices, parts.train, weights, device, ranks)
        self._evaluated = MicroBatch(2 * self._training.stepper.micro.size)  # nothing is kept for a backward pass
        self._plan, self._pretrained = phases(config), weights is not None
        self._guard, self.parameters_m = LossGuard(), parameters_m(self.model)
        records: dict[str, Any] = {"epochs": [], "best": None, "within": None}
        self._state = TrainState(self._training.model, self._training.optimizer, {}, records)
        self._resumed = start.checkpoint is not None
        if start.checkpoint:
            load_checkpoint(start.checkpoint, self._state)
            self._training.stepper.restore(self._state.records["stepper"])
            self._guard.restore(self._state.records["guard"])
        elif start.weights:
            self.model.load_state_dict(load_file(start.weights))
        self._saved_at_s, self._save_s = time.monotonic(), FIRST_SAVE_S

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all finished epochs, those before a piece of a cycle too."""
        epochs: list[dict[str, Any]] = self._state.records["epochs"]
        return epochs

    @property
    def own_history(self) -> list[dict[str, Any]]:
        """The records of the epochs that this trial has trained."""
        return [record for record in self.history if record["epoch"] > self._config.epochs_before]

    @property
    def epochs_done(self) -> int:
        """All finished epochs, those before the trial too."""
        return self._config.epochs_before + len(self.own_history)

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
        for epoch in range(self.epochs_done, self._config.epochs):
            trained = self._trained(epoch)
            start_s = time.monotonic()
            probabilities = self._predict(epoch)
            if not self._ranks.first:
                continue
            record = self._judged(epoch, probabilities, *trained, start_s)
            write_json(self._folder / METRICS, {"epochs": self.history})
            waited_s = time.monotonic() - self._saved_at_s
            worth_s = min(SECONDS_BETWEEN_CHECKPOINTS, self._save_s / CHECKPOINT_SHARE)
            if epoch + 1 < self._config.epochs and waited_s >= min(worth_s, self._checkpoint_every_s):
                self._save(CHECKPOINT, epoch + 1)
            on_epoch(record)

    def keep_state(self) -> None:
        """Keep what a child needs to train the next piece of this cycle, if there is one."""
        if self._config.epochs < self._config.cycle.stop:
            self._save(STATE, self._config.epochs)

    def _trained(self, epoch: int) -> tuple[float, float]:
        """Train an epoch, or what is left of it; its loss and seconds."""
        within = self._state.records["within"] or {"step": 0, "loss": 0.0, "trained_s": 0.0}
        if not (self._resumed and within["step"]):
            torch.manual_seed(self._config.seed * 1_000_003 + epoch)  # dropout; whoever resumes here draws the same
        self._resumed = False
        phase, _ = phase_of(self._plan, epoch - self._config.cycle.start)
        (freeze_body if phase.body_frozen and self._pretrained else unfreeze)(self.model)
        return self._train(epoch, **within)

    def _judged(
        self, epoch: int, probabilities: FloatArray, train_loss: float, trained_s: float, start_s: float
    ) -> dict[str, Any]:
        """The record of an epoch, of which judging began at `start_s`."""
        scores = score(self.truth, probabilities, self._config.labels, self._patients)
        record = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "trained_s": trained_s,
            "seconds": trained_s + time.monotonic() - start_s,
            "images_per_s": self.images / trained_s,
            "micro_batch": self.micro_batch,
            "lr": self._step_at(epoch, self._training.batches.steps - 1).lrs[-1],
            **scores,
        }
        self.history.append(record)
        self._keep_if_best(epoch, scores, probabilities)
        return record

    def _train(self, epoch: int, step: int, loss: float, trained_s: float) -> tuple[float, float]:
        """Steps from `step` to the end of an epoch, of which the earlier ones gave `loss` and took `trained_s`."""
        batches, steps = self._training.batches, self._training.batches.steps
        total = torch.tensor(loss, device=batches.labels.device)
        start_s = time.monotonic() - trained_s
        self.model.train()
        for number, (inputs, labels) in enumerate(batches.train(epoch, first_step=step), start=step):
            self._ranks.reseed(self._config.seed, epoch, number)
            set_step(self._training.optimizer, *self._step_at(epoch, number))
            loss_now = self._training.stepper.step(inputs, labels)
            self._guard.watch(loss_now)
            total += loss_now
            if not self._ranks.first:
                continue
            passed_s = time.monotonic() - start_s
            self._require_time(passed_s)
            stops = self._must_stop()
            if stops or (number + 1 < steps and time.monotonic() - self._saved_at_s >= self._checkpoint_every_s):
                self._note_within(number + 1, float(total), passed_s)
                self._save(CHECKPOINT, epoch, number + 1)
            if stops:
                raise TrialStoppedError
        self._guard.look()
        trained_s = time.monotonic() - start_s
        self._note_within(steps, float(total), trained_s)
        return float(total) / steps, trained_s

    def _note_within(self, step: int, loss: float, trained_s: float) -> None:
        """Where the epoch stands, for the checkpoints until it has been judged."""
        self._state.records["within"] = {"step": step, "loss": loss, "trained_s": trained_s}

    def _step_at(self, epoch: int, step: int) -> Step:
        return step_at(self._plan, epoch - self._config.cycle.start, step, self._training.batches.steps)

    def _require_time(self, passed_s: float) -> None:
        """Ends a trial whose own epochs, the one that has been training for `passed_s` included, took too long."""
        if passed_s + sum(record["seconds"] for record in self.own_history) > self._limit_s:
            raise TrialFailedError("timed_out", f"it has trained for more than {self._limit_s:g} s")

    def _save(self, folder: str, epoch: int, step: int = 0) -> None:
        self._guard.look()
        start_s = time.monotonic()
        self._state.records |= {"stepper": self._training.stepper.state(), "guard": self._guard.state()}
        save_checkpoint(self._folder / folder, epoch, self._state, step)
        self._saved_at_s = time.monotonic()
        self._save_s = self._saved_at_s - start_s

    def _until_stopped(self, epoch: int, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Batches of a validation, which begins anew where it was stopped: the epoch's training is not lost."""
        for inputs in batches:
            if self._ranks.first and self._must_stop():
                self._save(CHECKPOINT, epoch, self._training.batches.steps)
                raise TrialStoppedError
            yield inputs

    def _predict(self, epoch: int) -> FloatArray:
        stepper = self._training.stepper
        inputs = self._until_stopped(epoch, self._validation.evaluate())
        probabilities = self._ranks.gathered(predict(self.model, inputs, micro=self._evaluated, kind=stepper.kind))
        self._state.records["within"] = None
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

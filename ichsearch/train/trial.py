"""Train one configuration and score it; the same function as a plain call, under Ray, and on a bare GPU machine.

In: a `TrialConfig`, a `SliceSet`, a `Split` and a folder. Out: `config.json`, `lineage.json`, `metrics.json`,
`predictions.parquet` (validation slices, best epoch), `weights.safetensors` (best epoch), `events/` (TensorBoard), and
a `TrialResult`; of a piece of a longer cycle `state/` too, from which a child goes on. While it trains, the folder
holds checkpoints: called again, it goes on from the newest and ends with the same numbers. Several processes that call
it with their `Ranks` train one trial together.
"""

import fcntl
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.errors import AlreadyRunningError
from ichsearch.files import read_json, sha256_of, write_json, written_aside
from ichsearch.train.checkpoint import save_weights
from ichsearch.train.config import TrialConfig, TrialFailedError
from ichsearch.train.events import event_file
from ichsearch.train.lineage import (
    CHECKPOINT,
    EVENTS,
    METRICS,
    PREDICTIONS,
    WEIGHTS,
    Lineage,
    Start,
    claim,
    find_start,
    lineage_of,
)
from ichsearch.train.metrics import Scores
from ichsearch.train.parallel import ALONE, Ranks
from ichsearch.train.predictions import prediction_table
from ichsearch.train.setup import pick_device
from ichsearch.train.trainer import EpochCallback, MustStop, Trainer

OTHER_WRITER_S: Final = 20.0
"""How long the last writer of a trial's folder is waited for."""


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial is ranked by and what it cost.

    Attributes:
        score: of the best epoch; of a piece of a cycle, the best of its parents' epochs counts too.
        best_epoch: counted from 1 where the chain of parents began.
        metrics: all scores of that epoch.
        seconds: of training and validation, the parents' not counted.
        images_per_s: slices trained on in a second of training.
        parameters_m: of the model, in millions.
        micro_batch: how many slices of a batch went through the model at once, on each rank, in the end.
        epochs_trained: epochs of the trial itself; all of its chain if it restarted.
        restarted: a child whose parent had left nothing that it could go on from.
        memory_mb: most memory of the first rank's GPU that tensors took, in 1e6 bytes; None on a CPU.
    """

    score: float
    best_epoch: int
    metrics: Scores
    seconds: float
    images_per_s: float
    parameters_m: float
    micro_batch: int
    epochs_trained: int
    restarted: bool = False
    memory_mb: float | None = None


def run_trial(
    config: TrialConfig,
    slices: SliceSet,
    split: Split,
    folder: Path,
    *,
    weights: Path | None = None,
    parent: Path | None = None,
    device: torch.device | None = None,
    on_epoch: EpochCallback = lambda record: None,
    checkpoint_every_s: float = math.inf,
    limit_s: float = math.inf,
    ranks: Ranks = ALONE,
    must_stop: MustStop = lambda: False,
) -> TrialResult:
    """Train until the chain has `config.epochs` epochs and score the best one on the validation fold.

    A child starts from its parent's best weights with a new cycle, or, if `config.cycle_epochs` is given, goes on from
    the parent's last state. Where these are gone or damaged it restarts: it trains all epochs from its own start.

    Args:
        config: what to train.
        slices: the data set at `config.size`.
        split: the patients' folds.
        folder: the trial's own; an interrupted trial goes on from it, a finished one is not run again.
        weights: safetensors of pretrained weights; None starts from random ones.
        parent: folder of the trial that has trained the first `config.epochs_before` epochs.
        device: None takes the GPU if there is one.
        on_epoch: called after each epoch with its record (epoch, losses, scores, seconds, images_per_s).
        checkpoint_every_s: how often to write a checkpoint, within epochs too; inf: now and then between them.
        limit_s: the trial ends when its own epochs have taken longer, those before an interruption included.
        ranks: this process among those that train the trial. What the first one alone may find out (the time is up, the
            score is undefined, the folder is busy) it alone raises: whoever started the others ends them.
        must_stop: asked at each step, of the first rank; when it says so, the trial writes a checkpoint and stops.

    Raises:
        TrialFailedError: the loss runs away, the score is undefined, memory does not suffice in any way, a batch is
            larger than the data, or the trial takes too long.
        TrialStoppedError: it was told to stop; called again, it goes on from there.
        AlreadyRunningError: another process is at work on the folder.
    """
    device = device or pick_device()
    with _sole_writer(folder) if ranks.first else nullcontext():
        start = ranks.told(lambda: _begun(folder, config, lineage_of(config, slices, split, weights, parent), parent))
        if isinstance(start, TrialResult):
            return start
        with _failing_for_good(folder):
            trainer = Trainer(
                start,
                slices,
                split,
                folder,
                weights=weights,
                device=device,
                checkpoint_every_s=checkpoint_every_s,
                limit_s=limit_s,
                ranks=ranks,
                must_stop=must_stop,
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)  # of batches that proved too large
            _train(trainer, config, folder, on_epoch, ranks)
        return ranks.told(lambda: _finish(trainer, start, slices, folder, device))


def _begun(folder: Path, config: TrialConfig, lineage: Lineage, parent: Path | None) -> Start | TrialResult:
    """Where the trial starts, or with what it has ended before."""
    lineage = claim(folder, config, lineage)
    return read_result(folder) or find_start(folder, config, lineage, parent)


@contextmanager
def _failing_for_good(folder: Path) -> Iterator[None]:
    """A trial that can give no score leaves no checkpoint: nobody goes on from there."""
    try:
        yield
    except TrialFailedError:
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        raise
    except torch.OutOfMemoryError as error:  # not in a step, which knows how to shrink
        raise TrialFailedError("out_of_memory", "the model, its optimizer or its slices do not fit") from error


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the trial's folder; the kernel releases it when this process dies.

    The worker of a driver that was killed may live on for some seconds: its successor waits for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trial.lock").open("a") as lock:
        until_s = time.monotonic() + OTHER_WRITER_S
        while not _locked(lock.fileno()):
            if time.monotonic() > until_s:
                raise AlreadyRunningError(
                    f"a trial has one writer, but another process is at work on {folder.name}; wait for it, or end it"
                )
            time.sleep(0.2)
        yield


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _train(trainer: Trainer, config: TrialConfig, folder: Path, on_epoch: EpochCallback, ranks: Ranks) -> None:
    if not ranks.first:
        trainer.run(on_epoch)
        return
    with event_file(folder / EVENTS, config, trainer.epochs_done) as write_events:

        def told(record: dict[str, Any]) -> None:
            write_events(record)
            on_epoch(record)

        trainer.run(told)


def read_result(folder: Path) -> TrialResult | None:
    """The result of a trial that has finished in this folder; None for any other."""
    path = folder / METRICS
    saved = read_json(path) if path.is_file() else {}
    return TrialResult(**saved["result"]) if saved.get("result") else None


def _finish(trainer: Trainer, start: Start, slices: SliceSet, folder: Path, device: torch.device) -> TrialResult:
    with written_aside(folder / PREDICTIONS) as aside:
        table = prediction_table(slices, trainer.validation_rows, start.config.labels, trainer.best.probabilities)
        table.to_parquet(aside, index=False)
    with written_aside(folder / WEIGHTS) as aside:
        save_weights(aside, trainer.best.weights)
    trainer.keep_state()
    result = _result(trainer, start, device)
    digests = {name: sha256_of(folder / name) for name in (PREDICTIONS, WEIGHTS)}
    write_json(folder / METRICS, {"epochs": trainer.history, "result": result.__dict__, "sha256": digests})
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    return result


def _result(trainer: Trainer, start: Start, device: torch.device) -> TrialResult:
    best, own = trainer.best, trainer.own_history
    return TrialResult(
        score=best.score,
        best_epoch=best.epoch,
        metrics=best.metrics,
        seconds=sum(record["seconds"] for record in own),
        images_per_s=len(own) * trainer.images / sum(record["trained_s"] for record in own),
        parameters_m=trainer.parameters_m,
        micro_batch=trainer.micro_batch,
        epochs_trained=len(own),
        restarted=start.restarted,
        memory_mb=torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
    )

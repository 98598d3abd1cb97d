"""Runs for tests: a real journal, split and shards; trials that are told, with the files of trained ones.

In: a folder, how many trials, and what text they hold. Out: a `RunFolder` as a search leaves it.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from books import open_book
from safetensors.torch import save_file
from slice_sets import Row, make_rows, write_shards

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.split import Split, open_split
from ichsearch.data.tasks import Task, task_labels
from ichsearch.files import read_json, sha256_of, write_json
from ichsearch.labels import LABELS
from ichsearch.search.book import Book, Started
from ichsearch.search.resolved import save_space
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.train.lineage import METRICS, PREDICTIONS, WEIGHTS
from ichsearch.train.lr_finder import read_curve
from ichsearch.train.metrics import FloatArray, better, score
from ichsearch.train.setup import make_model, parts_of
from ichsearch.train.trial import TrialResult

SIZE: Final = 32
FAILS_EVERY: Final = 9


def write_cohort_shards(folder: Path, *, patients: int = 45, names: str = "") -> Path:
    """Shards of small slices from three kinds of scanner; `names` goes in front of the slices' own."""
    rows = make_rows(patients=patients, slices=6, size=SIZE)
    for number, row in enumerate(rows):
        row.update(_scanner(number // 6), slice=f"{names}{number:04d}")
    write_shards(folder, rows, SIZE)
    return folder


def _scanner(patient: int) -> Row:
    kinds = [
        {"bits_stored": 12, "signed": False, "rescale_intercept": -1024.0, "slice_thickness_mm": 5.0},
        {"bits_stored": 16, "signed": True, "rescale_intercept": -1024.0, "slice_thickness_mm": 1.25},
        {"bits_stored": 12, "signed": False, "rescale_intercept": 0.0, "tilt_degrees": 14.0},
    ]
    return kinds[patient % len(kinds)]


def write_run(root: Path, shards: Path, space: Space, *, reason: str = "diverged") -> RunFolder:
    """A run whose trials are all told: most finished, some failed for `reason`, the best with its weights."""
    folder = RunFolder(root)
    slices = open_slices(shards, SIZE)
    split = open_split(folder.split, slices.table, slices.fingerprint, space.split_seed)
    save_space(space, folder.space)
    lrs = np.logspace(-7, 1, 60)
    for config in space.input_configs():
        losses = (np.log10(lrs) + 2) ** 2 / 40 + 0.4
        write_json(folder.curve(config), read_curve(config, lrs.tolist(), losses.tolist(), 60).model_dump())
    _Teller(folder, open_book(root, space), slices, split, space.task).tell_all(reason)
    return folder


def multiply(folder: RunFolder, trials: int) -> None:
    """Copies of the run's trials under new names, until it has so many; what is known of their scores too."""
    known = folder.records()
    for number in range(len(known), trials):
        record = known[number % len(known)]
        copy = record.model_copy(update={"trial": f"{number:04d}", "parent": None})
        shutil.copytree(folder.trial(record.trial), folder.trial(copy.trial))
        folder.write_record(copy)


class _Teller:
    """Ends every trial of a book, with files as if it had been trained."""

    def __init__(self, folder: RunFolder, book: Book, slices: SliceSet, split: Split, task: Task) -> None:
        self._folder, self._book, self._rng = folder, book, np.random.default_rng(0)
        parts = parts_of(slices, split, 0.0, task)
        self._labels = task_labels(task)
        self._truth = slices.labels[parts.validation][:, [LABELS.index(label) for label in self._labels]]
        self._table = slices.table.iloc[parts.validation]

    def tell_all(self, reason: str) -> None:
        best: tuple[float, Started] | None = None
        number = 0
        while isinstance(started := self._book.next(), Started):
            number += 1
            if number % FAILS_EVERY == 0:
                self._book.tell_failed(started, reason)
                continue
            result = self._trained(started)
            if better(started.config.metric, result.score, best and best[0]):
                best = result.score, started
            self._book.tell_finished(started, result)
        assert best is not None
        model = make_model(best[1].config, None, torch.device("cpu"))
        save_file(model.state_dict(), self._folder.trial(best[1].record.trial) / WEIGHTS)

    def _trained(self, started: Started) -> TrialResult:
        config, folder = started.config, self._folder.trial(started.record.trial)
        knows = 1 + 0.2 * config.epochs - abs(np.log10(config.lr) + 2) + (config.backbone == "test_resnet")
        probabilities = self._guess(knows)
        self._predictions(probabilities).to_parquet(folder / PREDICTIONS, index=False)
        names = self._table["patient"].to_numpy(np.object_)
        metrics = score(self._truth, probabilities, self._labels, names)
        epochs = [_epoch(number, metrics) for number in range(config.epochs_before + 1, config.epochs + 1)]
        value = metrics[config.metric]
        assert value is not None
        seconds = 1.5 * len(epochs) * (1 + (config.backbone == "test_resnet"))
        result = TrialResult(value, config.epochs, metrics, seconds, 200.0, 0.4, config.batch_size, len(epochs))
        hashes = {PREDICTIONS: sha256_of(folder / PREDICTIONS)}
        write_json(folder / METRICS, {"epochs": epochs, "result": result.__dict__, "sha256": hashes})
        return result

    def _guess(self, knows: float) -> FloatArray:
        logits = knows * (self._truth - 0.7) + self._rng.normal(0, 1, self._truth.shape)
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    def _predictions(self, probabilities: FloatArray) -> pd.DataFrame:
        frame = pd.DataFrame({name: self._table[name].to_numpy() for name in ("slice", "patient")})
        for column, label in enumerate(self._labels):
            frame[f"label_{label}"] = self._truth[:, column].astype(np.int8)
            frame[f"probability_{label}"] = probabilities[:, column]
        return frame


def _epoch(number: int, metrics: dict[str, float | None]) -> dict[str, Any]:
    worse = {name: value * 0.98**number for name, value in metrics.items() if value is not None}
    return {"epoch": number, "train_loss": 0.6 / number, "seconds": 1.5, "trained_s": 1.2, "lr": 0.001, **worse}


def rewrite_predictions(trial: Path, frame: pd.DataFrame) -> None:
    """Let a finished trial have made other predictions."""
    frame.to_parquet(trial / PREDICTIONS, index=False)
    known = read_json(trial / METRICS)
    write_json(trial / METRICS, known | {"sha256": known["sha256"] | {PREDICTIONS: sha256_of(trial / PREDICTIONS)}})

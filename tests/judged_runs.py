"""Runs that have been judged: drawn cohorts, predictions of a known worth, folders of finished and failed trials."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from ichsearch.data.tasks import Task, task_labels
from ichsearch.files import sha256_of, write_json
from ichsearch.labels import ANY, LABELS, SUBTYPES
from ichsearch.report.leaderboard import METRICS
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import METRICS as METRICS_JSON
from ichsearch.train.lineage import PREDICTIONS
from ichsearch.train.metrics import Metric, score
from ichsearch.train.trial import TrialResult

SHIFT: Final = 2.0
"""How far the logits of slices that bleed lie above those of others, for a skill of 1."""


def draw_truth(patients: int, slices: int = 10, *, seed: int = 0, labels: Sequence[str] = LABELS) -> pd.DataFrame:
    """Slices of patients, of whom two in five bleed, in a third of their slices, with one subtype each."""
    rng = np.random.default_rng(seed)
    of_patient = np.repeat(np.arange(patients), slices)
    bleeds = (rng.random(patients) < 0.4)[of_patient] & (rng.random(patients * slices) < 1 / 3)
    subtype = rng.integers(len(SUBTYPES), size=patients)[of_patient]
    frame = pd.DataFrame({"slice": [f"s{row:06d}" for row in range(len(bleeds))]})
    frame["patient"] = [f"p{number:05d}" for number in of_patient]
    for label in labels:
        of_label = bleeds if label == ANY else bleeds & (subtype == SUBTYPES.index(label))
        frame[f"label_{label}"] = of_label.astype(np.int8)
    return frame


def predicted(truth: pd.DataFrame, skill: float, seed: int = 1, alike: float = 0.0) -> pd.DataFrame:
    """Probabilities that know the truth as well as `skill` says; patients are not alike to the model.

    Args:
        truth: of slices.
        skill: 0 knows nothing.
        seed: of the noise.
        alike: share of the noise that all predictions of this truth have in common.
    """
    frame = truth.copy()
    labels = [name for name in truth.columns if name.startswith("label_")]
    rng, common = np.random.default_rng([1, seed]), np.random.default_rng(0)
    of_patient = pd.factorize(truth["patient"])[0]
    for name in labels:
        own, shared = (_noise(of_patient, generator) for generator in (rng, common))
        logits = SHIFT * skill * truth[name] - 2 + np.sqrt(1 - alike) * own + np.sqrt(alike) * shared
        frame[name.replace("label_", "probability_")] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return frame


def _noise(of_patient: "np.ndarray[tuple[int], np.dtype[np.intp]]", rng: np.random.Generator) -> "pd.Series[float]":
    patient = rng.normal(0, 0.6, of_patient.max() + 1)[of_patient]
    return pd.Series(0.8 * rng.normal(size=len(of_patient)) + patient)


def scores_of(frame: pd.DataFrame) -> dict[str, float | None]:
    """What a trial says of its own predictions."""
    labels = [name.removeprefix("label_") for name in frame.columns if name.startswith("label_")]
    truth, probabilities = (
        frame[[f"{kind}_{label}" for label in labels]].to_numpy(np.float64) for kind in ("label", "probability")
    )
    return score(truth, probabilities, labels, frame["patient"].to_numpy(np.object_))


def add_record(
    folder: RunFolder,
    name: str,
    *,
    metric: Metric = "auroc_any",
    reason: str = "",
    weights: str = "scratch",
    task: Task = "multilabel",
    status: str = "running",
) -> None:
    """Leave what the search knows of a trial."""
    config = TrialConfig(backbone="resnet18", batch_size=16, size=32, epochs=3, lr=0.004, metric=metric, task=task)
    folder.write_record(
        TrialRecord(
            trial=name,
            status=status,
            reason=reason,
            parameters={"lr_factor": 2.0},
            config=config.model_dump(),
            lr_suggestion=0.002,
            weights=weights,
            epochs=config.epochs,
        )
    )


def add_trial(
    folder: RunFolder, name: str, value: float | None, *, metric: Metric = "auroc_any", reason: str = "", **more: str
) -> None:
    """Leave the files of a trial without predictions: finished with `value`, or failed for `reason` if it is None."""
    add_record(
        folder,
        name,
        metric=metric,
        reason=reason,
        status="failed" if value is None else "running",
        weights=more.get("weights", "scratch"),
    )
    if value is not None:
        _finish(folder, name, value, dict.fromkeys(METRICS, 0.5) | {metric: value})


def add_judged_trial(
    folder: RunFolder, name: str, frame: pd.DataFrame, *, metric: Metric = "auroc_any", task: Task = "multilabel"
) -> None:
    """Leave the files of a finished trial that made these predictions."""
    assert {f"label_{label}" for label in task_labels(task)} <= set(frame.columns)
    add_record(folder, name, metric=metric, task=task)
    scores = scores_of(frame)
    value = scores[metric]
    assert value is not None
    frame.to_parquet(folder.trial(name) / PREDICTIONS, index=False)
    _finish(folder, name, value, scores)


def _finish(folder: RunFolder, name: str, value: float, scores: dict[str, float | None]) -> None:
    result = TrialResult(
        value, 2, scores, seconds=12.3456, images_per_s=100.0, parameters_m=11.2, micro_batch=16, epochs_trained=3
    )
    written = [file for file in (PREDICTIONS,) if (folder.trial(name) / file).is_file()]
    digests = {file: sha256_of(folder.trial(name) / file) for file in written}
    write_json(folder.trial(name) / METRICS_JSON, {"epochs": [], "result": result.__dict__, "sha256": digests})
    (folder.trial(name) / "weights.safetensors").touch()

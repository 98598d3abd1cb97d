"""The slices that neither trained a trial nor chose its best epoch, predicted by its best weights.

In: the folder of a finished trial, the `SliceSet` and the `Split` that it was trained on. Out: `held_out.parquet`, a
row a slice of the fold that the split holds out, and `held_out.json`, their scores. Nothing else reads that fold.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from ichsearch.data.batches import Batches
from ichsearch.data.cache import SliceSet
from ichsearch.data.split import TEST_FOLD, Split
from ichsearch.data.tasks import Task, task_rows
from ichsearch.files import read_json, write_json, written_aside
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import CONFIG, WEIGHTS
from ichsearch.train.metrics import FloatArray, Scores
from ichsearch.train.predictions import prediction_table, scores_of
from ichsearch.train.setup import make_model, pick_device
from ichsearch.train.steps import arithmetic, predict

HELD_OUT: Final = "held_out.parquet"
HELD_OUT_SCORES: Final = "held_out.json"


def held_out_rows(slices: SliceSet, split: Split, task: Task) -> npt.NDArray[np.int64]:
    """Row numbers of all the task's slices of the test fold, whatever their share of brain."""
    return np.flatnonzero(task_rows(task, slices.labels) & (split.fold_of(slices.table) == TEST_FOLD))


def score_held_out(folder: Path, slices: SliceSet, split: Split, *, device: torch.device | None = None) -> Scores:
    """Score the best weights of the trial that has finished in `folder` on the held-out fold, once for all."""
    if (known := read_held_out(folder)) is not None:
        return known
    config = TrialConfig.model_validate(read_json(folder / CONFIG))
    rows = held_out_rows(slices, split, config.task)
    probabilities = _probabilities(folder, config, slices, rows, device or pick_device())
    predictions = prediction_table(slices, rows, config.labels, probabilities)
    with written_aside(folder / HELD_OUT) as aside:
        predictions.to_parquet(aside, index=False)
    scores = scores_of(predictions)
    write_json(folder / HELD_OUT_SCORES, scores)
    return scores


def _probabilities(
    folder: Path, config: TrialConfig, slices: SliceSet, rows: npt.NDArray[np.int64], device: torch.device
) -> FloatArray:
    model = make_model(config, None, device)
    model.load_state_dict(load_file(folder / WEIGHTS))
    inputs = Batches(slices, rows, config.recipe, device).evaluate()
    return predict(model, inputs, kind=arithmetic(config.precision, device))


def read_held_out(folder: Path) -> Scores | None:
    """The scores of a trial on its held-out fold; None if it has none yet."""
    path = folder / HELD_OUT_SCORES
    return Scores(read_json(path)) if path.is_file() else None

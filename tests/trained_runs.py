"""Run folders with really trained trials, one for each way to make inputs: what predictors are held against.

In: a folder. Out: shards at 64 px and a `RunFolder` of trials of one or two epochs, as a search leaves it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.data.cache import open_slices
from ichsearch.data.preprocessing import preprocessing_of
from ichsearch.data.split import open_split
from ichsearch.files import write_json
from ichsearch.search.resolved import save_space
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space_file import load_space
from ichsearch.train.config import TrialConfig
from ichsearch.train.trial import run_trial

STORED_PX: Final = 64
INPUTS: Final[dict[str, dict[str, Any]]] = {
    "0000": {"channels": "hu", "size": 64},
    "0001": {"channels": "windows", "size": 32},
    "0002": {"channels": "neighbours", "size": 48},
    "0003": {"channels": "hist", "size": 32, "backbone": "test_efficientnet"},
    "0004": {"channels": "windows", "size": 40, "head": "concat_pool", "epochs": 3},
}
"""Of each trial; 48 and 40 px are no whole part of 64."""


def write_trained_run(root: Path, trials: Sequence[str] = tuple(INPUTS), **of_all: Any) -> tuple[RunFolder, Path]:
    """A run of `trials` of `INPUTS` on small slices with blobs of blood, and its shards; `of_all` goes into each."""
    shards = root / "shards"
    write_shards(shards, make_rows(patients=45, slices=4, size=STORED_PX), STORED_PX)
    folder = RunFolder(root / "run")
    folder.root.mkdir(parents=True)
    save_space(load_space(write_space(root)), folder.space)
    write_json(folder.preprocessing, preprocessing_of(shards, [32]).model_dump())
    for trial in trials:
        _train(folder, shards, trial, {**INPUTS[trial], **of_all})
    return folder, shards


def _train(folder: RunFolder, shards: Path, trial: str, own: dict[str, Any]) -> None:
    given = {"backbone": "test_resnet", "batch_size": 16, "lr": 0.01, "epochs": 1, "augment": 0.3, **own}
    config = TrialConfig.model_validate(given)
    slices = open_slices(shards, config.size)
    split = open_split(folder.split, slices.table, slices.fingerprint, 0)
    folder.write_record(
        TrialRecord(
            trial=trial,
            status="finished",
            parameters={"lr_factor": 1.0},
            config=config.model_dump(),
            lr_suggestion=0.01,
            weights="scratch",
            epochs=config.epochs,
        )
    )
    run_trial(config, slices, split, folder.trial(trial), device=torch.device("cpu"))

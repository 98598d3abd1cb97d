"""Nothing but a confirmation looks at the test fold: a run gives the same numbers whatever is in it."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from searches import TIMES
from slice_sets import as_slice_set, make_rows, split_of, write_shards
from spaces import write_space
from test_architecture import MODULES

from ichsearch.data.split import FOLDS, TEST_FOLD, VALIDATION_FOLD, Split
from ichsearch.labels import LABELS
from ichsearch.report.summary import summarise
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.runner import run_search
from ichsearch.search.space_file import load_space
from ichsearch.search.stages import Watchers
from ichsearch.shards.schema import pack_hu

SIZE = 32
SPACE = """\
name: tiny
trials: 3
epochs: 2
pretrained: no
promotion: {eta: 2, first_epochs: 1}
resources: {cpus_per_trial: 2}
lr_finder: {steps: 20}
parameters: {backbone: test_resnet, batch_size: 8, size: 32, lr: {factor: [0.5, 2.0]}}
"""
Rows = list[dict[str, Any]]


def with_another_test_fold(rows: Rows) -> Rows:
    """Noise for the pixels of the test patients, and each one's labels in reverse: the folds are dealt as before."""
    split = split_of(as_slice_set(rows, SIZE))
    rng = np.random.default_rng(1)
    changed = []
    for row in rows:
        if split.patients[row["patient"]] == TEST_FOLD:
            mirror = next(
                other
                for other in rows
                if other["patient"] == row["patient"]
                and other["series_index"] == row["series_slices"] - 1 - row["series_index"]
            )
            noise = rng.integers(-1000, 1000, (SIZE, SIZE)).astype(np.int16)
            row = row | {"hu": pack_hu(noise)} | {label: mirror[label] for label in LABELS}  # noqa: PLW2901
        changed.append(row)
    return changed


@pytest.mark.usefixtures("ray_local")
def test_a_run_gives_the_same_numbers_whatever_the_test_fold_holds(tmp_path: Path) -> None:
    rows = make_rows(patients=15, slices=4)
    others = with_another_test_fold(rows)
    assert sum(row != other for row, other in zip(rows, others, strict=True)) >= 3 * 4
    boards, splits = [], []
    for name, content in (("as it is", rows), ("changed", others)):
        folder = tmp_path / name
        write_shards(folder / "shards", content, SIZE)
        quiet = Watchers(lambda event: None, lambda *progress: None, lambda run: None, lambda curve, path: None)
        run_search(
            load_space(write_space(folder, SPACE)), folder / "shards", RunFolder(folder / "run"),
            address=None, extend=False, command=[], watchers=quiet,
        )  # fmt: skip
        summarise(RunFolder(folder / "run"), folder / "shards")
        boards.append(pd.read_csv(folder / "run" / "leaderboard.csv").drop(columns=TIMES))
        splits.append(Split.model_validate_json((folder / "run" / "split.json").read_bytes()).patients)
    assert splits[0] == splits[1]
    pd.testing.assert_frame_equal(*boards, check_exact=True)


def test_only_the_split_the_counts_and_the_held_out_scores_name_the_test_fold() -> None:
    users = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "TEST_FOLD"
    }
    counting = {"search.console", "report.report_facts"}
    assert users == {"data.split", "train.held_out", "search.confirmed", *counting}


def test_a_split_is_turned_to_hold_out_each_fold() -> None:
    slices = as_slice_set(make_rows(patients=15, slices=4), SIZE)
    split = split_of(slices)
    folds = split.fold_of(slices.table)
    assert split.holding_out(TEST_FOLD) == split
    for fold in range(FOLDS):
        turned = split.holding_out(fold).fold_of(slices.table)
        assert np.array_equal(turned == TEST_FOLD, folds == fold)
        assert np.array_equal(turned == VALIDATION_FOLD, folds == (fold + 1) % FOLDS)

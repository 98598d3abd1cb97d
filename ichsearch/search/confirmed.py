"""Which trials are confirmed, and what their replays say together.

In: the trials and replays of a run. Out: the trials to confirm; `confirm/confirm.csv`, a row a replay;
`confirm/<trial>-test.parquet` and `-out_of_fold.parquet`, the mean predictions of a trial's replays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ichsearch.data.split import FOLDS, TEST_FOLD
from ichsearch.files import write_text, written_aside
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.train.held_out import HELD_OUT, read_held_out
from ichsearch.train.metrics import LOWER_IS_BETTER, Metric
from ichsearch.train.predictions import mean_of
from ichsearch.train.trial import read_result

COLUMNS: Final = (
    "replay", "trial", "seed", "fold", "status", "reason", "metric", "score", "best_epoch", "seconds", "held_out_score",
)  # fmt: skip


def best_trials(folder: RunFolder, metric: Metric, top: int) -> list[str]:
    """The best trials of a run, the best first; of a configuration that was promoted, its best trial alone."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    records = {record.trial: record for record in folder.records()}
    scores = {trial: result.score for trial in records if (result := read_result(folder.trial(trial)))}

    def root_of(trial: str) -> str:
        parent = records[trial].parent
        return trial if parent is None else root_of(parent)

    best: dict[str, str] = {}
    for trial in sorted(scores, key=lambda trial: (sign * scores[trial], trial)):
        best.setdefault(root_of(trial), trial)
    return list(best.values())[:top]


def write_confirmed(folder: RunFolder) -> None:
    """Write anew what all replays say: the table, and the mean predictions of each trial's finished ones."""
    records = folder.replays()
    rows = [_row(folder, record) for record in records]
    write_text(folder.confirmed, pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False))
    for trial in dict.fromkeys(record.trial for record in records):
        means = [_held_out_mean(folder, trial, fold) for fold in range(FOLDS)]
        if (test := means[TEST_FOLD]) is not None:
            _write_table(folder.test_predictions(trial), [test])
        known = [mean for mean in means if mean is not None]
        if len(known) == FOLDS:
            _write_table(
                folder.out_of_fold_predictions(trial), [mean.assign(fold=fold) for fold, mean in enumerate(known)]
            )


def _row(folder: RunFolder, record: ReplayRecord) -> dict[str, Any]:
    place = folder.replay(record.name)
    trial, result, held_out = folder.record(record.trial), read_result(place), read_held_out(place)
    assert trial is not None, "a replay is one of a trial"
    metric = trial.config["metric"]
    row: dict[str, Any] = {"replay": record.name, **record.model_dump(), "metric": metric}
    if result:
        row |= {"score": result.score, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 3)}
    return row | {"held_out_score": held_out[metric] if held_out else None}


def _held_out_mean(folder: RunFolder, trial: str, fold: int) -> pd.DataFrame | None:
    """The mean predictions of a trial's replays on the fold that they held out; None before they are scored."""
    places = [
        folder.replay(record.name)
        for record in folder.replays()
        if (record.trial, record.fold, record.status) == (trial, fold, "finished")
    ]
    tables = [pd.read_parquet(place / HELD_OUT) for place in places if read_held_out(place)]
    return mean_of(tables) if tables else None


def _write_table(path: Path, tables: Sequence[pd.DataFrame]) -> None:
    with written_aside(path) as aside:
        pd.concat(tables, ignore_index=True).to_parquet(aside, index=False)

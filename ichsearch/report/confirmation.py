"""What a run's confirmed trials are worth: from fresh seeds, and on the test fold.

In: the replays of a run. Out: scores with intervals over patients, kept in `confirm/<trial>-test.json`, and text.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import pandas as pd

from ichsearch.data.split import FOLDS
from ichsearch.report.bootstrap import MIN_PATIENTS, SEED, Interval, Resampled
from ichsearch.report.statistics import as_predictions, kept_statistics, resampled_scores
from ichsearch.search.openings import read_openings
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.train.trial import read_result


class Confirmation(NamedTuple):
    """A trial that was trained anew from fresh seeds.

    Attributes:
        metric: what the run ranks by.
        searched: the trial's own score, by which it was chosen.
        scores: of its replays, on the same validation patients; of those that finished.
        failed: how many did not.
        patients: of the test fold; 0 before it is opened.
        test: the score of their mean prediction on it; None before it is opened, or where undefined.
    """

    metric: str
    searched: float
    scores: tuple[float, ...]
    failed: int
    patients: int
    test: Interval | None

    @property
    def mean(self) -> float | None:
        """Of the replays' scores."""
        return mean(self.scores) if self.scores else None

    @property
    def sd(self) -> float | None:
        """Their standard deviation: what the seed alone changes."""
        return stdev(self.scores) if len(self.scores) > 1 else None


def confirmations(folder: RunFolder) -> dict[str, Confirmation]:
    """All trials of a run that were confirmed, whatever became of it."""
    replays: dict[str, list[ReplayRecord]] = {}
    for record in folder.replays():
        if not record.fold:
            replays.setdefault(record.trial, []).append(record)
    known = {trial: records for trial, records in replays.items() if read_result(folder.trial(trial)) is not None}
    return {trial: _confirmation(folder, trial, records) for trial, records in known.items()}


def _confirmation(folder: RunFolder, trial: str, records: list[ReplayRecord]) -> Confirmation:
    record, searched = folder.record(trial), read_result(folder.trial(trial))
    assert record is not None, "a replay is one of a trial"
    assert searched is not None, "only finished trials are replayed"
    results = [read_result(folder.replay(record.name)) for record in records if record.status == "finished"]
    scores = tuple(result.score for result in results if result)
    metric = str(record.config["metric"])
    return Confirmation(
        metric=metric,
        searched=searched.score,
        scores=scores,
        failed=len(records) - len(scores),
        patients=_patients(folder.test_predictions(trial)),
        test=_interval(folder.test_predictions(trial), metric),
    )


def _patients(predictions: Path) -> int:
    return int(pd.read_parquet(predictions, columns=["patient"])["patient"].nunique()) if predictions.is_file() else 0


def _interval(predictions: Path, metric: str) -> Interval | None:
    if not predictions.is_file():
        return None
    return kept_statistics(predictions, predictions.with_suffix(".json")).intervals[metric]


def out_of_fold(folder: RunFolder, trial: str, metric: str) -> Interval | None:
    """The mean over the folds of what a trial's replays score on each when it is held out; None before they are.

    Not one score of all folds together: the probabilities of different models need not be on one scale.
    """
    path = folder.out_of_fold_predictions(trial)
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    folds = [
        resampled_scores(as_predictions(table[table["fold"] == fold]), metric, seed=SEED + fold)[metric]
        for fold in range(FOLDS)
    ]
    value, draws = np.mean([fold.value for fold in folds]), np.mean([fold.draws for fold in folds], axis=0)
    fewest = min(fold.patients for fold in folds)  # resamples are drawn within folds, and as narrow as theirs
    return Resampled(float(value), draws, fewest).interval


def confirmation_text(folder: RunFolder) -> str:
    """What a person should take from the confirmation, a line a trial; "" if there was none."""
    confirmed = confirmations(folder)
    if not confirmed:
        return ""
    lines = [
        f"confirmed trial {trial}: {', '.join(_parts(one, out_of_fold(folder, trial, one.metric)))}"
        for trial, one in confirmed.items()
    ]
    return "\n".join([*lines, opened_text(len(read_openings(folder)))])


def _parts(one: Confirmation, all_folds: Interval | None) -> Iterator[str]:
    if one.mean is not None:
        spread = f" ± {one.sd:.3f}" if one.sd is not None else ""
        seeds = f"{len(one.scores)} fresh seed{'s' * (len(one.scores) != 1)}"
        yield f"{one.metric} {one.mean:.3f}{spread} from {seeds} ({one.searched:.3f} in the search)"
    if one.failed:
        yield f"{one.failed} of {one.failed + len(one.scores)} replays failed"
    for name, interval in (("test fold", one.test), ("mean of the folds", all_folds)):
        if interval:
            bounds = f" (95 % {interval.low:.3f} to {interval.high:.3f})" if one.patients >= MIN_PATIENTS else ""
            yield f"{name} {interval.value:.3f}{bounds}"


def opened_text(openings: int) -> str:
    """How often the test fold was opened."""
    times = f"{openings} time{'s' * (openings != 1)}"
    return f"the test fold was opened {times}, see test_fold.json" if openings else "the test fold is untouched"

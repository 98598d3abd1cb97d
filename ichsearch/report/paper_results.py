"""What came of the runs of a paper: a row each beside the paper's own figure, and whether any two differ.

In: a paper's folder. Out: rows, kept as `paper.csv`; differences of runs on the same slices.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from ichsearch.files import as_cell, write_text
from ichsearch.report.bootstrap import MIN_PATIENTS, Interval, Resampled
from ichsearch.report.comparisons import SIGNIFICANT, holm, pairwise_p
from ichsearch.report.statistics import Predictions, read_predictions, resampled_scores
from ichsearch.search.paper_runs import Plan, PlannedRun
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.train.lineage import PREDICTIONS
from ichsearch.train.metrics import Metric
from ichsearch.train.trial import TrialResult, read_result

ACCURACY: Final[Metric] = "accuracy_multi"
CSV: Final = "paper.csv"
LENGTHS: Final = ("epochs", "frozen_epochs", "batch_size", "size")


class Judged(NamedTuple):
    """A run of the paper that has finished, on the validation slices of its split.

    Attributes:
        run: which it is.
        record: of its trial.
        result: of its trial.
        accuracy: correct bits over all bits.
        nothing: what predicting no haemorrhage at all scores on these slices.
        auroc: of `any`, or the mean over subtypes; None where these patients do not define it.
        given: its predictions.
    """

    run: PlannedRun
    record: TrialRecord
    result: TrialResult
    accuracy: Resampled
    nothing: Resampled
    auroc: Interval | None
    given: Predictions

    @property
    def reliable(self) -> bool:
        """Whether intervals mean something: new patients, and enough of them."""
        return not self.run.leaky and len(self.given.patients) >= MIN_PATIENTS


class Difference(NamedTuple):
    """Two runs of one task, by patient, on the same slices."""

    first: str
    second: str
    interval: Interval
    p_holm: float
    reliable: bool

    @property
    def shown(self) -> bool:
        """Whether the two are shown to differ."""
        return self.reliable and self.p_holm < SIGNIFICANT


def judged_runs(root: Path, plan: Plan) -> dict[str, Judged]:
    """The runs that have finished, by name."""
    found = ((run.name, _judged(RunFolder(root / run.name), run)) for run in plan.runs)
    return {name: judged for name, judged in found if judged}


def _judged(folder: RunFolder, run: PlannedRun) -> Judged | None:
    for record in folder.records():
        if result := read_result(folder.trial(record.trial)):
            given = read_predictions(folder.trial(record.trial) / PREDICTIONS)
            silent = given._replace(probabilities=np.zeros_like(given.probabilities))
            auroc = "auroc_any" if run.task == "any" else "auroc_mean"
            return Judged(
                run,
                record,
                result,
                _score(given, ACCURACY),
                _score(silent, ACCURACY),
                _score(given, auroc).interval,
                given,
            )
    return None


def _score(given: Predictions, name: str) -> Resampled:
    return resampled_scores(given, name)[name]


def failure_of(root: Path, run: PlannedRun) -> str:
    """Why a run has no figure."""
    reasons = [record.reason for record in RunFolder(root / run.name).records() if record.reason]
    return f"failed: {reasons[-1]}" if reasons else "not finished"


def differences(judged: dict[str, Judged]) -> list[Difference]:
    """All pairs of runs of one task by patient, corrected for how many pairs that task has (Holm)."""
    tasks = dict.fromkeys(one.run.task for one in judged.values())
    of_task = ([one for one in judged.values() if one.run.task == task and not one.run.leaky] for task in tasks)
    return [pair for group in of_task if len(group) > 1 for pair in _pairs(group)]


def _pairs(group: Sequence[Judged]) -> Iterator[Difference]:
    corrected = holm(pairwise_p([one.accuracy for one in group], len(group[0].given.patients)))
    for (i, first), (j, second) in combinations(enumerate(group), 2):
        interval = first.accuracy.minus(second.accuracy).interval
        assert interval is not None, "accuracy is defined on any slices"
        yield Difference(first.run.name, second.run.name, interval, float(corrected[i, j]), first.reliable)


def write_csv(root: Path, plan: Plan, judged: dict[str, Judged]) -> pd.DataFrame:
    """`paper.csv`: a row a run by patient, the leaky figure of its twin in a column that says so."""
    rows = [_row(root, run, judged) for run in plan.runs if not run.leaky]
    table = pd.DataFrame(rows)
    write_text(
        root / CSV, table.map(lambda value: as_cell(value) if isinstance(value, str) else value).to_csv(index=False)
    )
    return table


def _row(root: Path, run: PlannedRun, judged: dict[str, Judged]) -> dict[str, Any]:
    own = judged.get(run.name)
    twin = next((one for one in judged.values() if one.run.leaky and one.run.entry == run.entry), None)
    row: dict[str, Any] = {"run": run.name, "task": run.task, "status": "finished" if own else failure_of(root, run)}
    row |= {name: own.record.config[name] if own else None for name in ("backbone", "precision", "lr")}
    row |= {"weights": own.record.weights if own else None}
    for name in LENGTHS:
        row |= {f"{name}_paper": getattr(run.paper, name), name: getattr(run.here, name)}
    row |= {"reported": run.reported} | _scores(own)
    return row | {
        "leaky_accuracy": twin.accuracy.value if twin else None,
        "leaky_all_zero": twin.nothing.value if twin else None,
        "leaky_auroc": twin.auroc.value if twin and twin.auroc else None,
        "leaky_slices": len(twin.given.slices) if twin else None,
    }


def _scores(own: Judged | None) -> dict[str, Any]:
    """Figures by patient; ends of intervals only where they mean something."""
    intervals = {
        "accuracy": own.accuracy.interval if own else None,
        "minus_all_zero": own.accuracy.minus(own.nothing).interval if own else None,
        "auroc": own.auroc if own else None,
    }
    row: dict[str, Any] = {"all_zero": own.nothing.value if own else None}
    for name, interval in intervals.items():
        ends = interval if own and own.reliable else None
        row |= {
            name: interval.value if interval else None,
            f"{name}_low": ends.low if ends else None,
            f"{name}_high": ends.high if ends else None,
        }
    return row | {
        "slices": len(own.given.slices) if own else None,
        "patients": len(own.given.patients) if own else None,
        "seconds": round(own.result.seconds, 1) if own else None,
    }

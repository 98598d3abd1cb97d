"""`leaderboard.csv`: every trial of a run, the best first, among the rules that see no image; failed ones last.

In: a run folder. Out: a CSV file with stable columns, numbers as numbers, text cells safe in a spreadsheet. Intervals
and ranks are those that the folder knows already: `ranking.rank_trials` computes them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pandas.api.types import is_numeric_dtype

from ichsearch.data.split import LEAKY
from ichsearch.files import as_cell, write_text
from ichsearch.labels import LABELS
from ichsearch.report.baselines import baseline_intervals
from ichsearch.report.bootstrap import MIN_PATIENTS
from ichsearch.report.confirmation import Confirmation, confirmations
from ichsearch.report.ranking import Ranked, Ranking, known_ranking
from ichsearch.report.statistics import Intervals, known_statistics, predictions_sha256
from ichsearch.search.parameters import SEARCHED
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.train.lineage import WEIGHTS
from ichsearch.train.metrics import LOWER_IS_BETTER
from ichsearch.train.trial import TrialResult, read_result

METRICS: Final = (
    "log_loss",
    "accuracy_multi",
    *(f"auroc_{label}" for label in LABELS),
    *(f"average_precision_{label}" for label in LABELS),
    *(f"{level}{name}_any" for level in ("", "patient_") for name in ("sensitivity_at_90", "sensitivity_at_95")),
    "calibration_error_any",
    "patient_auroc_any",
    "auroc_mean",
    "patient_auroc_mean",
)
"""Of those that a trial is judged by; the others stand in its metrics.json."""
BOUNDED: Final = (
    "log_loss", "accuracy_multi", "auroc_any", "average_precision_any",
    "sensitivity_at_90_any", "sensitivity_at_95_any", "patient_auroc_any", "auroc_mean", "patient_auroc_mean",
)  # fmt: skip
"""Metrics that have columns for their interval; those of the others stand in the trial's statistics.json."""
BASELINE: Final = "baseline"
BY_SLICE: Final = f"slice, {LEAKY}"
UNREADABLE: Final = "predictions cannot be read"
"""The reason why a finished trial has no place."""
COLUMNS: Final = (
    "rank", "place", "trial", "status", "reason", "metric", "score", "low", "high",
    "difference", "difference_low", "difference_high", "p_holm", "tied", "beats_baselines",
    "confirmed", "confirmed_mean", "confirmed_sd", "test_score", "test_low", "test_high",
    *(column for name in METRICS for column in ((name, f"{name}_low", f"{name}_high") if name in BOUNDED else (name,))),
    "task", "split", *SEARCHED, "lr_factor", "lr_suggestion", "weights", "parent", "epochs", "epochs_trained",
    "restarted", "best_epoch", "seconds", "chain_seconds", "images_per_s", "micro_batch", "memory_mb", "parameters_m",
    "checkpoint",
)  # fmt: skip
WHOLE: Final = (
    "confirmed", "batch_size", "size", "frozen_epochs", "epochs", "epochs_trained", "best_epoch", "micro_batch",
)  # fmt: skip
"""Columns of whole numbers, also beside rows that have none."""


def write_leaderboard(folder: RunFolder) -> None:
    """Write the run's leaderboard anew from its files."""
    table = read_leaderboard(folder)
    safe = table.apply(lambda column: column if is_numeric_dtype(column) else column.map(_safe))
    write_text(folder.leaderboard, safe.to_csv(index=False))


def _safe(value: Any) -> Any:
    return as_cell(value) if isinstance(value, str) else value


def read_leaderboard(folder: RunFolder) -> pd.DataFrame:
    """One row a trial or baseline with the columns `COLUMNS`, texts as they are; rows without a score come last.

    `rank` is 1 for the best and all that cannot be told from it, else the `place` by score; until a run has been
    ranked it is the place. Baselines have neither.
    """
    ranking = known_ranking(folder)
    rows = [*_trial_rows(folder, ranking), *_baseline_rows(folder, ranking)]
    split = {"split": BY_SLICE if folder.leaks else "patient"}
    table = pd.DataFrame([row | split for row in rows], columns=list(COLUMNS))
    table = table.astype({"tied": "boolean", "beats_baselines": "boolean"} | dict.fromkeys(WHOLE, "Int64"))
    if not len(table):
        return table
    lower = table["metric"].iloc[0] in LOWER_IS_BETTER
    is_ranked = (table["status"] == "finished") & (table["reason"] != UNREADABLE)
    own = table["score"].where(is_ranked).astype(float)
    table["place"] = own.rank(method="min", ascending=lower).astype("Int64")
    table["rank"] = table["place"].mask(table["tied"].fillna(value=False) & own.notna(), 1)
    ordered = table.assign(order=table["score"].astype(float) * (1 if lower else -1))
    return ordered.sort_values(["order", "trial"], na_position="last", ignore_index=True)[list(COLUMNS)]


def _trial_rows(folder: RunFolder, ranking: Ranking | None) -> Iterator[dict[str, Any]]:
    confirmed, chain_s = confirmations(folder), dict[str | None, float]()
    for record in folder.records():  # parents before their children
        row = _record(record) | _confirmed(confirmed.get(record.trial))
        if result := read_result(folder.trial(record.trial)):
            chain_s[record.trial] = result.seconds + chain_s.get(record.parent, 0.0)
            row |= _result(folder.root, record, result) | {"chain_seconds": round(chain_s[record.trial], 3)}
            if ranking is None or ranking.reliable:
                row |= _bounds(_known_intervals(folder, record.trial))
                row |= _bounds_of_score(row)
            if ranking and record.trial in ranking.unreadable:
                row["reason"] = UNREADABLE
            if ranking and (ranked := ranking.trials.get(record.trial)):  # it may have finished since it was read
                row |= _standing(ranked, ranking)
        yield row


def _record(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.trial,
        "status": record.status,
        "reason": record.reason,
        "metric": record.config["metric"],
        **{name: record.config[name] for name in ("task", *SEARCHED)},
        "lr_factor": record.parameters.get("lr_factor"),
        "lr_suggestion": record.lr_suggestion,
        "weights": record.weights,
        "parent": record.parent,
        "epochs": record.epochs,
    }


def _confirmed(confirmation: Confirmation | None) -> dict[str, Any]:
    """Columns of a trial's replays from fresh seeds, and of their mean prediction on the test fold."""
    if confirmation is None:
        return {}
    row: dict[str, Any] = {"confirmed": len(confirmation.scores)}
    row |= {"confirmed_mean": confirmation.mean, "confirmed_sd": confirmation.sd}
    if test := confirmation.test:
        row |= {"test_score": test.value}
        row |= {"test_low": test.low, "test_high": test.high} if confirmation.patients >= MIN_PATIENTS else {}
    return row


def _result(root: Path, record: TrialRecord, result: TrialResult) -> dict[str, Any]:
    checkpoint = f"trials/{record.trial}/{WEIGHTS}"
    return {
        "status": "finished",
        "score": result.score,
        "best_epoch": result.best_epoch,
        "seconds": round(result.seconds, 3),
        "images_per_s": round(result.images_per_s, 2),
        "parameters_m": round(result.parameters_m, 4),
        "checkpoint": checkpoint if (root / checkpoint).is_file() else None,
        "epochs_trained": result.epochs_trained,
        "restarted": result.restarted,
        "micro_batch": result.micro_batch,
        "memory_mb": result.memory_mb,
        **{name: value for name, value in result.metrics.items() if name in METRICS},
    }


def _known_intervals(folder: RunFolder, trial: str) -> Intervals:
    """A trial's intervals if they have been computed; nothing else, since this is asked while trials run."""
    digest = predictions_sha256(folder, trial)
    known = known_statistics(folder.statistics(trial), digest) if digest else None
    return known.intervals if known else {}


def _bounds(intervals: Intervals) -> dict[str, Any]:
    """Columns of the ends of the intervals."""
    known = {name: intervals.get(name) for name in BOUNDED}
    lows = {f"{name}_low": interval.low for name, interval in known.items() if interval}
    return lows | {f"{name}_high": interval.high for name, interval in known.items() if interval}


def _bounds_of_score(row: dict[str, Any]) -> dict[str, Any]:
    """Those of the metric that ranks, where that has been computed but the trials are not ranked yet."""
    return {end: row.get(f"{row['metric']}_{end}") for end in ("low", "high")}


def _standing(ranked: Ranked, ranking: Ranking) -> dict[str, Any]:
    """Columns of a trial held against the best one and the baselines."""
    beats = {"beats_baselines": set(ranked.beats) == set(ranking.baselines)} if ranking.baselines else {}
    return _differences(ranked, ranking) | {"p_holm": ranked.p_holm, "tied": ranked.tied} | beats


def _differences(ranked: Ranked, ranking: Ranking) -> dict[str, Any]:
    """The difference to the best, and intervals unless the patients are too few to believe them."""
    ends = ("low", "high", "difference_low", "difference_high") if ranking.reliable else ()
    return {name: getattr(ranked, name) for name in ("difference", *ends)}


def _baseline_rows(folder: RunFolder, ranking: Ranking | None) -> Iterator[dict[str, Any]]:
    """The baselines, once trials are ranked: they are judged on the trials' slices, by their metric."""
    if ranking is None:
        return
    known = baseline_intervals(folder)
    for name, intervals in ((name, known[name]) for name in ranking.baselines if name in known):
        row = {"trial": name, "status": BASELINE, "metric": ranking.metric, "score": ranking.baselines[name].value}
        values = {metric: interval.value for metric, interval in intervals.items() if interval and metric in METRICS}
        bounds = _bounds(intervals) if ranking.reliable else {}
        yield row | values | bounds | _differences(ranking.baselines[name], ranking)

"""`leaderboard.csv`: every trial of a run, the best first, the failed ones last with their reason.

In: a run folder. Out: a CSV file with stable columns, numbers as numbers, text cells safe in a spreadsheet.
"""

from pathlib import Path
from typing import Any, Final

import pandas as pd

from ichsearch.files import write_text
from ichsearch.labels import LABELS
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
COLUMNS: Final = (
    "rank", "trial", "status", "reason", "metric", "score", *METRICS, "task", *SEARCHED, "lr_factor", "lr_suggestion",
    "weights", "parent", "epochs", "epochs_trained", "restarted", "best_epoch", "seconds", "images_per_s",
    "micro_batch", "memory_mb", "parameters_m", "checkpoint",
)  # fmt: skip
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def write_leaderboard(folder: RunFolder) -> None:
    """Write the run's leaderboard anew from its trials' files."""
    write_text(folder.leaderboard, read_leaderboard(folder).to_csv(index=False))


def read_leaderboard(folder: RunFolder) -> pd.DataFrame:
    """One row a trial with the columns `COLUMNS`; trials without a score have no rank."""
    rows = [_row(folder.root, record, read_result(folder.trial(record.trial))) for record in folder.records()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if not len(table):
        return table
    lower = table["metric"].iloc[0] in LOWER_IS_BETTER
    table["rank"] = table["score"].rank(method="min", ascending=lower).astype("Int64")
    return table.sort_values(["rank", "trial"], na_position="last", ignore_index=True)


def _row(root: Path, record: TrialRecord, result: TrialResult | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trial": record.trial,
        "status": "finished" if result else record.status,
        "reason": as_cell(record.reason),
        "metric": record.config["metric"],
        "score": None,
        **{name: record.config[name] for name in ("task", *SEARCHED)},
        "lr_factor": record.parameters.get("lr_factor"),
        "lr_suggestion": record.lr_suggestion,
        "weights": as_cell(record.weights),
        "parent": record.parent,
        "epochs": record.epochs,
    }
    if result:
        checkpoint = f"trials/{record.trial}/{WEIGHTS}"
        row |= {
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
    return row


def as_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe goes before what would start one."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text

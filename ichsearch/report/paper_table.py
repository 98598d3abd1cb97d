"""The runs of a paper on a terminal.

In: the rows of `paper.csv`. Out: a rich table.
"""

from typing import Any, Final

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from ichsearch.data.split import LEAKY
from ichsearch.terminal import literal

HEADINGS: Final = (
    "run", "backbone", "batch", "epochs", "px", "paper", "accuracy", "95 %", "nothing", LEAKY, "AUROC",
    "slices", "patients",
)  # fmt: skip


def as_table(runs: pd.DataFrame) -> Table:
    """A row a run: the paper's accuracy, ours by patient, the leaky one marked, and predicting nothing."""
    table = Table(*HEADINGS, box=SIMPLE, pad_edge=False)
    for row in runs.to_dict("records"):
        table.add_row(*map(literal, _cells(row)))
    return table


def _cells(row: dict[Any, Any]) -> list[str]:
    low, high, leaky = row["accuracy_low"], row["accuracy_high"], row["leaky_accuracy"]
    return [
        row["run"],
        str(row["backbone"]) if row["status"] == "finished" else row["status"],
        *(_changed(row[f"{name}_paper"], row[name]) for name in ("batch_size", "epochs", "size")),
        f"{row['reported']:.4f}",
        _fixed(row["accuracy"]),
        "" if pd.isna(low) else f"{low:.3f} to {high:.3f}",
        _fixed(row["all_zero"]),
        "" if pd.isna(leaky) else f"{leaky:.3f} {LEAKY}",
        _fixed(row["auroc"]),
        *("" if pd.isna(row[name]) else f"{row[name]:,.0f}" for name in ("slices", "patients")),
    ]


def _changed(paper: int, here: int) -> str:
    return str(here) if paper == here else f"{paper} → {here}"


def _fixed(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}"

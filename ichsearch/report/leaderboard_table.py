"""The leaderboard on a terminal: the tie group first, intervals beside scores, what no baseline is beaten by marked.

In: a leaderboard. Out: a rich table; the same as JSON.
"""

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from ichsearch.data.split import LEAKY
from ichsearch.report.leaderboard import BASELINE, BY_SLICE
from ichsearch.terminal import literal

NOTHING: Final = ""
HEADINGS: Final = ("rank", "trial", "backbone", "{metric}", "95 %", "minus best", "p (Holm)", "beats rules")
ALWAYS: Final = ("epochs", "chain_seconds")
"""Columns that stand behind those; others on demand."""
CONFIRMED: Final = ("confirmed_mean", "test_score")
"""Those of a run of which some trial was confirmed."""
LEAST_P: Final = 0.001


def as_table(board: pd.DataFrame, more: Sequence[str] = ()) -> Table:
    """The leaderboard as a table; `more` names columns of numbers to be shown too."""
    metric = str(board["metric"].iloc[0]) if len(board) else "score"
    metric = f"{LEAKY} {metric}" if (board["split"] == BY_SLICE).any() else metric
    confirmed = (name for name in CONFIRMED if board[name].notna().any())
    shown = list(dict.fromkeys([*more, *confirmed, *ALWAYS]))
    table = Table(*(literal(heading.format(metric=metric)) for heading in HEADINGS), box=SIMPLE, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right")
    tied = board["tied"].fillna(value=False).to_numpy(bool)
    for number, (_, row) in enumerate(board.iterrows()):
        last_of_group = bool(tied[number] and not tied[number + 1 :].any())
        cells = [*_cells(row), *(_number(row[name]) for name in shown)]
        table.add_row(*map(literal, cells), style=_style(row), end_section=last_of_group)
    return table


def _cells(row: "pd.Series[Any]") -> list[str]:
    return [
        _number(row["rank"]),
        str(row["trial"]),
        _what(row),
        _fixed(row["score"]),
        NOTHING if pd.isna(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}",
        _fixed(row["difference"], "+"),
        f"<{LEAST_P}" if row["p_holm"] < LEAST_P else _fixed(row["p_holm"]),
        NOTHING if pd.isna(row["beats_baselines"]) else ("yes" if row["beats_baselines"] else "not shown"),
    ]


def _what(row: "pd.Series[Any]") -> str:
    """The backbone, or why there is no score."""
    if row["status"] == BASELINE:
        return "sees no image"
    return str(row["backbone"]) if row["status"] == "finished" else f"{row['status']} {row['reason']}".strip()


def _fixed(value: float, sign: str = "") -> str:
    return NOTHING if pd.isna(value) else f"{value:{sign}.3f}"


def _number(value: Any) -> str:
    return NOTHING if pd.isna(value) else f"{value:.4g}"


def _style(row: "pd.Series[Any]") -> str:
    if row["status"] != "finished":
        return "dim"
    return "bold" if row["rank"] == 1 else ""


def as_objects(board: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them, null for what is empty."""
    return [{str(name): _plain(value) for name, value in row.items()} for row in board.to_dict("records")]


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value

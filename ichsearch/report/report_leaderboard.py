"""The leaderboard of the report: every trial that has a score, its interval drawn, and the rules that see no image.

In: a `RunData`. Out: a `Section`.
"""

from dataclasses import replace
from typing import Any, Final

import pandas as pd

from ichsearch.report.chart import interval_mark
from ichsearch.report.leaderboard import BASELINE
from ichsearch.report.page import Cell, Column, Row, Section, Table, number, words
from ichsearch.report.run_data import RunData
from ichsearch.report.scales import Scale, linear
from ichsearch.search.durations import duration_text

INTERVAL: Final = "95 %"
COLUMNS: Final = (
    Column("trial", words=True),
    Column("rank", "trials that are not distinguishable from the best share rank 1"),
    Column("backbone", words=True),
    Column("score", "of the validation patients"),
    Column(INTERVAL, "interval over resampled patients; upright line: the best rule that sees no image"),
    Column("minus best", "difference to the best trial on the same resamples"),
    Column("p", "of that difference, corrected for the number of trials (Holm)"),
    Column("beats rules", "shown to beat every rule that sees no image", words=True),
    Column("log loss"),
    Column("AUROC, patients", "any haemorrhage; a patient's score is the mean of his three highest slices"),
    Column("epochs", "of the trial, its parents' included"),
    Column("batch"),
    Column("size", "pixels of an image's side"),
    Column("lr", "highest learning rate"),
    Column("weights", "what the backbone started from", words=True),
    Column("time", "of training and validation, its parents' not counted"),
    Column("parameters", "in millions"),
    Column("from", "the trial that it was promoted from", words=True),
)


def leaderboard(data: RunData) -> Section:
    """Every trial with a score, the best first, and the baselines."""
    table = data.leaderboard[data.leaderboard["score"].notna()]
    scale = _scale(table)
    best_rule = table.loc[table["trial"] == data.rival, "score"].tolist()
    rows = [_row(row, scale, best_rule) for row in table.to_dict("records")]
    return Section(
        "leaderboard",
        "Leaderboard",
        "Rank 1 is a group that these patients do not tell apart; equal they need not be: more patients would tell.",
        notes=[
            f"{data.space.told_metric} on the validation patients. A heading sorts, again the other way; pointing at a "
            "row lights up its marks."
        ],
        tables=[Table("Leaderboard", _columns(scale), rows, sortable=True)],
    )


def _columns(scale: Scale) -> list[Column]:
    """The columns; that of the drawn intervals tells from where to where it is drawn."""
    shown = f"{INTERVAL}, {scale.low:.2g} to {scale.high:.2g}"
    return [replace(column, name=shown) if column.name == INTERVAL else column for column in COLUMNS]


def _scale(table: pd.DataFrame) -> Scale:
    """One scale for all intervals, so that they can be compared down the column."""
    names = [name for name in ("low", "score", "high") if name in table]
    return linear(table[names].to_numpy(float).ravel().tolist())


def _row(row: dict[Any, Any], scale: Scale, rules: list[float]) -> Row:
    is_rule = row["status"] == BASELINE
    seconds = row["seconds"]
    cells = [
        words(row["trial"]),
        number(row["rank"], ".0f"),
        words("sees no image" if is_rule else row["backbone"]),
        number(row["score"]),
        _interval(row, scale, rules),
        number(row.get("difference"), "+.3f"),
        number(row.get("p_holm"), ".2g"),
        _beats(row, is_rule),
        number(row["log_loss"]),
        number(row["patient_auroc_any"]),
        number(row["epochs"], ".0f"),
        number(row["batch_size"], ".0f"),
        number(row["size"], ".0f"),
        number(row["lr"], ".2g"),
        words(row["weights"]),
        Cell("–") if pd.isna(seconds) else Cell(duration_text(seconds), float(seconds)),
        number(row["parameters_m"], ".1f"),
        words(row["parent"]),
    ]
    return Row(cells, "" if is_rule else str(row["trial"]), _style(row, is_rule))


def _interval(row: dict[Any, Any], scale: Scale, rules: list[float]) -> Cell:
    low, high = row.get("low"), row.get("high")
    if low is None or pd.isna(low) or high is None or pd.isna(high):
        return Cell("–")
    return Cell(interval_mark(scale, float(low), float(row["score"]), float(high), rules), float(low))


def _beats(row: dict[Any, Any], is_rule: bool) -> Cell:
    beats = row.get("beats_baselines")
    if is_rule or beats is None or pd.isna(beats):
        return Cell("–")
    return words("yes", "good") if beats else words("not shown", "bad")


def _style(row: dict[Any, Any], is_rule: bool) -> str:
    if is_rule:
        return BASELINE
    return "tied" if row.get("rank") == 1 else ""

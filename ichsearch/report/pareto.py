"""Which trials no other trial is better than in every respect.

In: a leaderboard and the names of its columns that count. Out: a mask of its rows.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from ichsearch.errors import ConfigError
from ichsearch.search.rules import nearest
from ichsearch.train.metrics import BoolArray

COSTS: Final = (
    "seconds", "chain_seconds", "parameters_m", "memory_mb", "epochs", "epochs_trained", "batch_size", "micro_batch",
    "size", "rank", "place", "confirmed_sd",
)  # fmt: skip
RANKED: Final = (
    "score", "low", "high", "difference", "difference_low", "difference_high",
    "confirmed_mean", "test_score", "test_low", "test_high",
)  # fmt: skip
"""Of these less is better where it is of the metric that ranks."""
LOSSES: Final = ("log_loss", "calibration_error")
"""Of these, like of costs, less is better; of all other columns more."""


def pareto_front(table: pd.DataFrame, columns: Sequence[str]) -> BoolArray:
    """(N,) the finished trials for which no other one is at least as good in all columns and better in one.

    Raises:
        ConfigError: a column does not exist, or holds no numbers.
    """
    for name in columns:
        if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
            known = [column for column in map(str, table) if pd.api.types.is_numeric_dtype(table[column])]
            raise ConfigError(f"--pareto takes columns of numbers, but {name!r} is none; {nearest(name, known)}")
        if table[name].isna().all():
            raise ConfigError(f"--pareto takes columns that trials have values in, but {name} is empty; leave it out")
    values = np.stack([_costs(table, name) for name in columns], axis=1)
    whole = (table["status"] == "finished").to_numpy() & ~np.isnan(values).any(axis=1)
    no_worse = (values[:, None] <= values).all(axis=2)  # (i, j): i is at least as good as j
    better = (values[:, None] < values).any(axis=2)
    dominated = (no_worse & better & whole[:, None]).any(axis=0)
    return whole & ~dominated


def _costs(table: pd.DataFrame, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    values = table[name].to_numpy(np.float64, na_value=np.nan)
    return values if less_is_better(table, name) else -values


def less_is_better(table: pd.DataFrame, name: str) -> bool:
    """Whether of a column of the leaderboard less is better."""
    ranked_by = table["metric"].iloc[0] if name in RANKED and len(table) else name
    return ranked_by in COSTS or ranked_by.startswith(LOSSES)

"""The labels CSV of RSNA 2019: columns `ID,Label`, six rows a slice, `ID_<hex>_<label>`.

In: a CSV file. Out: the six labels of each slice, by SOPInstanceUID.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ichsearch.errors import DataError
from ichsearch.labels import LABELS

SliceLabels = tuple[int, ...]


def read_labels(path: Path) -> dict[str, SliceLabels]:
    """Labels of every slice in the order of `LABELS`, each 0 or 1.

    A row that stands twice with the same value counts once (RSNA has 24 such).

    Raises:
        DataError: the file is missing, or breaks a rule of its form; the message names the first offender.
    """
    rows = _rows(path)
    parts = rows["ID"].str.rpartition("_")
    rows["slice"], rows["label"] = parts[0], parts[2]
    _refuse(rows, ~rows["label"].isin(LABELS), "an ID must end in one of " + ", ".join(LABELS))
    _refuse(rows, ~rows["Label"].isin(["0", "1"]), "a Label must be 0 or 1")
    rows = rows.drop_duplicates(["slice", "label", "Label"])
    _refuse(rows, rows.duplicated(["slice", "label"], keep=False), "an ID must have one value, but this one has both")
    table = rows.pivot(index="slice", columns="label", values="Label").reindex(columns=list(LABELS))
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise DataError(
            f"a slice must have six labels, but {incomplete[0]} has fewer ({len(incomplete)} such); add them"
        )
    values = table.to_numpy().astype(np.int8)
    return {str(uid): tuple(labels) for uid, labels in zip(table.index, values.tolist(), strict=True)}


def _rows(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"the labels CSV must exist, but {path} does not; check --labels") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"the labels must be a CSV file, but {path.name} is not ({error})") from None
    missing = [name for name in ("ID", "Label") if name not in rows.columns]
    if missing:
        found = ", ".join(map(str, rows.columns[:8]))
        raise DataError(
            f"the labels CSV must have the columns ID and Label, but {path.name} lacks {', '.join(missing)} "
            f"(it has {found}); use the form of RSNA's stage_2_train.csv"
        )
    if rows.empty:
        raise DataError(f"the labels CSV must have rows, but {path.name} has none; check --labels")
    return rows[["ID", "Label"]].copy()


def _refuse(rows: pd.DataFrame, bad: "pd.Series[bool]", rule: str) -> None:
    if bad.any():
        first = rows[bad].iloc[0]
        raise DataError(f"{rule}: {first['ID']} = {first['Label']!r} ({int(bad.sum())} such rows); mend the labels CSV")

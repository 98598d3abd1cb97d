"""The labels CSV in one of three forms: long as in RSNA 2019, wide with a column a label, or the reads of CQ500.

In: a CSV file. Out: the six labels of each slice, series, study or patient, by its identifier.

An error names lines (the header is line 1), never an identifier or a cell: messages end in logs that others read.
"""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ichsearch.errors import DataError
from ichsearch.labels import ANY, LABELS, SUBTYPES

SliceLabels = tuple[int, ...]
"""Six of 0 and 1 in the order of `LABELS`."""

Level = Literal["slice", "series", "study", "patient"]

Bits = NDArray[np.int8]
"""One row a line of the file or an identifier, one column a label."""

_LEVELS: Final[dict[str, Level]] = {
    "SOPInstanceUID": "slice",
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
}
"""What an identifier column of the wide form names, the most specific first."""

_READERS: Final = ("R1", "R2", "R3")
_CQ500: Final = ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH")
"""The findings of CQ500's readers (Chilamkurthy 2018), in the order of `LABELS`."""
_READS: Final = [f"{reader}:{finding}" for reader in _READERS for finding in _CQ500]

_FORMS: Final = "ID,Label as in RSNA 2019, a DICOM UID with one column a label, or those of CQ500's reads.csv"

_MEND: Final = "mend the labels CSV"

_ROWS_AT_ONCE: Final = 100_000
"""Text is parsed so many rows at a time: it takes ten times the memory that is kept of it."""


@dataclass(frozen=True)
class Labels:
    """The labels of a file, and what they belong to."""

    level: Level
    """What an identifier names."""
    values: dict[str, SliceLabels]
    """Labels by SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID or PatientID, taken as opaque text."""


def read_labels(path: Path) -> Labels:
    """Labels of everything the file names; the columns of its header say which form it has.

    - `ID,Label`: RSNA's long form, six rows `<SOPInstanceUID>_<label>` a slice.
    - `SOPInstanceUID`, `SeriesInstanceUID` or `StudyInstanceUID`, and a column a label: the wide form. Of several such
      identifiers the most specific counts (slice before series before study). `any` may be left out: then it is 1
      where a subtype is 1.
    - `name` and `R1:ICH` to `R3:SAH`: CQ500's reads.csv. A label is what two of its three readers say, and `any` is 1
      as well where two of them agree on a subtype.

    Other columns are ignored. What stands twice with the same values counts once (RSNA has 24 such rows).

    Raises:
        DataError: the file is missing, or breaks a rule of its form; the message names the first line that does.
    """
    rows = _rows(path)
    header = set(rows.columns)
    if {"ID", "Label"} <= header:
        return Labels("slice", _long(rows))
    for identifier, level in _LEVELS.items():
        if identifier in header:
            return Labels(level, _wide(rows, identifier))
    if not header.isdisjoint(_READS):
        return Labels("patient", _reads(rows))
    raise _lacking([name for name in ("ID", "Label") if name not in header])


def _long(rows: pd.DataFrame) -> dict[str, SliceLabels]:
    rows = _select(rows, ["ID", "Label"])
    names, columns = _split_ids(rows["ID"])
    said = _bits(rows, ["Label"])[:, 0]
    slices, uids = pd.factorize(names)
    table = np.full((len(uids), len(LABELS)), -1, np.int8)
    first = ~pd.Series(slices * len(LABELS) + columns).duplicated().to_numpy()
    table[slices[first], columns[first]] = said[first]
    conflicts = pd.Series(table[slices, columns] != said, rows.index)
    _refuse(conflicts, "an ID must have one value", "contradicts an earlier line")
    incomplete = pd.Series(table.min(axis=1)[slices] < 0, rows.index)
    _refuse(incomplete, "a slice must have six labels", "names one that has fewer")
    return _by_identifier(uids, table)


def _split_ids(ids: "pd.Series[str]") -> tuple["pd.Series[str]", NDArray[np.int64]]:
    """The SOPInstanceUID of each ID of the long form, and the column of its label."""
    rule = "an ID must be <SOPInstanceUID>_<label> with a label of " + ", ".join(LABELS)
    names, columns = [], []
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        parts = ids.iloc[start : start + _ROWS_AT_ONCE].str.rpartition("_")
        _refuse((parts[0] == "") | ~parts[2].isin(LABELS), rule, "holds another")
        names.append(parts[0])
        columns.append(pd.Index(LABELS).get_indexer(pd.Index(parts[2])))
    return pd.concat(names), np.concatenate(columns)


def _wide(rows: pd.DataFrame, identifier: str) -> dict[str, SliceLabels]:
    names = [*SUBTYPES, ANY] if ANY in rows.columns else [*SUBTYPES]
    rows = _select(rows, [identifier, *names])
    bits = _bits(rows, names)
    subtype = bits[:, : len(SUBTYPES)].any(axis=1)
    if ANY in names:
        denied = pd.Series(subtype & (bits[:, -1] == 0), rows.index)
        _refuse(denied, "any must be 1 where a subtype is 1", "has any = 0 beside a subtype of 1")
        return _one_each(rows[identifier], bits)
    return _one_each(rows[identifier], np.column_stack([bits, subtype]).astype(np.int8))


def _reads(rows: pd.DataFrame) -> dict[str, SliceLabels]:
    rows = _select(rows, ["name", *_READS])
    votes = _bits(rows, _READS).reshape(len(rows), len(_READERS), len(_CQ500)).sum(axis=1)
    majority = (votes >= 2).astype(np.int8)
    majority[:, -1] |= majority[:, :-1].any(axis=1)
    return _one_each(rows["name"], majority)


def _one_each(identifiers: "pd.Series[str]", table: Bits) -> dict[str, SliceLabels]:
    """Labels by identifier; one that stands on several lines must say the same on each."""
    _refuse(identifiers == "", "a row must have an identifier", "has none")
    codes, unique = pd.factorize(identifiers)
    firsts = table[~identifiers.duplicated().to_numpy()]
    conflicts = pd.Series((firsts[codes] != table).any(axis=1), identifiers.index)
    _refuse(conflicts, "an identifier must have the same labels wherever it stands", "contradicts an earlier line")
    return _by_identifier(unique, firsts)


def _by_identifier(identifiers: "pd.Index[str]", table: Bits) -> dict[str, SliceLabels]:
    same: dict[SliceLabels, SliceLabels] = {}  # there are few different ones: one copy each
    return {
        str(uid): same.setdefault(labels, labels)
        for uid, labels in zip(identifiers, map(tuple, table.tolist()), strict=True)
    }


def _bits(rows: pd.DataFrame, names: list[str]) -> Bits:
    cells = rows[names]
    good = cells.isin(["0", "1"])
    bad = ~good.all(axis=1)
    if bad.any():
        column = names[int(good[bad].iloc[0].to_numpy().argmin())]
        _refuse(bad, "a label must be 0 or 1", f"holds one that is neither 0 nor 1 in column {column}")
    return (cells == "1").to_numpy(dtype=np.int8)


def _rows(path: Path) -> pd.DataFrame:
    """The rows below the header as text, indexed by the line of the file each starts on."""
    cells = _cells(path)
    breaks = sum(cells[column].str.count("\n") for column in cells)  # line breaks within quotes
    cells.index = pd.Index(np.arange(1, len(cells) + 1) + np.cumsum(breaks) - breaks)
    rows = cells.iloc[1:].set_axis(cells.iloc[0].to_list(), axis=1)
    rows = rows[(rows != "").any(axis=1)]
    if rows.empty:
        raise DataError("the labels CSV must have rows below its header, but it has none; check --labels")
    return rows


def _cells(path: Path) -> pd.DataFrame:
    """The whole file as text, the header as its first row: so no row is widened, renamed or skipped."""
    try:
        pieces = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            header=None,
            skip_blank_lines=False,
            chunksize=_ROWS_AT_ONCE,
        )
        return pd.concat(pieces, ignore_index=True)
    except FileNotFoundError:
        raise DataError("the labels CSV must exist, but it does not; check --labels") from None
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise DataError(f"the labels CSV must be readable, but it is not ({reason}); check --labels") from None
    except pd.errors.EmptyDataError:
        raise DataError("the labels CSV must have a header and rows, but it is empty; check --labels") from None
    except pd.errors.ParserError as error:
        line = re.search(r"in line (\d+)", str(error))
        where = f"near line {line[1]} it has more cells than its header" if line else "it is not (an open quote?)"
        raise DataError(f"the labels must be a CSV file, but {where}; {_MEND}") from None
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile):
        raise DataError("the labels must be a CSV file in UTF-8, but they are not; check --labels") from None


def _select(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The columns `names`, each of which the header must have once."""
    header = rows.columns.to_list()
    if missing := [name for name in names if name not in header]:
        raise _lacking(missing)
    if repeated := [name for name in names if header.count(name) > 1]:
        raise DataError(f"a column must stand once, but {', '.join(repeated)} stand more often; {_MEND}")
    return rows[names]


def _lacking(missing: list[str]) -> DataError:
    return DataError(f"the labels CSV must have the columns of its form, but lacks {', '.join(missing)}; use {_FORMS}")


def _refuse(bad: "pd.Series[bool]", rule: str, wrong: str) -> None:
    """End with the first line that is `bad`, and how many are; `bad` is indexed by line."""
    if bad.any():
        raise DataError(f"{rule}, but line {bad.index[bad][0]} {wrong} ({int(bad.sum())} in all); {_MEND}")

"""The labels CSV: its form is checked rule by rule, and the first offender is named."""

from pathlib import Path

import pytest

from ichsearch.errors import DataError
from ichsearch.labels import LABELS
from ichsearch.shards.labels_csv import read_labels

POSITIVE = {"ID_b": {"subdural", "any"}}


def rows_of(*slices: str) -> list[str]:
    """Six rows a slice, in an order that is not that of `LABELS`."""
    return [f"{uid}_{label},{int(label in POSITIVE.get(uid, ()))}" for label in reversed(LABELS) for uid in slices]


def csv_file(tmp_path: Path, rows: list[str], header: str = "ID,Label", encoding: str = "utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_come_in_the_order_of_the_six(tmp_path: Path, encoding: str) -> None:
    labels = read_labels(csv_file(tmp_path, rows_of("ID_a", "ID_b"), encoding=encoding))

    assert labels == {"ID_a": (0, 0, 0, 0, 0, 0), "ID_b": (0, 0, 0, 0, 1, 1)}


def test_the_order_of_rows_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    rows = [f"x,{row}" for row in sorted(rows_of("ID_a", "ID_b"))]

    assert read_labels(csv_file(tmp_path, rows, "note,ID,Label"))["ID_b"] == (0, 0, 0, 0, 1, 1)


def test_windows_line_ends_and_underscores_in_identifiers_are_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path, rows_of("1.2_3"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    assert read_labels(path) == {"1.2_3": (0, 0, 0, 0, 0, 0)}


def test_an_identical_duplicate_counts_once(tmp_path: Path) -> None:
    rows = rows_of("ID_a", "ID_b")

    assert read_labels(csv_file(tmp_path, [*rows, rows[3], rows[4]])) == read_labels(csv_file(tmp_path, rows))


def test_a_conflicting_duplicate_is_named(tmp_path: Path) -> None:
    rows = [*rows_of("ID_a", "ID_b"), "ID_b_epidural,1"]

    with pytest.raises(DataError, match=r"one value.*ID_b_epidural.*2 such rows"):
        read_labels(csv_file(tmp_path, rows))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must exist.*labels\.csv.*--labels"):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("header", "lacks"),
    [("id,label", "lacks ID, Label"), ("ID,Probability", "lacks Label"), ("Image,Label", "lacks ID")],
)
def test_missing_columns_are_named(tmp_path: Path, header: str, lacks: str) -> None:
    with pytest.raises(DataError, match=lacks):
        read_labels(csv_file(tmp_path, rows_of("ID_a"), header))


@pytest.mark.parametrize("identifier", ["ID_a_fracture", "ID_a", "ID_a_Any", "ID_a_any ", "", "any_"])
def test_an_unknown_label_is_named(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(DataError, match=f"must end in one of epidural.*: {identifier} = '1' "):
        read_labels(csv_file(tmp_path, [*rows_of("ID_a"), f"{identifier},1"]))


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "1.0", "true", "", "nan", "01"])
def test_a_value_other_than_0_and_1_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=f"must be 0 or 1: ID_c_any = '{value}' "):
        read_labels(csv_file(tmp_path, [*rows_of("ID_a"), f"ID_c_any,{value}"]))


def test_an_incomplete_slice_is_named(tmp_path: Path) -> None:
    rows = rows_of("ID_a", "ID_b", "ID_c")
    kept = [row for row in rows if row not in ("ID_b_any,1", "ID_c_any,0")]

    with pytest.raises(DataError, match=r"six labels.*ID_b.*2 such"):
        read_labels(csv_file(tmp_path, kept))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\1", b'ID,Label\n"ID_a,1\n'], ids=["empty", "binary", "quote"])
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"labels\.csv|ID must end"):
        read_labels(path)


def test_a_csv_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_labels(csv_file(tmp_path, []))


def test_a_folder_is_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a CSV file"):
        read_labels(tmp_path)

"""The labels CSV: three forms; each rule is checked, and the first line that breaks it is named, never what it says."""

import itertools
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from ichsearch.errors import DataError
from ichsearch.labels import LABELS, SUBTYPES
from ichsearch.shards.labels_csv import Labels, read_labels

CANARY = "1.2.840.99.CANARY"
POSITIVE = {"ID_b": {"subdural", "any"}}
FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")
WIDE = "SOPInstanceUID,subdural,any,epidural,intraparenchymal,intraventricular,subarachnoid"


def rows_of(*slices: str) -> list[str]:
    """Six rows a slice, in an order that is not that of `LABELS`."""
    return [f"{uid}_{label},{int(label in POSITIVE.get(uid, ()))}" for label in reversed(LABELS) for uid in slices]


def csv_file(tmp_path: Path, rows: list[str], header: str = "ID,Label", encoding: str = "utf-8") -> Path:
    path = tmp_path / "canary_name.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def refusal(path: Path) -> str:
    """What the user reads: neither the canary nor the path may be in it."""
    with pytest.raises(DataError) as refused:
        read_labels(path)
    assert "canary" not in str(refused.value).lower()
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_come_in_the_order_of_the_six(tmp_path: Path, encoding: str) -> None:
    labels = read_labels(csv_file(tmp_path, rows_of("ID_a", "ID_b"), encoding=encoding))

    assert labels == Labels("slice", {"ID_a": (0, 0, 0, 0, 0, 0), "ID_b": (0, 0, 0, 0, 1, 1)})
    assert all(type(value) is int for value in labels.values["ID_b"])


def test_the_order_of_rows_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    rows = [f"x,{row}" for row in sorted(rows_of("ID_a", "ID_b"))]

    assert read_labels(csv_file(tmp_path, rows, "note,ID,Label")).values["ID_b"] == (0, 0, 0, 0, 1, 1)


def test_windows_line_ends_and_underscores_in_identifiers_are_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path, rows_of("1.2_3"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))

    assert read_labels(path).values == {"1.2_3": (0, 0, 0, 0, 0, 0)}


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = rows_of("ID_a")

    assert read_labels(csv_file(tmp_path, ["", *rows, ",", ""])) == read_labels(csv_file(tmp_path, rows))


def test_an_identical_duplicate_counts_once(tmp_path: Path) -> None:
    rows = rows_of("ID_a", "ID_b")

    assert read_labels(csv_file(tmp_path, [*rows, rows[3], rows[4]])) == read_labels(csv_file(tmp_path, rows))


def test_the_line_of_a_conflicting_duplicate_is_named(tmp_path: Path) -> None:
    rows = [*rows_of(CANARY), f"{CANARY}_epidural,0", f"{CANARY}_epidural,1"]

    assert "must have one value, but line 9 contradicts an earlier line (1 in all)" in refusal(csv_file(tmp_path, rows))


@pytest.mark.parametrize("tail", ["_fracture", "", "_Any", "_any "])
def test_the_line_of_an_unknown_label_is_named(tmp_path: Path, tail: str) -> None:
    says = refusal(csv_file(tmp_path, [*rows_of("ID_a"), f"{CANARY}{tail},1"]))

    assert "an ID must be" in says
    assert "line 8 " in says


@pytest.mark.parametrize("identifier", ["", "any_", "_any", "any"])
def test_half_an_identifier_is_refused(tmp_path: Path, identifier: str) -> None:
    assert "line 8 " in refusal(csv_file(tmp_path, [*rows_of("ID_a"), f"{identifier},1"]))


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "1.0", "true", "", "nan", "01", " 1", CANARY])
def test_the_line_of_a_value_other_than_0_and_1_is_named(tmp_path: Path, value: str) -> None:
    says = refusal(csv_file(tmp_path, [*rows_of("ID_a"), f"{CANARY}_any,{value}", f"{CANARY}_any,{value}"]))

    assert (
        says == "a label must be 0 or 1, but line 8 holds one that is neither 0 nor 1 in column Label (2 in all); "
        "mend the labels CSV"
    )


def test_the_line_of_an_incomplete_slice_is_named(tmp_path: Path) -> None:
    rows = [*rows_of("ID_a"), *rows_of(CANARY)[1:], *rows_of("ID_c")[2:]]

    assert "six labels, but line 8 names one that has fewer (9 in all)" in refusal(csv_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("before", "line"),
    [(["", ""], 10), (['"ID_q\n\n_any",0'], 11), (['"a\n",1'], 8)],
    ids=["blank", "after_quoted_breaks", "of_a_quoted_break"],
)
def test_lines_are_counted_as_an_editor_does(tmp_path: Path, before: list[str], line: int) -> None:
    says = refusal(csv_file(tmp_path, [*rows_of("ID_a"), *before, f"{CANARY},2"]))

    assert f"line {line} " in says


@pytest.mark.parametrize(
    ("header", "lacks"),
    [("id,label", "lacks ID, Label;"), ("ID,CANARY", "lacks Label;"), ("Canary,Label", "lacks ID;")],
)
def test_missing_columns_are_named(tmp_path: Path, header: str, lacks: str) -> None:
    assert lacks in refusal(csv_file(tmp_path, rows_of(CANARY), header))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "Label stand more often" in refusal(csv_file(tmp_path, [f"{CANARY}_any,1,0"], "ID,Label,Label"))


@pytest.mark.parametrize(
    ("identifier", "level"),
    [("SOPInstanceUID", "slice"), ("SeriesInstanceUID", "series"), ("StudyInstanceUID", "study")],
)
def test_the_wide_form_names_slices_series_or_studies(tmp_path: Path, identifier: str, level: str) -> None:
    header = WIDE.replace("SOPInstanceUID", f"note,{identifier}")

    labels = read_labels(csv_file(tmp_path, ["x,1.2,1,1,0,0,0,0", "y,1.3,0,0,0,0,0,0"], header))

    assert labels == Labels(level, {"1.2": (0, 0, 0, 0, 1, 1), "1.3": (0, 0, 0, 0, 0, 0)})  # type: ignore[arg-type]


def test_the_most_specific_of_several_identifiers_counts(tmp_path: Path) -> None:
    header = ",".join(["StudyInstanceUID", "ID", "SeriesInstanceUID", *SUBTYPES])

    labels = read_labels(csv_file(tmp_path, ["1,7,1.2,0,0,0,0,0", "1,8,1.3,0,1,0,0,0"], header))

    assert labels == Labels("series", {"1.2": (0, 0, 0, 0, 0, 0), "1.3": (0, 1, 0, 0, 0, 1)})


def test_without_any_it_is_the_or_of_the_subtypes(tmp_path: Path) -> None:
    cases = list(itertools.product((0, 1), repeat=5))
    rows = [f"1.{n}," + ",".join(map(str, case)) for n, case in enumerate(cases)]

    values = read_labels(csv_file(tmp_path, rows, ",".join(["SOPInstanceUID", *SUBTYPES]))).values

    assert values == {f"1.{n}": (*case, max(case)) for n, case in enumerate(cases)}


def test_any_may_stand_alone_but_not_be_denied(tmp_path: Path) -> None:
    alone = ["1.2,0,1,0,0,0,0"]

    assert read_labels(csv_file(tmp_path, alone, WIDE)).values == {"1.2": (0, 0, 0, 0, 0, 1)}
    says = refusal(csv_file(tmp_path, [*alone, f"{CANARY},1,0,0,0,0,0"], WIDE))
    assert "any must be 1 where a subtype is 1, but line 3 " in says


@pytest.mark.parametrize("value", ["", "1.0", "0.0", CANARY])
@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_wide_label_is_0_or_1(tmp_path: Path, value: str, place: int) -> None:
    cells = ["0"] * 6
    cells[place] = value

    says = refusal(csv_file(tmp_path, [",".join([CANARY, *cells])], WIDE))

    assert f"line 2 holds one that is neither 0 nor 1 in column {WIDE.split(',')[1 + place]} (1 in all)" in says


def test_a_wide_identifier_may_stand_twice_if_its_labels_agree(tmp_path: Path) -> None:
    rows = [f"{CANARY},1,1,0,0,0,0", "1.3,0,0,0,0,0,0", f"{CANARY},1,1,0,0,0,0"]

    assert len(read_labels(csv_file(tmp_path, rows, WIDE)).values) == 2
    says = refusal(csv_file(tmp_path, [*rows, f"{CANARY},0,1,0,0,0,0"], WIDE))
    assert "the same labels wherever it stands, but line 5 contradicts" in says


def test_a_wide_row_needs_an_identifier(tmp_path: Path) -> None:
    assert "must have an identifier, but line 2 has none" in refusal(csv_file(tmp_path, [",0,0,0,0,0,0"], WIDE))


def test_the_missing_columns_of_the_wide_form_are_named(tmp_path: Path) -> None:
    header = "SeriesInstanceUID,canary,epidural,Subdural,intraventricular,subarachnoid"

    assert "lacks intraparenchymal, subdural;" in refusal(csv_file(tmp_path, ["1,0,0,0,0,0"], header))


def reads_header() -> str:
    """As in CQ500, with columns between that are none of the six."""
    readers = [[*(f"R{n}:{finding}" for finding in FINDINGS), f"R{n}:BleedLocation-Left"] for n in (1, 2, 3)]
    return ",".join(["name", "Category", *itertools.chain(*readers)])


def reads_row(name: str, *readers: str) -> str:
    """One row; a reader's findings as words."""
    cells = [[*(str(int(finding in said.split())) for finding in FINDINGS), ""] for said in readers]
    return ",".join([name, "B1", *itertools.chain(*cells)])


@pytest.mark.parametrize(
    ("readers", "labels"),
    [
        (("ICH EDH", "ICH EDH", ""), (1, 0, 0, 0, 0, 1)),
        (("ICH IPH", "ICH IPH", "ICH IPH"), (0, 1, 0, 0, 0, 1)),
        (("", "ICH IVH", "ICH IVH"), (0, 0, 1, 0, 0, 1)),
        (("ICH SAH", "", "ICH SAH"), (0, 0, 0, 1, 0, 1)),
        (("ICH SDH", "ICH SDH", ""), (0, 0, 0, 0, 1, 1)),
        (("ICH SDH IPH", "", ""), (0, 0, 0, 0, 0, 0)),
        (("ICH SDH", "ICH IPH", ""), (0, 0, 0, 0, 0, 1)),
        (("ICH SDH", "SDH", ""), (0, 0, 0, 0, 1, 1)),
    ],
    ids=["edh", "iph", "ivh", "sah", "sdh", "one_reader", "any_without_subtype", "subtype_without_any"],
)
def test_two_of_three_readers_of_cq500_decide(
    tmp_path: Path, readers: tuple[str, str, str], labels: tuple[int, ...]
) -> None:
    rows = [reads_row("CQ500-CT-0", *readers), reads_row("CQ500-CT-10", "", "", "")]

    expected = Labels("patient", {"CQ500-CT-0": labels, "CQ500-CT-10": (0,) * 6})

    assert read_labels(csv_file(tmp_path, rows, reads_header())) == expected


def test_a_bad_read_and_a_contradicting_row_are_named_by_line(tmp_path: Path) -> None:
    good, other = reads_row(CANARY, "", "", ""), reads_row(CANARY, "ICH", "ICH", "")

    assert "line 3 holds" in refusal(csv_file(tmp_path, [good, good.replace(",0", ",x", 1)], reads_header()))
    assert "line 4 contradicts" in refusal(csv_file(tmp_path, [good, good, other], reads_header()))


def test_the_missing_columns_of_reads_are_named(tmp_path: Path) -> None:
    header = reads_header().replace("name", "canary").replace("R3:SAH", "canary")

    assert "lacks name, R3:SAH;" in refusal(csv_file(tmp_path, [reads_row(CANARY, "", "", "")], header))


def test_a_missing_file_is_refused_without_its_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "canary.csv") == "the labels CSV must exist, but it does not; check --labels"


def test_a_file_that_may_not_be_read_is_refused_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pd, "read_csv", refuse)

    assert "must be readable, but it is not (Permission denied)" in refusal(tmp_path / "canary.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf", "it is empty"),
        (b"\xff\xfe\0\1", "must be a CSV file"),
        (b'ID,Label\n"CANARY_any,1\n', "an open quote"),
        (b"ID,Label\nCANARY_any,1\nCANARY_any,1,CANARY\n", "near line 3 it has more cells"),
        (b"ID,Label\nCANARY_any,1,CANARY\n", "near line 2 it has more cells"),
        (b"ID,Label\nCANARY_any\n", "line 2 holds one that is neither"),
        (b"ID,Label\n", "must have rows"),
        (b"ID,Label\n\n,\n", "must have rows"),
    ],
    ids=[
        "empty",
        "byte_order_mark",
        "binary",
        "quote",
        "long_row",
        "long_first_row",
        "short_row",
        "no_rows",
        "blank_rows",
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "canary_name.csv"
    path.write_bytes(content)

    assert says in refusal(path)


@pytest.mark.parametrize("name", ["canary.csv.gz", "canary.csv.zip"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive")

    assert "the labels" in refusal(tmp_path / name)


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "canary.zip", "w") as archive:
        archive.writestr("canary_1.csv", "ID,Label\n")
        archive.writestr("canary_2.csv", "ID,Label\n")

    assert "must be a CSV file" in refusal(tmp_path / "canary.zip")


def test_a_folder_is_no_csv(tmp_path: Path) -> None:
    assert "must be readable" in refusal(tmp_path)

"""A canary in every place where a DICOM file or its path may name a patient is in nothing that a run leaves behind."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
import pydicom
import pytest
from bad_files import BAD, STORED
from dicom_files import head_hu, stored_12_bit, write_ct
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, JPEG2000Lossless

from ichsearch.dicom.elements import TAGS
from ichsearch.labels import LABELS

CANARY: Final = "CANARY4711"
SLICES: Final = 3
LONG_VRS: Final = {"UC": 200, "UT": 200, "LT": 200, "ST": 200}
TEXT_VRS: Final = ("AE", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
NEEDED: Final = frozenset(TAGS.values()) | {0x00080005}


def canary_dataset(ds: Dataset) -> None:
    """Set every text element of the dictionary that ichsearch does not need, nested and private ones too."""
    with pydicom.config.disable_value_validation():
        for tag, (vr, _, _, retired, _) in DicomDictionary.items():
            if vr in TEXT_VRS and not retired and tag >> 16 in range(0x0008, 0x7FE0) and tag not in NEEDED:
                ds.add_new(tag, vr, f"{CANARY}" if vr != "UI" else f"1.2.{CANARY}")
        nested = Dataset()
        nested.PatientName = f"{CANARY}^Nested"
        nested.PatientID = CANARY
        nested.add_new(0x00091002, "LO", CANARY)
        deeper = Dataset()
        deeper.OtherPatientIDsSequence = Sequence([nested])
        ds.OtherPatientIDsSequence = Sequence([nested, deeper])
        ds["OtherPatientIDsSequence"].is_undefined_length = True
        ds.ReferencedStudySequence = Sequence([deeper])
        for group in (0x0009, 0x0019, 0x7FD1):
            block = ds.private_block(group, CANARY, create=True)
            block.add_new(1, "LO", CANARY)
            block.add_new(2, "OB", CANARY.encode())
            block.add_new(3, "UN", CANARY.encode())
            block.add_new(4, "SQ", Sequence([nested]))


def write_canary(path: Path, index: int, *, study: str = "1", syntax: str | None = None) -> Path:
    """One slice; the canary is in its UIDs and PatientID as well, and in its preamble and file meta information."""
    identity = {
        "SOPInstanceUID": f"1.2.{CANARY}.4.{study}.{index}",
        "StudyInstanceUID": f"1.2.{CANARY}.1.{study}",
        "SeriesInstanceUID": f"1.2.{CANARY}.2.{study}",
        "PatientID": f"{CANARY}-4711",
        "ImagePositionPatient": [-125.0, 10.0, 5.0 * index],
        "ImageType": f"{CANARY}\\{CANARY}\\{CANARY}".encode(),
        "KVP": CANARY.encode(),
        "WindowCenter": CANARY.encode(),
        "ReconstructionDiameter": CANARY.encode(),
    }
    write_ct(path, stored_12_bit(head_hu(64, seed=index)), identity, **({"syntax": syntax} if syntax else {}))
    ds = pydicom.dcmread(path)
    canary_dataset(ds)
    ds.file_meta.SourceApplicationEntityTitle = CANARY
    ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.{CANARY}")
    ds.preamble = (CANARY * 13)[:128].encode()
    with pydicom.config.disable_value_validation():
        ds.save_as(path)
    assert path.read_bytes().count(CANARY.encode()) > 1000
    return path


def write_cohort(folder: Path) -> tuple[Path, Path]:
    """Good slices, plain and compressed, and bad ones of each kind; the folder itself bears the canary."""
    dicom = folder / f"{CANARY}^Anna"
    for study in ("1", "2"):
        for index in range(SLICES):
            write_canary(dicom / f"{CANARY} {study}" / f"{CANARY}_{index}.dcm", index, study=study)
    write_canary(dicom / f"{CANARY}_j2k.dcm", 7, study="3", syntax=JPEG2000Lossless)
    write_bad(dicom)
    labels = dicom / f"{CANARY}.csv"
    uids = [f"1.2.{CANARY}.4.1.0", f"1.2.{CANARY}.4.9.9"]
    labels.write_text("\n".join(["ID,Label", *(f"{uid}_{label},0" for uid in uids for label in LABELS)]) + "\n")
    return dicom, labels


def write_bad(dicom: Path) -> None:
    """Files refused at every stage: by the storage, the header, the pixels, the decoder, and as conflicting."""
    for name in ("empty", "html", "cut_in_a_value", "damaged_jpeg_2000", "nested_5000", "link_to_nowhere"):
        (dicom / f"{CANARY} {name}").mkdir(parents=True)
        path = BAD[name][0](dicom / f"{CANARY} {name}")
        path.rename(path.with_name(f"{CANARY}.dcm"))
    cut = write_canary(dicom / f"{CANARY}_cut.dcm", 8)
    cut.write_bytes(cut.read_bytes()[:-10])
    for index in (5, 6):
        path = write_canary(dicom / f"{CANARY}_conflict{index}.dcm", index)
        path.write_bytes(path.read_bytes().replace(f"4.1.{index}".encode(), b"4.1.5"))
    half = write_canary(dicom / f"{CANARY}_header.dcm", 9).read_bytes()
    (dicom / f"{CANARY}_header.dcm").write_bytes(half[: half.index(b"\x20\x00\x0d\x00UI") + 4])
    slope = write_canary(dicom / f"{CANARY}_slope.dcm", 10)
    ds = pydicom.dcmread(slope)
    with pydicom.config.disable_value_validation():
        ds["RescaleSlope"] = pydicom.dataelem.DataElement(0x00281053, "LO", CANARY)
        ds.save_as(slope)
    (dicom / f"{CANARY}.txt").write_text(CANARY)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a run's Ray keeps its logs; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="icr"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(ray_folder: Path, home: Path, *arguments: str | Path) -> tuple[int, str]:
    """The command as a user runs it, and all it printed."""
    environment = os.environ | {"RAY_TMPDIR": str(ray_folder), "ICHSEARCH_HOME": str(home), "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", "from ichsearch.cli import main; main()", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def files_with_canary(folder: Path) -> list[str]:
    """Names of all files below whose bytes, names, or decompressed Parquet values hold the canary."""
    found = []
    for path in folder.rglob("*"):
        if CANARY in path.name:
            found.append(str(path))
        if not path.is_file() or path.is_symlink():
            continue
        if CANARY.encode() in path.read_bytes() or (path.suffix == ".parquet" and CANARY in text_of(path)):
            found.append(str(path))
    return found


def text_of(path: Path) -> str:
    """Every value of a Parquet file that is text or bytes, and its metadata, as text."""
    file = pq.ParquetFile(path)
    table = file.read()
    columns = [name for name in table.column_names if str(table.schema.field(name).type) in ("string", "binary")]
    assert columns
    return repr(file.metadata.metadata) + repr(table.select(columns).to_pylist()) + repr(table.schema)


def logs_of(ray_folder: Path) -> list[Path]:
    return [path for path in ray_folder.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]


@pytest.mark.timeout(300)
def test_a_run_leaves_no_trace_of_a_patient(tmp_path: Path, ray_folder: Path) -> None:
    dicom, labels = write_cohort(tmp_path / "in")
    out, home = tmp_path / "out", tmp_path / "home"

    code, printed = run(ray_folder, home, "preprocess", dicom, "--labels", labels, "--out", out, "--size", "32")

    assert code == 0, printed
    assert "quarantined" in printed
    assert CANARY not in printed
    assert {"manifest.json", "quarantine.csv", "metadata.parquet"} <= {path.name for path in out.iterdir()}
    assert (out / "quarantine.csv").read_text().count("\n") >= 10
    assert files_with_canary(out) == []
    assert len(logs_of(ray_folder)) >= 3
    assert files_with_canary(ray_folder) == []
    check_private_list(home)

    code, printed = run(ray_folder, home, "inspect", out)

    assert code == 0, printed
    assert CANARY not in printed
    assert files_with_canary(out) == []


def check_private_list(home: Path) -> None:
    """The list of quarantined paths alone holds the canary, and is its owner's alone."""
    (private,) = (home / "quarantine").iterdir()
    assert files_with_canary(home) == [str(private)]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "patient.key").stat().st_mode) == 0o600
    assert CANARY not in private.name


def damaged_labels(labels: Path) -> dict[str, str]:
    """Contents of a labels CSV that end a run, each holding the canary where the error is."""
    good = labels.read_text()
    return {
        "value": good.replace(",0\n", f",{CANARY}\n", 1),
        "label": good.replace("_epidural", f"_{CANARY}", 1),
        "column": good.replace("ID,Label", f"{CANARY},Label"),
        "cells": good + f"{CANARY},{CANARY},{CANARY}\n",
        "quote": good + f'"{CANARY}\n',
        "conflict": good + f"1.2.{CANARY}.4.1.0_any,1\n",
        "missing_row": good + f"{CANARY}_any,1\n",
    }


@pytest.mark.timeout(300)
def test_no_failing_run_names_a_patient(tmp_path: Path, ray_folder: Path) -> None:
    """No folder, an empty one, one of bad files alone, labels missing or damaged, a folder in the way."""
    home = tmp_path / "home"
    bad, empty, missing = (tmp_path / kind / f"{CANARY}^Anna" for kind in ("bad", "empty", "missing"))
    write_bad(bad)
    for path in bad.glob(f"{CANARY}_[cs]*.dcm"):
        path.unlink()
    empty.mkdir(parents=True)
    one = tmp_path / "one" / f"{CANARY}^Anna"
    write_canary(one / f"{CANARY}.dcm", 0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").touch()

    runs: dict[str, tuple[int, list[str | Path]]] = {
        "missing": (3, [missing, "--out", tmp_path / "out"]),
        "a file": (3, [one / f"{CANARY}.dcm", "--out", tmp_path / "out"]),
        "empty": (3, [empty, "--out", tmp_path / "out"]),
        "bad": (3, [bad, "--out", tmp_path / "out"]),
        "labels": (3, [one, "--out", tmp_path / "out", "--labels", one / f"{CANARY}.csv"]),
        "foreign": (4, [one, "--out", foreign]),
    }
    for name, (expected, arguments) in runs.items():
        code, printed = run(ray_folder, home, "preprocess", *arguments)
        assert code == expected, (name, printed)
        assert CANARY not in printed, (name, printed)
        assert not (tmp_path / "out").exists(), name
    assert files_with_canary(ray_folder) == []
    assert files_with_canary(foreign) == []
    assert files_with_canary(home) == []


@pytest.mark.timeout(300)
def test_no_damaged_labels_csv_is_quoted(tmp_path: Path, ray_folder: Path) -> None:
    dicom = tmp_path / f"{CANARY}^Anna"
    write_canary(dicom / f"{CANARY}.dcm", 0)
    labels = tmp_path / f"{CANARY}.csv"
    labels.write_text("\n".join(["ID,Label", *(f"1.2.{CANARY}.4.1.0_{label},0" for label in LABELS)]) + "\n")
    arguments = ("preprocess", dicom, "--out", tmp_path / "out", "--labels", labels)

    for name, content in damaged_labels(labels).items():
        labels.write_text(content)
        code, printed = run(ray_folder, tmp_path / "home", *arguments)
        assert code == 3, (name, printed)
        assert CANARY not in printed, (name, printed)
    assert not (tmp_path / "out").exists()


def test_the_cohort_of_canaries_is_what_it_claims(tmp_path: Path) -> None:
    """Every element that is text is set, so that a new column could not slip through."""
    ds = pydicom.dcmread(write_canary(tmp_path / "slice.dcm", 0))

    for keyword in ("PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "ImageComments", "InstitutionName"):
        assert CANARY in str(ds.get_item(keyword).value), keyword
    assert STORED.shape == (ds.Rows, ds.Columns)

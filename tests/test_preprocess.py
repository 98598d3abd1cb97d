"""The whole of preprocessing on a real local Ray: every file accounted for, runs repeatable, nobody identifiable."""

import csv
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import TILTED, head_hu, stored_12_bit, write_ct

from ichsearch.dicom.brain import CropBox, cropped, locate_brain
from ichsearch.dicom.pixels import read_image
from ichsearch.errors import AlreadyRunningError, ConfigError, DataError
from ichsearch.labels import LABELS
from ichsearch.shards.identity import home_folder, load_key
from ichsearch.shards.manifest import MANIFEST, Manifest, read_manifest
from ichsearch.shards.preprocess import preprocess
from ichsearch.shards.schema import pack_hu, read_shard

pytestmark = pytest.mark.usefixtures("ray_local")

SIZE = 32
SERIES_A, SERIES_B = 5, 4
GARBAGE = {"notes.txt": b"no DICOM", "page.dcm": b"<html></html>" * 30, "empty.dcm": b""}


def write_slice(path: Path, *, series: str = "A", index: int = 0, seed: int | None = None, **changes: Any) -> Path:
    """One slice of a tilted series whose brain wanders from slice to slice."""
    hu = head_hu(64, seed=hash_of(series) + index if seed is None else seed, centre=(28.0 + 2 * index, 34.0 - index))
    place = {
        "SOPInstanceUID": f"ID_{series}{index}",
        "StudyInstanceUID": f"study {series}",
        "SeriesInstanceUID": f"series {series}",
        "PatientID": f"patient {series}",
        "ImageOrientationPatient": list(TILTED),
        "ImagePositionPatient": [-125.0, 10.0, 5.0 * index],
    }
    return write_ct(path, stored_12_bit(hu), place | changes)


def hash_of(text: str) -> int:
    return sum(map(ord, text)) * 100


def write_series(folder: Path, series: str, slices: int) -> None:
    """File names run against the position."""
    for index in range(slices):
        write_slice(folder / f"{series}{slices - index:03d}.dcm", series=series, index=index)


def write_labels(path: Path, positive: dict[str, set[str]]) -> Path:
    rows = [f"{uid}_{label},{int(label in found)}" for uid, found in positive.items() for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two series of good slices."""
    write_series(tmp_path / "dicom", "A", SERIES_A)
    write_series(tmp_path / "dicom", "B", SERIES_B)
    return tmp_path / "dicom"


def rows_of(out: Path) -> list[dict[str, Any]]:
    manifest = read_manifest(out)
    shards = [(out / shard.file, shard.sha256) for shard in manifest.shards]
    return [
        row
        for path, sha256 in shards
        for batch in read_shard(path, sha256, manifest.settings.size)
        for row in batch.to_pylist()
    ]


def series_rows(out: Path, series: str) -> list[dict[str, Any]]:
    name = load_key(home_folder()).hash("series", f"series {series}")
    return [row for row in rows_of(out) if row["series"] == name]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shard_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}


def box_of(row: dict[str, Any]) -> CropBox:
    return CropBox(row["crop_top"], row["crop_left"], row["crop_side"])


def test_every_file_of_a_mixture_is_accounted_for(small: Path, tmp_path: Path) -> None:
    write_slice(small / "again" / "copy.dcm", index=1)
    for seed in (1, 2):
        write_slice(small / f"conflict{seed}.dcm", index=9, seed=seed)
    cut = write_slice(small / "cut.dcm", series="B", index=8)
    cut.write_bytes(cut.read_bytes()[:-1000])
    for name, content in GARBAGE.items():
        (small / name).write_bytes(content)
    (small / "nowhere.dcm").symlink_to("gone")
    os.mkfifo(small / "pipe")
    labels = write_labels(small / "labels.csv", {"ID_A0": {"any", "epidural"}, "ID_A1": set(), "ID_elsewhere": {"any"}})

    counts = preprocess(small, tmp_path / "out", labels=labels, size=SIZE).counts

    assert counts.found == counts.ok + counts.duplicate + counts.quarantined == SERIES_A + SERIES_B + 9
    assert (counts.ok, counts.duplicate, counts.quarantined) == (SERIES_A + SERIES_B, 1, 8)
    assert counts.reasons == {"conflicting_duplicate": 2, "not_dicom": 3, "truncated_pixels": 1, "unreadable": 2}
    assert (counts.labelled, counts.labels_without_file) == (2, 1)
    assert (counts.patients, counts.patients_unknown, counts.studies, counts.series) == (2, 0, 2, 2)
    assert counts.positives == {label: int(label in ("any", "epidural")) for label in LABELS}
    assert counts.fixed_wrap == 0
    assert read_manifest(tmp_path / "out").counts == counts
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        reasons = sorted(row["reason"] for row in csv.DictReader(file))
    assert reasons == sorted(reason for reason, number in counts.reasons.items() for _ in range(number))


def cut_copy(path: Path, **place: Any) -> None:
    write_slice(path, **place)
    path.write_bytes(path.read_bytes()[:-1000])


def test_unreadable_copies_are_quarantined_and_the_readable_one_is_a_row(small: Path, tmp_path: Path) -> None:
    cut_copy(small / "0.dcm", index=1)
    cut_copy(small / "z.dcm", index=1)
    write_slice(small / "absurd.dcm", index=1, RescaleSlope=b"1e9")
    write_slice(small / "copy.dcm", index=1)
    for name in ("lost1.dcm", "lost2.dcm"):
        cut_copy(small / name, series="B", index=8)

    counts = preprocess(small, tmp_path / "out", size=SIZE).counts

    assert counts.found == counts.ok + counts.duplicate + counts.quarantined == SERIES_A + SERIES_B + 6
    assert (counts.ok, counts.duplicate) == (SERIES_A + SERIES_B, 1)
    assert counts.reasons == {"bad_value:RescaleSlope": 1, "truncated_pixels": 4}
    slices = [row["slice"] for row in rows_of(tmp_path / "out")]
    assert len(slices) == len(set(slices))


def test_labels_stand_beside_their_slices(small: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", {"ID_A2": {"any", "subdural"}, "ID_B0": set()})
    key = load_key(home_folder())

    preprocess(small, tmp_path / "out", labels=labels, size=SIZE)

    found = {row["slice"]: tuple(row[label] for label in LABELS) for row in rows_of(tmp_path / "out")}
    assert found.pop(key.hash("slice", "ID_A2")) == (0, 0, 0, 0, 1, 1)
    assert found.pop(key.hash("slice", "ID_B0")) == (0, 0, 0, 0, 0, 0)
    assert set(found.values()) == {(None,) * 6}


def test_without_labels_every_label_is_null(small: Path, tmp_path: Path) -> None:
    manifest = preprocess(small, tmp_path / "out", size=SIZE)

    assert manifest.counts.labelled == 0
    assert all(row[label] is None for row in rows_of(tmp_path / "out") for label in LABELS)


def test_a_labels_file_that_is_not_named_is_a_file_like_any_other(small: Path, tmp_path: Path) -> None:
    write_labels(small / "labels.csv", {"ID_A0": set()})

    assert preprocess(small, tmp_path / "out", size=SIZE).counts.reasons == {"not_dicom": 1}


def test_slices_of_a_series_stand_from_foot_to_head(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "out", size=SIZE)

    for series, length in (("A", SERIES_A), ("B", SERIES_B)):
        rows = series_rows(tmp_path / "out", series)
        positions = [row["position_mm"] for row in rows]
        assert [row["series_index"] for row in rows] == list(range(length))
        assert {row["series_slices"] for row in rows} == {length}
        assert positions == sorted(positions)
        assert np.ptp(positions) > 0
        key = load_key(home_folder())
        assert [row["slice"] for row in rows] == [key.hash("slice", f"ID_{series}{index}") for index in range(length)]


def test_a_refused_slice_leaves_no_gap_in_the_index(small: Path, tmp_path: Path) -> None:
    path = small / "A003.dcm"
    path.write_bytes(path.read_bytes()[:-2])

    preprocess(small, tmp_path / "out", size=SIZE)

    rows = series_rows(tmp_path / "out", "A")
    assert [(row["series_index"], row["series_slices"]) for row in rows] == [(index, 4) for index in range(4)]


def test_one_box_a_series_keeps_neighbours_registered(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "out", size=SIZE)

    rows = series_rows(tmp_path / "out", "A")
    (box,) = {box_of(row) for row in rows}
    assert box.side < 64
    for index, row in enumerate(rows):
        image = read_image(small / f"A{SERIES_A - index:03d}.dcm")
        assert row["hu"] == pack_hu(cropped(image.hu, box, SIZE))
        assert row["brain_share"] == pytest.approx(locate_brain(image.hu)[0])
        assert row["spacing_row_mm"] == pytest.approx(0.5 * box.side / SIZE)
        assert row["stored_hash"] == image.stored_hash


def test_the_series_box_covers_the_boxes_of_its_slices(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "series", size=SIZE)
    preprocess(small, tmp_path / "slice", size=SIZE, crop="slice")

    common = box_of(series_rows(tmp_path / "series", "A")[0])
    boxes = {box_of(row) for row in series_rows(tmp_path / "slice", "A")}
    assert len(boxes) == SERIES_A
    assert common.top == min(box.top for box in boxes)
    assert common.left == min(box.left for box in boxes)
    assert common.side == max(max(b.top + b.side - common.top, b.left + b.side - common.left) for b in boxes)


def test_a_series_of_mixed_frames_gets_a_box_for_each_size(small: Path, tmp_path: Path) -> None:
    write_ct(
        small / "large.dcm",
        stored_12_bit(head_hu(96)),
        {"SOPInstanceUID": "ID_A7", "StudyInstanceUID": "study A", "SeriesInstanceUID": "series A"},
    )

    preprocess(small, tmp_path / "out", size=SIZE)

    assert len({box_of(row) for row in series_rows(tmp_path / "out", "A")}) == 2


def test_running_again_rebuilds_nothing(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = preprocess(small, out, size=SIZE)
    before, times = contents(out), shard_times(out)

    again = preprocess(small, out, size=SIZE)

    assert again == first
    assert contents(out) == before
    assert shard_times(out) == times


def test_another_output_folder_gets_the_same_bytes(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "one", size=SIZE)
    preprocess(small, tmp_path / "two", size=SIZE)

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit, cut_in_half])
def test_a_lost_or_damaged_shard_alone_is_rebuilt(small: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    preprocess(small, out, size=SIZE)
    before, times = contents(out), shard_times(out)
    victim, *others = sorted(times)
    damage(out / victim)

    preprocess(small, out, size=SIZE)

    assert others
    assert contents(out) == before
    assert shard_times(out)[victim] != times[victim]
    assert all(shard_times(out)[name] == times[name] for name in others)


def test_a_damaged_ledger_entry_rebuilds_its_shard(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess(small, out, size=SIZE)
    before, times = contents(out), shard_times(out)
    cut_in_half(out / "ledger" / "shard-00000.json")

    preprocess(small, out, size=SIZE)

    assert contents(out) == before
    assert [name for name in times if shard_times(out)[name] != times[name]] == ["shard-00000.parquet"]


def test_a_lost_manifest_is_written_again(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess(small, out, size=SIZE)
    before, times = contents(out), shard_times(out)
    (out / MANIFEST).unlink()

    preprocess(small, out, size=SIZE)

    assert contents(out) == before
    assert shard_times(out) == times


def test_an_added_file_is_in_the_next_run(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = preprocess(small, out, size=SIZE)
    write_slice(small / "new.dcm", index=6)

    again = preprocess(small, out, size=SIZE)

    assert again.counts.ok == first.counts.ok + 1
    assert again.fingerprint != first.fingerprint
    assert [row["series_slices"] for row in series_rows(out, "A")] == [SERIES_A + 1] * (SERIES_A + 1)


def test_a_removed_study_leaves_no_shard_behind(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess(small, out, size=SIZE)
    for path in small.glob("B*.dcm"):
        path.unlink()

    manifest = preprocess(small, out, size=SIZE)

    assert (manifest.counts.ok, manifest.counts.studies) == (SERIES_A, 1)
    assert sorted(shard_times(out)) == [shard.file for shard in manifest.shards]


def test_changed_labels_rebuild(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = write_labels(tmp_path / "labels.csv", {"ID_A0": set()})
    first = preprocess(small, out, labels=labels, size=SIZE)
    write_labels(labels, {"ID_A0": {"any", "epidural"}})

    again = preprocess(small, out, labels=labels, size=SIZE)

    assert again.fingerprint != first.fingerprint
    assert again.counts.positives["epidural"] == 1


def test_other_settings_on_the_same_folder_are_refused_by_name(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess(small, out, size=SIZE)
    before = contents(out)

    with pytest.raises(ConfigError, match="size 32 there, 48 asked for; crop series there, slice asked for"):
        preprocess(small, out, size=48, crop="slice")
    assert contents(out) == before


def test_another_dicom_folder_on_the_same_output_is_refused(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "out", size=SIZE)
    write_series(tmp_path / "others", "C", 2)

    with pytest.raises(ConfigError, match="another DICOM folder"):
        preprocess(tmp_path / "others", tmp_path / "out", size=SIZE)


def test_an_output_folder_of_foreign_files_stays_as_it_is(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")

    with pytest.raises(ConfigError, match="holds other files"):
        preprocess(small, tmp_path / "out", size=SIZE)
    assert contents(tmp_path / "out") == {"thesis.tex": b"mine"}


@pytest.mark.timeout(60)
def test_an_address_where_nothing_answers_ends_the_run(small: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ichsearch.cli import main; main()", "preprocess", str(small),
         "--out", str(tmp_path / "out"), "--address", "nonsense:1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 6, done.stderr
    assert "a Ray cluster must answer at 'nonsense:1', but none does" in done.stderr
    assert not (tmp_path / "out").exists()


def no_folder(_: Path) -> None:
    return


def empty_folder(folder: Path) -> None:
    folder.mkdir()


def folder_of_garbage(folder: Path) -> None:
    folder.mkdir()
    for name, content in GARBAGE.items():
        (folder / name).write_bytes(content)


def folder_of_cut_slices(folder: Path) -> None:
    path = write_slice(folder / "cut.dcm")
    path.write_bytes(path.read_bytes()[:-4000])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_folder, "does not exist"),
        (empty_folder, "is empty"),
        (folder_of_garbage, "3 not_dicom"),
        (folder_of_cut_slices, "1 truncated_pixels"),
    ],
)
def test_a_folder_with_nothing_readable_is_refused_and_nothing_written(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "dicom")

    with pytest.raises(DataError, match=says):
        preprocess(tmp_path / "dicom", tmp_path / "out", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_unusable_labels_are_refused_and_nothing_written(small: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("ID,Label\nID_A0_any,1\n")

    with pytest.raises(DataError, match="six labels"):
        preprocess(small, tmp_path / "out", labels=tmp_path / "labels.csv", size=SIZE)
    assert not (tmp_path / "out").exists()


def test_a_wrapped_slice_is_counted(small: Path, tmp_path: Path) -> None:
    write_slice(small / "wrapped.dcm", series="C", RescaleIntercept=0)

    assert preprocess(small, tmp_path / "out", size=SIZE).counts.fixed_wrap == 1
    assert [row["fixed_wrap"] for row in series_rows(tmp_path / "out", "C")] == [True]


def test_slices_without_patient_id_are_a_patient_a_study(small: Path, tmp_path: Path) -> None:
    for index in range(2):
        write_slice(small / f"c{index}.dcm", series="C", index=index, PatientID=None)

    counts = preprocess(small, tmp_path / "out", size=SIZE).counts

    assert (counts.patients, counts.patients_unknown) == (3, 1)
    assert {row["patient_known"] for row in series_rows(tmp_path / "out", "C")} == {False}


def test_a_name_that_is_no_utf_8_is_no_obstacle(small: Path, tmp_path: Path) -> None:
    (small / "A001.dcm").rename(os.fsdecode(os.fsencode(small) + b"/\xff\xfe.dcm"))
    Path(os.fsdecode(os.fsencode(small) + b"/\xff.txt")).write_text("no DICOM")

    counts = preprocess(small, tmp_path / "out", size=SIZE).counts

    assert (counts.ok, counts.reasons) == (SERIES_A + SERIES_B, {"not_dicom": 1})


@pytest.mark.parametrize(
    "changes",
    [{"NumberOfFrames": b"inf"}, {"BitsStored": 16, "HighBit": 15, "RescaleIntercept": b"1e10"}],
    ids=["header", "pixels"],
)
def test_one_absurd_value_does_not_end_the_run(small: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    write_slice(small / "absurd.dcm", series="C", **changes)

    counts = preprocess(small, tmp_path / "out", size=SIZE).counts

    assert counts.ok + counts.quarantined == counts.found == SERIES_A + SERIES_B + 1


def test_an_identifier_is_never_a_path(small: Path, tmp_path: Path) -> None:
    write_slice(small / "evil.dcm", SOPInstanceUID="../../pwn", StudyInstanceUID="/pwn", SeriesInstanceUID="../pwn")

    assert preprocess(small, tmp_path / "out", size=SIZE).counts.ok == SERIES_A + SERIES_B + 1
    assert not list(tmp_path.rglob("*pwn*"))


def test_progress_ends_with_every_file_and_every_slice(small: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    preprocess(small, tmp_path / "out", size=SIZE, on_progress=lambda *call: calls.append(call))

    last = {stage: (done, total) for stage, done, total in calls}
    assert last == {"headers": (SERIES_A + SERIES_B,) * 2, "slices": (SERIES_A + SERIES_B,) * 2}


CANARY = "CANARY77"


def canary_cohort(folder: Path) -> tuple[Path, Manifest]:
    identifying = {
        "PatientName": f"{CANARY}^Anna",
        "PatientID": f"{CANARY}-4711",
        "PatientBirthDate": CANARY.encode(),
        "StudyDate": CANARY.encode(),
        "AcquisitionDateTime": CANARY.encode(),
        "StudyDescription": f"head {CANARY}",
        "SeriesDescription": CANARY,
        "ReferringPhysicianName": CANARY,
        "InstitutionName": CANARY,
        "AccessionNumber": CANARY,
        "StationName": CANARY,
        "ImageComments": CANARY,
        "StudyInstanceUID": f"1.2.{CANARY}.1",
        "SeriesInstanceUID": f"1.2.{CANARY}.2",
        "FrameOfReferenceUID": f"1.2.{CANARY}.3",
    }
    dicom = folder / CANARY
    for index in range(3):
        path = dicom / f"{CANARY}{index}.dcm"
        write_slice(path, index=index, **identifying, SOPInstanceUID=f"1.2.{CANARY}.4.{index}")
    path.write_bytes(path.read_bytes()[:-100])
    (dicom / f"{CANARY}.txt").write_text(CANARY)
    labels = write_labels(dicom / f"{CANARY}.csv", {f"1.2.{CANARY}.4.0": set(), f"{CANARY}.elsewhere": set()})
    return dicom, preprocess(dicom, folder / "out", labels=labels, size=SIZE)


def test_nothing_that_identifies_a_patient_is_in_the_output(tmp_path: Path) -> None:
    _, manifest = canary_cohort(tmp_path)

    assert (manifest.counts.ok, manifest.counts.labelled, manifest.counts.quarantined) == (2, 1, 2)
    assert CANARY not in json.dumps(manifest.model_dump())
    files = contents(tmp_path / "out")
    assert {"manifest.json", "quarantine.csv", "settings.json", "shard-00000.parquet"} < files.keys()
    assert all(CANARY not in name and CANARY.encode() not in content for name, content in files.items())
    for row in rows_of(tmp_path / "out"):
        assert all(CANARY.encode() not in value for value in row.values() if isinstance(value, bytes))
        assert all(CANARY not in str(value) for value in row.values())


def test_the_paths_of_quarantined_files_are_told_to_their_user_alone(tmp_path: Path) -> None:
    dicom, manifest = canary_cohort(tmp_path)

    private = home_folder() / "quarantine" / f"{manifest.settings.source_id}.csv"
    with private.open() as file, (tmp_path / "out" / "quarantine.csv").open() as shared:
        paths = {row["file"]: row["path"] for row in csv.DictReader(file)}
        names = {row["file"] for row in csv.DictReader(shared)}
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert names == paths.keys()
    assert set(paths.values()) == {str(dicom / f"{CANARY}2.dcm"), str(dicom / f"{CANARY}.txt")}


def test_moved_files_and_a_refused_one_among_them_are_accounted_for_again(small: Path, tmp_path: Path) -> None:
    cut = write_slice(small / "deep" / "cut.dcm", series="B", index=8)
    cut.write_bytes(cut.read_bytes()[:-1000])
    first = preprocess(small, tmp_path / "out", size=SIZE)
    (small / "deep").rename(small / "moved")

    assert preprocess(small, tmp_path / "out", size=SIZE).counts == first.counts


def test_a_file_that_could_not_be_read_is_tried_again(small: Path, tmp_path: Path) -> None:
    first = preprocess(small, tmp_path / "out", size=SIZE)
    before = contents(tmp_path / "out")
    (entry,) = [path for path in (tmp_path / "out" / "ledger").iterdir() if path.name == "shard-00000.json"]
    value = json.loads(entry.read_text())
    value["quarantined"] = [{"file": "f", "reason": "unreadable", "n_bytes": 1}]
    entry.write_text(json.dumps(value))

    assert preprocess(small, tmp_path / "out", size=SIZE) == first
    assert contents(tmp_path / "out") == before


def test_shards_below_the_dicom_folder_are_no_input(small: Path) -> None:
    first = preprocess(small, small / "shards", size=SIZE)

    assert preprocess(small, small / "shards", size=SIZE) == first


def test_a_run_killed_before_its_first_file_can_go_on(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".settings.json.123.aside").write_text("{")

    assert preprocess(small, tmp_path / "out", size=SIZE).counts.ok == SERIES_A + SERIES_B
    assert not list((tmp_path / "out").rglob("*.aside"))


def test_what_a_user_put_beside_the_shards_stays(small: Path, tmp_path: Path) -> None:
    preprocess(small, tmp_path / "out", size=SIZE)
    names = ["shard-notes.txt", "my.aside", "backup/shard-00000.parquet", "inspect/shard-sizes.png"]
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    (tmp_path / "out" / "shard-00099.parquet").write_text("of an earlier state of the cohort")

    preprocess(small, tmp_path / "out", size=SIZE)

    assert all((tmp_path / "out" / name).read_text() == "mine" for name in names)
    assert not (tmp_path / "out" / "shard-00099.parquet").exists()


def test_a_second_driver_on_the_same_output_is_refused(small: Path, tmp_path: Path) -> None:
    def again(*_: object) -> None:
        with pytest.raises(AlreadyRunningError, match="another is at work"):
            preprocess(small, tmp_path / "out", size=SIZE)

    assert preprocess(small, tmp_path / "out", size=SIZE, on_progress=again).counts.ok == SERIES_A + SERIES_B


def test_labels_of_another_cohort_are_refused_and_nothing_written(small: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", {"ID_elsewhere": {"any"}})

    with pytest.raises(DataError, match="none of 1 given per slice does"):
        preprocess(small, tmp_path / "out", labels=labels, size=SIZE)
    assert not (tmp_path / "out").exists()

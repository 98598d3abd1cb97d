"""A header gives identifiers and a place, or one named reason why not."""

import os
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dicom_files import AXIAL, TILTED, head_hu, stored_12_bit, write_ct
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ichsearch.dicom.elements import IMPLICIT_LITTLE as IMPLICIT
from ichsearch.dicom.find import find_files
from ichsearch.dicom.header import HEADER_BYTES, SliceHeader, position_mm, read_header
from ichsearch.dicom.pixels import read_image
from ichsearch.dicom.reasons import REASONS, RejectedError
from ichsearch.errors import DataError

STORED = stored_12_bit(head_hu(16))


def header(tmp_path: Path, **changes: Any) -> SliceHeader:
    return read_header(write_ct(tmp_path / "slice.dcm", STORED, changes))


def reason_of(path: Path) -> str:
    with pytest.raises(RejectedError) as caught:
        read_header(path)
    assert caught.value.reason.partition(":")[0] in REASONS
    return caught.value.reason


def test_identifiers_are_opaque_text(tmp_path: Path) -> None:
    found = header(
        tmp_path,
        SOPInstanceUID="ID_12cadc6af",
        StudyInstanceUID="../../tmp/pwn",
        SeriesInstanceUID=b"x" * 90,
        PatientID=b" ID 7 ",
    )

    assert found == SliceHeader("ID_12cadc6af", "../../tmp/pwn", "x" * 90, "ID 7", 0.0)


@pytest.mark.parametrize("patient", [None, b"", b"   "])
def test_a_missing_patient_id_is_no_fault(tmp_path: Path, patient: bytes | None) -> None:
    assert header(tmp_path, PatientID=patient).patient_id == ""


def test_headers_without_class_modality_or_frames_count_as_ct(tmp_path: Path) -> None:
    found = header(tmp_path, SOPClassUID=None, Modality=None, NumberOfFrames=1)

    assert found.sop_uid == "ID_000000001"


def test_position_is_the_projection_on_the_normal_of_a_tilted_slice() -> None:
    origin = [-125.0, 40.0, 90.0]

    found = position_mm(origin, list(TILTED))

    assert found == pytest.approx((0.317 * 40 + 0.948 * 90) / (0.317**2 + 0.948**2) ** 0.5)


def test_position_of_an_axial_slice_is_its_z(tmp_path: Path) -> None:
    assert header(tmp_path, ImagePositionPatient=[-125, 17, 33.5]).position_mm == 33.5


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, TILTED, (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0), (-1, 0, 0, 0, 0.948, -0.317)],
)
def test_position_grows_towards_the_head_in_every_orientation(orientation: tuple[float, ...]) -> None:
    positions = [position_mm([-125.0, 0.3 * z, z], list(orientation)) for z in (-50.0, -5.0, 0.0, 5.0, 150.0)]

    assert all(lower < upper for lower, upper in pairwise(positions))


@pytest.mark.parametrize(
    ("orientation", "reason"),
    [
        ((0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "not_axial"),
        ((1.0, 0.0, 0.0, 0.0, 0.0, -1.0), "not_axial"),
        ((1.0, 0.0, 0.0, 0.0, 0.4, -0.92), "not_axial"),
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), "bad_value:ImageOrientationPatient"),
        ((1.0, 0.0, 0.0, 1.0, 0.0, 0.0), "bad_value:ImageOrientationPatient"),
    ],
    ids=["sagittal", "coronal", "steeper_than_60_degrees", "zero", "parallel"],
)
def test_slices_that_are_not_axial_are_refused(orientation: tuple[float, ...], reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        position_mm([0.0, 0.0, 0.0], list(orientation))

    assert caught.value.reason == reason


def test_a_localizer_file_is_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED, {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]})

    assert reason_of(path) == "not_axial"


@pytest.mark.parametrize(
    "kind", [b"", b"ORIGINAL", b"ORIGINAL\\PRIMARY\\AXIAL", b"LOCALIZER\\PRIMARY\\AXIAL\\LOCALIZER"]
)
def test_another_image_type_than_a_localizer_is_read(tmp_path: Path, kind: bytes) -> None:
    assert header(tmp_path, ImageType=kind).sop_uid == "ID_000000001"


@pytest.mark.parametrize(
    "keyword",
    ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"],
)
@pytest.mark.parametrize("value", [None, b""], ids=["absent", "empty"])
def test_a_missing_element_is_named(tmp_path: Path, keyword: str, value: bytes | None) -> None:
    assert reason_of(write_ct(tmp_path / "slice.dcm", STORED, {keyword: value})) == f"missing_tag:{keyword}"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", b"abc\\0\\0"),
        ("ImagePositionPatient", b"0\\0\\nan"),
        ("ImagePositionPatient", b"0\\0\\1e400"),
        ("ImagePositionPatient", b"0\\0"),
        ("ImagePositionPatient", b"7"),
        ("ImagePositionPatient", b"0,5\\0\\0"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\inf\\0"),
    ],
)
def test_a_value_that_is_no_number_is_named(tmp_path: Path, keyword: str, value: bytes) -> None:
    assert reason_of(write_ct(tmp_path / "slice.dcm", STORED, {keyword: value})) == f"bad_value:{keyword}"


@pytest.mark.parametrize("origin", [b"1e6\\0\\0", b"0\\-100001\\0", b"0\\0\\1e300"])
def test_a_place_that_no_scanner_reaches_is_refused(tmp_path: Path, origin: bytes) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED, {"ImagePositionPatient": origin})

    assert reason_of(path) == "bad_value:ImagePositionPatient"


def test_a_place_at_the_limit_is_read(tmp_path: Path) -> None:
    assert header(tmp_path, ImagePositionPatient=[1e5, -1e5, -1e5]).position_mm == -1e5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR"}, "not_ct_image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "not_ct_image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not_ct_image"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"NumberOfFrames": 0}, "multi_frame"),
    ],
)
def test_another_object_than_a_ct_slice_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert reason_of(write_ct(tmp_path / "slice.dcm", STORED, changes)) == reason


@pytest.mark.parametrize("value", [b"inf", b"1e400"])
def test_an_infinite_number_of_frames_is_refused_and_no_crash(tmp_path: Path, value: bytes) -> None:
    assert reason_of(write_ct(tmp_path / "slice.dcm", STORED, {"NumberOfFrames": value}))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "not_ct_image"),
        ("rtstruct.dcm", "not_dicom"),
        ("test-SR.dcm", "not_ct_image"),
        ("waveform_ecg.dcm", "not_ct_image"),
        ("DICOMDIR", "missing_tag:SOPInstanceUID"),
        ("no_meta.dcm", "not_dicom"),
    ],
)
def test_files_of_pydicom_that_are_no_ct_slice_are_refused(name: str, reason: str) -> None:
    assert reason_of(Path(str(get_testdata_file(name, download=False)))) == reason


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html><body>404</body></html>" * 9, b"a,b\n1,2\n", b"DICM", b"\0" * 128 + b"DCIM" * 9],
    ids=["empty", "html", "csv", "short", "no_magic"],
)
def test_a_file_that_is_no_dicom_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slice.dcm"
    path.write_bytes(content)

    assert reason_of(path) == "not_dicom"


def test_a_file_without_preamble_is_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED)
    path.write_bytes(path.read_bytes()[132:])

    assert reason_of(path) == "not_dicom"


def test_a_header_cut_anywhere_is_never_a_slice(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED)
    content = path.read_bytes()
    header_bytes = len(content) - STORED.nbytes
    allowed = {"not_dicom", "not_ct_image", "damaged", "missing_tag", "bad_value"}

    for length in range(0, header_bytes, 3):
        path.write_bytes(content[:length])
        with pytest.raises(RejectedError) as caught:
            read_header(path)
            read_image(path)
        assert caught.value.reason.partition(":")[0] in allowed


def test_a_damaged_deflated_header_is_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED, syntax=DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:-100])

    assert reason_of(path) == "damaged"


def test_five_thousand_nested_sequences_are_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED)
    content = path.read_bytes()
    start = content.index(b"\x08\x00\x18\x00UI")
    open_item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:start] + open_item * 5000 + content[start:])

    assert reason_of(path) == "damaged"


def test_a_file_over_64_mebibytes_is_refused_unread(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED)
    os.truncate(path, 64 * 2**20 + 1)

    assert reason_of(path) == "over_limit:file"


def test_a_deflated_file_over_256_mebibytes_is_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", STORED, syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the file meta information (PS3.10 7.1)
    inflated = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(inflated + b"\xfc\xff\xfc\xffOB\0\0" + (257 * 2**20).to_bytes(4, "little"))
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(257)) + packer.flush()
    path.write_bytes(content[:start] + packed)

    assert path.stat().st_size < 2**22
    assert reason_of(path).startswith("over_limit")


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")

    assert reason_of(tmp_path / "pipe.dcm") == "unreadable"


@pytest.mark.parametrize("target", ["nowhere.dcm", "link.dcm", "."], ids=["dangling", "loop", "folder"])
def test_a_link_to_no_file_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "link.dcm").symlink_to(target)

    assert reason_of(tmp_path / "link.dcm") == "unreadable"


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "gone.dcm") == "unreadable"


def found_below(folder: Path, labels: Path | None = None) -> list[Path]:
    return sorted(Path(file.location) for file in find_files(str(folder), labels=labels))


def test_files_are_found_once_in_order_and_without_the_labels(tmp_path: Path) -> None:
    names = ["b/2.dcm", "a/1.dcm", "c", "labels.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    found = found_below(tmp_path, labels=tmp_path / "a" / ".." / "labels.csv")

    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/1.dcm", "b/2.dcm", "c"]


@pytest.mark.timeout(20)
def test_a_loop_of_linked_folders_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.dcm").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path)

    assert len(found_below(tmp_path)) == 1


def test_a_link_to_itself_is_found_like_any_entry(tmp_path: Path) -> None:
    (tmp_path / "loop.dcm").symlink_to("loop.dcm")

    assert found_below(tmp_path, labels=tmp_path / "labels.csv") == [tmp_path / "loop.dcm"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "does not exist"),
        ("file", "is not a folder"),
        ("x" * 300, r"cannot be reached \(File name too long"),
    ],
    ids=["missing", "file", "too_long"],
)
def test_what_is_no_folder_is_refused_without_its_name(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match=f"the one given {says}") as caught:
        find_files(str(tmp_path / name))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("padding", range(0, 40, 2))
def test_a_header_longer_than_the_first_piece_is_read_whole(tmp_path: Path, padding: int) -> None:
    """Some element ends exactly where the first piece does."""
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()))
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x0d\x00UI")  # StudyInstanceUID
    filler = b"\x19\x00\x01\x10UN\0\0" + (HEADER_BYTES - at - 12 + padding - 20).to_bytes(4, "little")
    path.write_bytes(content[:at] + filler + bytes(HEADER_BYTES - at - 12 + padding - 20) + content[at:])

    assert read_header(path).study_uid == "ID_0000000bb"


def test_a_megabyte_of_identifier_is_refused(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), {"PatientID": b"x" * 2**20}, syntax=IMPLICIT)

    with pytest.raises(RejectedError, match=r"^bad_value:PatientID$"):
        read_header(path)


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "1.dcm").touch()
    listed = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)

    assert found_below(tmp_path) == [tmp_path / "closed"]
    with pytest.raises(RejectedError, match=r"^unreadable$"):
        read_header(tmp_path / "closed")

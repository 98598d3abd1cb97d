"""Every bad file ends with the reason that is true of it, every good one as an image, and nothing else ever escapes."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Final

import gdcm
import numpy as np
import pydicom
import pytest
from bad_files import (
    BAD,
    NATIVE,
    STORED,
    Maker,
    ct,
    edited,
    header_length,
    header_of_length,
    image_or_reason,
    mutants,
    outcome,
    real_files,
    shipped,
    shipped_ct,
    write_big_endian,
)
from dicom_files import Stored, head_hu, stored_12_bit, write_ct
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ichsearch.dicom.header import HEADER_BYTES, read_header
from ichsearch.dicom.pixels import SliceImage, read_image
from ichsearch.dicom.reasons import REASONS, RejectedError

HU: Final = head_hu(64)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_with_its_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]

    assert outcome(make(tmp_path)) == reason


def test_reasons_of_the_table_are_in_the_fixed_list() -> None:
    assert {reason.partition(":")[0] for _, reason in BAD.values()} <= REASONS.keys()
    assert len(BAD) >= 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_of_another_user_is_unreadable(tmp_path: Path) -> None:
    path = ct()(tmp_path)
    path.chmod(0)

    assert outcome(path) == "unreadable"


def test_a_name_that_is_no_utf_8_is_read_like_any_other(tmp_path: Path) -> None:
    good = ct()(tmp_path).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.dcm"))
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    bad.write_text("no DICOM")

    assert (outcome(good), outcome(bad)) == ("ok", "not_dicom")


def test_a_file_that_vanishes_between_header_and_pixels_is_unreadable(tmp_path: Path) -> None:
    path = ct()(tmp_path)
    read_header(path)
    path.unlink()

    with pytest.raises(RejectedError) as caught:
        read_image(path)
    assert caught.value.reason == "unreadable"


def garbage_in_the_high_bits(stored: Stored) -> Stored:
    return (stored | (np.arange(stored.size).reshape(stored.shape) % 16 << 12)).astype(np.uint16)


def inverted(stored: Stored) -> Stored:
    return (4095 - stored).astype(np.uint16)


def with_sequences(folder: Path) -> Path:
    """Sequences of undefined length before the pixels, nested, empty, private and of a VR that says nothing."""
    path = ct()(folder)
    ds = pydicom.dcmread(path)
    inner, outer = Dataset(), Dataset()
    inner.PatientID = "not the patient"
    inner.Rows = 7
    inner.add_new(0x7FE00010, "OW", b"\1\2\3\4")
    outer.RequestAttributesSequence = Sequence([inner, Dataset()])
    outer["RequestAttributesSequence"].is_undefined_length = True
    ds.ReferencedImageSequence = Sequence([outer, Dataset()])
    ds.ProcedureCodeSequence = Sequence([])
    block = ds.private_block(0x0009, "ICHSEARCH TEST", create=True)
    block.add_new(1, "SQ", Sequence([inner]))
    block.add_new(2, "UN", b"\xfe\xff\xdd\xe0\0\0\0\0")
    for keyword in ("ReferencedImageSequence", "ProcedureCodeSequence", block.get_tag(1)):
        ds[keyword].is_undefined_length = True
    for item in (*ds.ReferencedImageSequence, *outer.RequestAttributesSequence):
        item.is_undefined_length_sequence_item = True
    ds.save_as(path)
    return path


def with_private_tags(folder: Path) -> Path:
    path = ct()(folder)
    ds = pydicom.dcmread(path)
    for group in (0x0009, 0x0029, 0x7FD1):
        block = ds.private_block(group, "ICHSEARCH TEST", create=True)
        block.add_new(1, "LO", "private")
        block.add_new(2, "OB", bytes(3000))
        block.add_new(3, "UN", bytes(20_000))
    ds.save_as(path)
    return path


def jpeg_lossless(folder: Path) -> Path:
    path = ct()(folder)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return path


GROUP_LENGTH: Final = b"\x08\x00\x00\x00UL\x04\0\0\0\0\0"


def mislabelled(declared: str, written: str, first: bytes = b"") -> Maker:
    """A file of 512² whose data set, of these bytes first, is in another syntax than its meta information says."""
    stored = stored_12_bit(head_hu(512))

    def make(folder: Path) -> Path:
        content = ct(stored=stored, syntax=written)(folder).read_bytes()
        path = ct(stored=stored, syntax=declared)(folder)
        meta = path.read_bytes()
        end, start = (144 + int.from_bytes(file[140:144], "little") for file in (meta, content))
        path.write_bytes(meta[:end] + first + content[start:])
        return path

    return make


GOOD: Final[dict[str, Maker]] = {
    **{short: ct(syntax=short) for short in NATIVE},
    "signed": ct(stored=HU),
    "signed_big_endian": ct(stored=HU, syntax="big_endian"),
    "rle": ct(syntax=RLELossless),
    "signed_rle": ct(stored=HU, syntax=RLELossless),
    "jpeg_2000": ct(syntax=JPEG2000Lossless),
    "signed_jpeg_2000": ct(stored=HU, syntax=JPEG2000Lossless),
    "jpeg_ls": ct(syntax=JPEGLSLossless),
    "jpeg_lossless": jpeg_lossless,
    "trailing_bytes": edited(lambda content: content + b"\0trailing" * 99),
    "trailing_odd_byte": edited(lambda content: content + b"\0"),
    "monochrome1": ct({"PhotometricInterpretation": "MONOCHROME1"}, stored=inverted(STORED)),
    "garbage_in_the_high_bits": ct(stored=garbage_in_the_high_bits(STORED)),
    "garbage_in_the_high_bits_deflated": ct(stored=garbage_in_the_high_bits(STORED), syntax="deflated"),
    "sequences_of_undefined_length": with_sequences,
    "private_tags": with_private_tags,
    "no_high_bit": ct({"HighBit": None}),
    "no_class_no_modality": ct({"SOPClassUID": None, "Modality": None}),
    "spaces_round_numbers": ct({"RescaleSlope": b" 1.0 ", "RescaleIntercept": b" -1024  "}),
    "implicit_said_to_be_explicit": mislabelled("explicit", "implicit"),
    "explicit_said_to_be_implicit": mislabelled("implicit", "explicit"),
    "explicit_with_group_length_said_to_be_implicit": mislabelled("implicit", "explicit", GROUP_LENGTH),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_in_an_unusual_form_gives_its_image(tmp_path: Path, name: str) -> None:
    path = GOOD[name](tmp_path)

    image = image_or_reason(path)

    assert isinstance(image, SliceImage), image
    assert np.array_equal(image.hu, head_hu(len(image.hu)))


def test_an_8_bit_baseline_jpeg_is_read(tmp_path: Path) -> None:
    grey = np.clip(head_hu(64) // 8 + 128, 0, 255).astype(np.uint8)
    changes = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0}
    path = write_ct(tmp_path / "slice.dcm", STORED, changes | {"PixelData": baseline_stream(grey)})
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    ds.PixelData = pydicom.encaps.encapsulate([baseline_stream(grey)])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)

    image = image_or_reason(path)

    assert isinstance(image, SliceImage), image
    assert np.abs(image.hu - grey.astype(np.int16)).mean() < 3


def baseline_stream(grey: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("short_by", [-1, 0, 1])
def test_an_element_that_ends_where_the_first_piece_ends_hides_nothing(tmp_path: Path, short_by: int) -> None:
    path = edited(header_of_length(HEADER_BYTES - short_by), ct())(tmp_path)

    assert outcome(path) == "ok"


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_ct_slices_of_pydicom_are_images(name: str) -> None:
    assert outcome(shipped(name)) == "ok"


def originals(folder: Path) -> list[Path]:
    """Ten and more real slices of several scanners, and RLE and JPEG 2000 of a head."""
    made = [
        write_ct(folder / f"{name}.dcm", stored_12_bit(head_hu(64)), syntax=syntax)
        for name, syntax in {
            "rle": RLELossless,
            "jpeg_2000": JPEG2000Lossless,
            "jpeg_ls": JPEGLSLossless,
            "implicit": ImplicitVRLittleEndian,
            "deflated": DeflatedExplicitVRLittleEndian,
        }.items()
    ]
    made.append(write_big_endian(folder / "big_endian.dcm", STORED, {}))
    return [*shipped_ct()[:6], *made, *real_files("rsna_dcm")[:4], *real_files("ge_head")[:2]]


def count_of_outcomes(folder: Path, number: int) -> Counter[str]:
    """Outcomes of `number` mutants, spread evenly over the originals."""
    paths = originals(folder)
    rng = np.random.default_rng(0)
    contents = [path.read_bytes() for path in paths]
    sources = [mutants(content, header_length(content), rng) for content in contents]
    outcomes: Counter[str] = Counter()
    path = folder / "mutant.dcm"
    for mutant in islice(in_turn(sources), number):
        path.write_bytes(mutant)
        outcomes[outcome(path)] += 1
    return outcomes


def in_turn(sources: list[Iterator[bytes]]) -> Iterator[bytes]:
    while True:
        for source in sources:
            yield next(source)


def check_mutants(folder: Path, number: int) -> None:
    began = time.perf_counter()
    outcomes = count_of_outcomes(folder, number)
    seconds = time.perf_counter() - began
    shown = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    print(f"{number} mutants in {seconds:.1f} s: {shown}")  # noqa: T201 - the figures of the report
    assert {name.partition(":")[0] for name in outcomes} <= {"ok", *REASONS}
    assert sum(outcomes.values()) == number
    assert not outcomes["over_limit:time"]


@pytest.mark.timeout(120)
def test_500_damaged_files_each_end_as_an_image_or_a_reason(tmp_path: Path) -> None:
    check_mutants(tmp_path, 500)


@pytest.mark.slow
def test_4000_damaged_files_each_end_as_an_image_or_a_reason(tmp_path: Path) -> None:
    check_mutants(tmp_path, 4000)

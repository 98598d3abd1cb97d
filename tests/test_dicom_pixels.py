"""Stored values become HU as DICOM and fastai say, whatever the encoding."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import Stored, head_hu, stored_12_bit, write_ct
from numpy.typing import NDArray
from pydicom.pixels import apply_rescale
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ichsearch.dicom.decoder_process import decoded_frame
from ichsearch.dicom.elements import walk
from ichsearch.dicom.pixels import SliceImage, read_image
from ichsearch.dicom.reasons import RejectedError


def read(tmp_path: Path, stored: Stored, **changes: Any) -> SliceImage:
    return read_image(write_ct(tmp_path / "slice.dcm", stored, changes))


def unsigned(*rows: list[int]) -> NDArray[np.uint16]:
    return np.array(rows, np.uint16)


def signed(*rows: list[int]) -> NDArray[np.int16]:
    return np.array(rows, np.int16)


def padded_16_bit(side: int = 64) -> NDArray[np.int16]:
    hu = head_hu(side)
    return np.where(hu < -900, np.int16(-2000), hu)


def test_unsigned_12_bit_values_get_the_intercept(tmp_path: Path) -> None:
    image = read(tmp_path, unsigned([0, 1024], [1064, 4095]))

    assert image.hu.dtype == np.int16
    assert image.hu.tolist() == [[-1024, 0], [40, 3071]]
    assert (image.encoding.bits_stored, image.encoding.signed, image.encoding.wrapped) == (12, False, False)


def test_padding_of_signed_16_bit_values_becomes_air(tmp_path: Path) -> None:
    image = read(tmp_path, signed([-2000, -1000], [0, 80]))

    assert image.hu.tolist() == [[-1024, -1000], [0, 80]]
    assert (image.encoding.bits_stored, image.encoding.signed, image.encoding.wrapped) == (16, True, False)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "hu"),
    [
        (signed([-32768, 32767], [0, 1]), "1", "-1024", [[-1024, 3071], [-1024, -1023]]),
        (signed([-32768, 32767], [0, 1]), "1", "1000", [[-1024, 3071], [1000, 1001]]),
        (signed([-32768, 32767], [0, 1]), "1000", "0", [[-1024, 3071], [0, 1000]]),
    ],
)
def test_values_that_overflow_int16_are_clipped(
    tmp_path: Path, stored: Stored, slope: str, intercept: str, hu: list[list[int]]
) -> None:
    image = read(tmp_path, stored, RescaleSlope=slope, RescaleIntercept=intercept)

    assert image.hu.tolist() == hu


@pytest.mark.parametrize("intercept", [b"1e10", b"-1e10", b"1e300"])
def test_an_intercept_beyond_int32_is_clipped_or_refused_but_never_crashes(tmp_path: Path, intercept: bytes) -> None:
    path = write_ct(tmp_path / "slice.dcm", padded_16_bit(), {"RescaleIntercept": intercept})

    try:
        image = read_image(path)
    except RejectedError as error:
        assert error.reason == "bad_value:RescaleIntercept"
    else:
        assert np.unique(image.hu).tolist() == [-1024 if intercept.startswith(b"-") else 3071]


def test_a_fractional_slope_rounds_to_the_nearest_hu(tmp_path: Path) -> None:
    image = read(tmp_path, unsigned([0, 1], [3, 2001]), RescaleSlope="0.4", RescaleIntercept="-1000.25")

    assert image.hu.tolist() == [[-1000, -1000], [-999, -200]]


def test_monochrome1_is_inverted_within_the_stored_bits(tmp_path: Path) -> None:
    stored = stored_12_bit(head_hu())

    straight = read(tmp_path, stored)
    inverted = read(tmp_path, 4095 - stored, PhotometricInterpretation="MONOCHROME1")

    assert np.array_equal(inverted.hu, straight.hu)


def test_signed_monochrome1_is_inverted_round_minus_a_half(tmp_path: Path) -> None:
    image = read(tmp_path, signed([-1, 0], [99, -101]), PhotometricInterpretation="MONOCHROME1")

    assert image.hu.tolist() == [[0, -1], [-100, 100]]


def test_garbage_above_the_stored_bits_is_masked(tmp_path: Path) -> None:
    stored = stored_12_bit(head_hu())
    garbage = np.random.default_rng(1).integers(0, 16, stored.shape).astype(np.uint16) << 12

    clean, dirty = read(tmp_path, stored), read(tmp_path, stored | garbage)

    assert np.any(garbage)
    assert np.array_equal(dirty.hu, clean.hu)
    assert dirty.stored_hash == clean.stored_hash


def test_the_sign_of_signed_12_bit_values_is_extended_over_garbage(tmp_path: Path) -> None:
    stored = np.array([[0x0FFF, 0xF001], [0x0800, 0x7FFE]], np.uint16).view(np.int16)

    image = read(tmp_path, stored, BitsStored=12, HighBit=11)

    assert image.hu.tolist() == [[-1, 1], [-1024, -2]]


@pytest.mark.parametrize(
    ("stored", "slope", "intercept"),
    [
        (stored_12_bit(head_hu()), "1", "-1024"),
        (stored_12_bit(head_hu()), "0.73", "-1024.5"),
        (padded_16_bit(), "1", "0"),
        (padded_16_bit()[:60, :60], "2", "-1000"),
        (padded_16_bit(), "0.5", "0"),
    ],
)
def test_hu_equal_those_of_pydicom_where_nothing_special_applies(
    tmp_path: Path, stored: Stored, slope: str, intercept: str
) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored, {"RescaleSlope": slope, "RescaleIntercept": intercept})
    ds = pydicom.dcmread(path)

    expected = np.rint(apply_rescale(ds.pixel_array, ds)).clip(-1024, 3071)

    assert np.array_equal(read_image(path).hu, expected)


@pytest.mark.parametrize("intercept", ["0", "1", "-99"])
def test_wrapped_signed_values_come_back_as_the_true_hu(tmp_path: Path, intercept: str) -> None:
    true = np.linspace(-1000, 3071, 64 * 64).astype(np.int16).reshape(64, 64)
    wrapped = np.mod(true.astype(np.int32), 4096).astype(np.uint16)

    image = read(tmp_path, wrapped, RescaleIntercept=intercept)

    assert image.encoding.wrapped
    assert np.array_equal(image.hu, true)


def test_unwrapping_is_fastais_formula_on_every_12_bit_value(tmp_path: Path) -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    expected = stored.astype(np.int32) + 1000
    expected[expected >= 4096] -= 4096
    expected -= 1000

    image = read(tmp_path, stored, RescaleIntercept="0")

    assert np.array_equal(image.hu, expected.clip(-1024, 3071))


@pytest.mark.parametrize(
    ("bits_stored", "representation", "intercept"),
    [(12, 1, "0"), (12, 0, "-1024"), (12, 0, "-1000"), (12, 0, "-100"), (16, 0, "0"), (16, 1, "0")],
)
def test_other_encodings_are_not_unwrapped(
    tmp_path: Path, bits_stored: int, representation: int, intercept: str
) -> None:
    stored = np.array([[0, 40], [1500, 2000]], np.int16 if representation else np.uint16)

    image = read(
        tmp_path,
        stored,
        BitsStored=bits_stored,
        HighBit=bits_stored - 1,
        PixelRepresentation=representation,
        RescaleIntercept=intercept,
    )

    assert not image.encoding.wrapped
    assert np.array_equal(image.hu, (stored.astype(np.int32) + int(intercept)).clip(-1024, 3071))


@pytest.mark.parametrize(("rows", "columns", "top", "left"), [(40, 64, 12, 0), (64, 41, 0, 11), (63, 64, 0, 0)])
def test_a_frame_that_is_not_square_is_centred_in_air(
    tmp_path: Path, rows: int, columns: int, top: int, left: int
) -> None:
    stored = stored_12_bit(np.random.default_rng(2).integers(0, 80, (rows, columns)).astype(np.int16))

    hu = read(tmp_path, stored).hu

    assert hu.shape == (64, 64)
    assert np.array_equal(hu[top : top + rows, left : left + columns] + 1024, stored)
    assert np.count_nonzero(hu == -1024) == 64 * 64 - rows * columns


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
@pytest.mark.parametrize("stored", [stored_12_bit(head_hu()), padded_16_bit()], ids=["unsigned_12", "signed_16"])
def test_every_transfer_syntax_gives_the_same_image(tmp_path: Path, syntax: str, stored: Stored) -> None:
    plain = read_image(write_ct(tmp_path / "plain.dcm", stored))
    other = write_ct(tmp_path / "other.dcm", stored, syntax=syntax)

    assert pydicom.dcmread(other).file_meta.TransferSyntaxUID == syntax != ExplicitVRLittleEndian
    assert np.array_equal(read_image(other).hu, plain.hu)
    assert read_image(other).stored_hash == plain.stored_hash


def test_a_frame_that_is_not_square_survives_compression(tmp_path: Path) -> None:
    stored = stored_12_bit(head_hu())[:40]

    plain = read_image(write_ct(tmp_path / "plain.dcm", stored))
    packed = read_image(write_ct(tmp_path / "packed.dcm", stored, syntax=RLELossless))

    assert np.array_equal(packed.hu, plain.hu)


def test_spacing_is_that_of_rows_and_columns(tmp_path: Path) -> None:
    assert read(tmp_path, stored_12_bit(head_hu()), PixelSpacing=[0.4, 0.6]).encoding.spacing_mm == (0.4, 0.6)


def test_the_hash_of_stored_values_tells_images_apart(tmp_path: Path) -> None:
    same = [read(tmp_path, stored_12_bit(head_hu(seed=seed))).stored_hash for seed in (1, 1, 2)]

    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize(
    "keyword",
    [
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "PhotometricInterpretation",
        "RescaleSlope",
        "RescaleIntercept",
        "PixelSpacing",
        "PixelData",
    ],
)
def test_a_missing_element_is_named(tmp_path: Path, keyword: str) -> None:
    with pytest.raises(RejectedError) as caught:
        read(tmp_path, stored_12_bit(head_hu()), **{keyword: None})

    assert caught.value.reason == f"missing_tag:{keyword}"


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RescaleSlope", b"abc", "bad_value"),
        ("RescaleSlope", b"nan", "bad_value"),
        ("RescaleSlope", b"inf", "bad_value"),
        ("RescaleSlope", b"0", "bad_value"),
        ("RescaleSlope", b"1\\1", "bad_value"),
        ("RescaleSlope", b"-1", "bad_value"),
        ("RescaleSlope", b"0.00099", "bad_value"),
        ("RescaleSlope", b"1000.1", "bad_value"),
        ("RescaleSlope", b"", "missing_tag"),
        ("RescaleIntercept", b"abc", "bad_value"),
        ("RescaleIntercept", b"nan", "bad_value"),
        ("RescaleIntercept", b"-1024,0", "bad_value"),
        ("PixelSpacing", b"0.5", "bad_value"),
        ("PixelSpacing", b"0,5\\0,5", "bad_value"),
        ("PixelSpacing", b"0\\0.5", "bad_value"),
        ("PixelSpacing", b"0.5\\-0.5", "bad_value"),
        ("PixelSpacing", b"0.5\\0.0099", "bad_value"),
        ("PixelSpacing", b"20.1\\0.5", "bad_value"),
        ("HighBit", 15, "bad_value"),
        ("SamplesPerPixel", 3, "bad_value"),
        ("PixelRepresentation", 2, "bad_value"),
        ("BitsAllocated", 32, "bad_value"),
        ("BitsStored", 7, "bad_value"),
        ("BitsStored", 17, "bad_value"),
        ("PhotometricInterpretation", "RGB", "bad_value"),
        ("Rows", 0, "over_limit"),
        ("Rows", 4097, "over_limit"),
        ("Columns", 65535, "over_limit"),
    ],
)
def test_an_impossible_value_is_named(tmp_path: Path, keyword: str, value: bytes | int, reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        read(tmp_path, stored_12_bit(head_hu()), **{keyword: value})

    assert caught.value.reason == f"{reason}:{keyword}"


@pytest.mark.parametrize("missing_bytes", [1, 2, 4000, 64 * 64 * 2 - 2])
def test_a_file_cut_within_its_pixels_is_refused(tmp_path: Path, missing_bytes: int) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()))
    path.write_bytes(path.read_bytes()[:-missing_bytes])

    with pytest.raises(RejectedError, match=r"^truncated_pixels$"):
        read_image(path)


def test_fewer_pixels_than_the_header_claims_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match=r"^truncated_pixels$"):
        read(tmp_path, stored_12_bit(head_hu()), Rows=65)


def test_bytes_behind_the_pixels_do_no_harm(tmp_path: Path) -> None:
    stored = stored_12_bit(head_hu())

    plain, longer = read(tmp_path, stored), read(tmp_path, stored, PixelData=stored.tobytes() + b"\1\2")

    assert np.array_equal(longer.hu, plain.hu)


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match=r"^noise_or_constant$"):
        read(tmp_path, np.full((64, 64), 1064, np.uint16))


@pytest.mark.parametrize(
    ("slope", "intercept", "inverted"), [(1, 32767, False), (1, -32768, False), (1000, 30000, False), (1, 8000, True)]
)
def test_an_image_of_which_every_pixel_is_clipped_is_refused(
    tmp_path: Path, slope: int, intercept: int, inverted: bool
) -> None:
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    changes = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PhotometricInterpretation": photometric}

    with pytest.raises(RejectedError, match=r"^noise_or_constant$"):
        read(tmp_path, stored_12_bit(head_hu()), **changes, BitsStored=16, HighBit=15)


@pytest.mark.parametrize("changes", [{"RescaleSlope": "0.001"}, {"RescaleSlope": "1000"}, {"PixelSpacing": "0.01\\20"}])
def test_values_at_the_limits_are_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read(tmp_path, signed([-1000, 0], [1, 2000]), **changes).hu.shape == (2, 2)


def test_an_image_that_is_constant_but_for_garbage_bits_is_refused(tmp_path: Path) -> None:
    stored = np.full((64, 64), 1064, np.uint16)
    stored[0, 0] |= 0xF000

    with pytest.raises(RejectedError, match=r"^noise_or_constant$"):
        read(tmp_path, stored)


@pytest.mark.parametrize("syntax", [b"1.2.840.10008.1.2.4.53", b"1.2.840.10008.9.9.9.99"], ids=["retired", "unknown"])
def test_a_transfer_syntax_without_decoder_is_refused(tmp_path: Path, syntax: bytes) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), syntax=JPEG2000Lossless)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", syntax))

    with pytest.raises(RejectedError, match=r"^unsupported_syntax$"):
        read_image(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_damaged_compressed_stream_is_no_unsupported_syntax(tmp_path: Path, syntax: str) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), syntax=syntax)
    content = path.read_bytes()
    start = content.index(b"\xff\x51") if syntax == JPEG2000Lossless else len(content) - 1200  # J2K: its SIZ marker
    path.write_bytes(content[:start] + b"\x55" * (len(content) - start - 8) + content[-8:])

    with pytest.raises(RejectedError, match=r"^decoder_crash$"):
        read_image(path)


def test_a_compressed_frame_of_another_shape_than_the_header_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RejectedError):
        read_image(write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), {"Rows": 32}, syntax=JPEG2000Lossless))


class PanicError(BaseException):
    """What pylibjpeg's Rust decoders raise."""


@pytest.mark.parametrize("error", [PanicError, RecursionError, ValueError, TypeError])
def test_whatever_a_decoder_raises_is_one_refused_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise error("boom")

    ds = pydicom.dcmread(write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), syntax=RLELossless))
    elements = walk((tmp_path / "slice.dcm").read_bytes())
    monkeypatch.setattr(Decoder, "as_array", crash)

    with pytest.raises(RejectedError, match=r"^decoder_crash$"):
        decoded_frame(ds, elements)


def noisy_from(row: int, side: int = 128) -> NDArray[np.int16]:
    """A head whose rows from `row` on hold random values, as ID_b79eed528 of RSNA 2019."""
    stored = head_hu(side)
    stored[row:] = np.random.default_rng(3).integers(-2000, 3000, (side - row, side))
    return stored


@pytest.mark.parametrize("row", [0, 83, 108])
def test_an_image_that_is_noise_from_some_row_on_is_refused(tmp_path: Path, row: int) -> None:
    with pytest.raises(RejectedError, match=r"^noise_or_constant$"):
        read(tmp_path, noisy_from(row))


def test_a_few_wild_pixels_are_clipped_and_counted(tmp_path: Path) -> None:
    stored = head_hu(128)
    stored[60, 3:30:3], stored[61, 5:20:5] = -32768, 30549

    image = read(tmp_path, stored)

    assert (image.clipped_low, image.clipped_high) == (9, 3)
    assert (image.hu.min(), image.hu.max()) == (-1024, 3071)


def test_stored_statistics_are_those_of_the_stored_values(tmp_path: Path) -> None:
    stored = stored_12_bit(head_hu(128))

    statistics = read(tmp_path, stored).statistics

    assert (statistics.minimum, statistics.maximum) == (stored.min(), stored.max())
    assert statistics.mean == pytest.approx(stored.mean(), abs=0.01)
    assert statistics.std == pytest.approx(stored.std(), abs=0.01)


def test_eight_bit_frames_are_read(tmp_path: Path) -> None:
    stored = head_hu(64).clip(0, 255).astype(np.uint8)

    image = read(
        tmp_path, stored.astype(np.uint16), PixelData=stored.tobytes(), BitsAllocated=8, BitsStored=8, HighBit=7
    )

    assert np.array_equal(image.hu, stored.astype(np.int16) - 1024)


@pytest.mark.parametrize(
    ("stored", "intercept"),
    [(head_hu(), value) for value in (3071, 3072, 4000, 20000, 32767, -32767)]
    + [(stored_12_bit(head_hu()), value) for value in (3071, -20000, -32768)],
)
def test_no_intercept_is_too_large_or_too_small(tmp_path: Path, stored: Stored, intercept: int) -> None:
    stored = stored.copy()
    stored[1, 0] = 0 if intercept == 3071 else -intercept  # one pixel within the limits
    image = read(tmp_path, stored, RescaleIntercept=intercept, BitsStored=16, HighBit=15)

    true = stored.astype(np.int64) + intercept
    assert np.array_equal(image.hu, true.clip(-1024, 3071))
    assert (image.clipped_low, image.clipped_high) == (np.sum(true < -1024), np.sum(true > 3071))


def test_statistics_of_values_far_from_zero_are_exact(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(32700, 32760, (64, 64)).astype(np.uint16)

    statistics = read(tmp_path, stored, BitsStored=16, HighBit=15, RescaleIntercept=-32768).statistics

    assert statistics.std == pytest.approx(stored.std(), abs=0.01)


def test_implicit_files_are_read_without_the_decoder(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "slice.dcm", stored_12_bit(head_hu()), syntax=ImplicitVRLittleEndian)

    assert walk(path.read_bytes()).is_native


def test_a_refusal_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RejectedError("missing_tag", "Rows")))  # noqa: S301 - our own bytes

    assert error.reason == "missing_tag:Rows"

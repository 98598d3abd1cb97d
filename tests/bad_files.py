"""Files that are no slice and files that only look so: every way a folder of DICOM files was seen to go wrong.

In: a folder to write to. Out: paths, the reasons they must end with, and seeded mutants of real files.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from dicom_files import Stored, ct_dataset, head_hu, stored_12_bit, write_ct
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from ichsearch.dicom.header import read_header
from ichsearch.dicom.pixels import SliceImage, read_image
from ichsearch.dicom.reasons import RejectedError

Maker = Callable[[Path], Path]
"""Writes into a folder and returns the path of the file."""
Bytes = Callable[[bytes], bytes]

REAL_DATA: Final = Path(os.environ.get("ICHSEARCH_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
SIDE: Final = 64
STORED: Final = stored_12_bit(head_hu(SIDE))
NATIVE: Final = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
KEY_OBJECT: Final = "1.2.840.10008.5.1.4.1.1.88.59"
PRESENTATION_STATE: Final = "1.2.840.10008.5.1.4.1.1.11.1"
CT_ENHANCED: Final = "1.2.840.10008.5.1.4.1.1.2.1"
NESTED_ITEM: Final = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"


def outcome(path: Path) -> str:
    """`ok`, or the reason a file ends with as preprocessing reads it: first its header, then its pixels."""
    try:
        read_header(path)
        read_image(path)
    except RejectedError as error:
        return error.reason
    return "ok"


def image_or_reason(path: Path) -> SliceImage | str:
    """The image, or the reason there is none."""
    try:
        read_header(path)
        return read_image(path)
    except RejectedError as error:
        return error.reason


def real_files(*folders: str) -> list[Path]:
    """Files of real scanners outside the repository; none where the data is not there."""
    return [
        path for folder in folders or ("rsna_dcm", "ge_head") for path in sorted((REAL_DATA / folder).glob("*.dcm"))
    ]


def shipped(name: str) -> Path:
    """A file in pydicom's wheel."""
    return Path(str(get_testdata_file(name, download=False)))


def shipped_ct() -> list[Path]:
    """The CT slices in pydicom's wheel."""
    small = shipped("CT_small.dcm")
    beside = sorted((small.parent / "dicomdirtests").glob("*/CT*/*"))
    return [small, shipped("693_J2KI.dcm"), shipped("J2K_pixelrep_mismatch.dcm"), *beside]


def ct(changes: Mapping[str, Any] | None = None, *, stored: Stored = STORED, syntax: str = "explicit") -> Maker:
    """A maker of a CT slice with changed elements, in a transfer syntax by its short name or UID."""
    if syntax == "big_endian":
        return lambda folder: write_big_endian(folder / "slice.dcm", stored, changes or {})
    return lambda folder: write_ct(folder / "slice.dcm", stored, changes, syntax=NATIVE.get(syntax, syntax))


def write_big_endian(path: Path, stored: Stored, changes: Mapping[str, Any]) -> Path:
    """The one syntax that pydicom does not convert to: 16-bit pixels have to be swapped first."""
    ds = ct_dataset(stored, changes)
    if "PixelData" in ds:
        pixels = np.frombuffer(ds.PixelData[: len(ds.PixelData) // 2 * 2], np.uint16)
        ds.PixelData = pixels.byteswap().tobytes()
    ds.set_original_encoding(False, False, "iso8859")
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def edited(edit: Bytes, source: Maker | None = None) -> Maker:
    """A maker that changes the bytes of another one's file."""

    def make(folder: Path) -> Path:
        path = (source or ct())(folder)
        path.write_bytes(edit(path.read_bytes()))
        return path

    return make


def raw(content: bytes) -> Maker:
    """A maker of a file of these bytes."""

    def make(folder: Path) -> Path:
        path = folder / "slice.dcm"
        path.write_bytes(content)
        return path

    return make


def of_pydicom(name: str) -> Maker:
    """A file in pydicom's wheel, used in place."""
    return lambda _: shipped(name)


def compressed(stream: bytes, syntax: str, changes: Mapping[str, Any] | None = None) -> Maker:
    """A maker of a slice whose pixels are a compressed stream, whatever it holds."""

    def make(folder: Path) -> Path:
        path = write_ct(folder / "slice.dcm", STORED, changes)
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        ds.PixelData = encapsulate([stream])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
        return path

    return make


def at_element(tag: bytes, insert: bytes) -> Bytes:
    """Insert bytes before the element whose tag and VR are these bytes."""
    return lambda content: content[: content.index(tag)] + insert + content[content.index(tag) :]


def deflated_bomb(n_bytes: int = 300 * 2**20) -> Maker:
    """A small deflated file that inflates to `n_bytes` of zeros in an element before the pixels."""

    def edit(content: bytes) -> bytes:
        start = 144 + int.from_bytes(content[140:144], "little")  # behind the file meta information (PS3.10 7.1)
        inflated = zlib.decompress(content[start:], -zlib.MAX_WBITS)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(inflated + b"\xfc\xff\xfc\xffOB\0\0" + n_bytes.to_bytes(4, "little"))
        packed += b"".join(packer.compress(bytes(2**20)) for _ in range(n_bytes // 2**20)) + packer.flush()
        return content[:start] + packed

    return edited(edit, ct(syntax="deflated"))


def rle_of(runs: int) -> bytes:
    """An RLE stream of two segments, each of runs of 128 zeros (PS3.5 annex G)."""
    return (2).to_bytes(4, "little") + (64).to_bytes(4, "little") * 2 + bytes(52) + b"\x81\0" * runs


def link(target: str) -> Maker:
    """A maker of a symbolic link."""

    def make(folder: Path) -> Path:
        (folder / "slice.dcm").symlink_to(target)
        return folder / "slice.dcm"

    return make


def pipe(folder: Path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(folder / "slice.dcm")
    return folder / "slice.dcm"


def noisy(first_row: int, side: int) -> Stored:
    """A head whose rows from `first_row` on hold random 12-bit values."""
    stored = stored_12_bit(head_hu(side))
    stored[first_row:] = np.random.default_rng(0).integers(0, 4096, stored[first_row:].shape, dtype=np.uint16)
    return stored


def swapped_real_pixels(folder: Path) -> Path:
    """CT_small.dcm with its pixels written in the other byte order."""
    ds = pydicom.dcmread(shipped("CT_small.dcm"))
    ds.PixelData = ds.pixel_array.byteswap().tobytes()
    ds.save_as(folder / "slice.dcm")
    return folder / "slice.dcm"


def header_of_length(n_bytes: int) -> Bytes:
    """Insert a private element that ends exactly at `n_bytes`, before all that places the slice."""

    def edit(content: bytes) -> bytes:
        at = content.index(b"\x20\x00\x0d\x00UI")
        padding = n_bytes - at - 12
        element = b"\x19\x00\x10\x10UN\0\0" + padding.to_bytes(4, "little") + b" " * padding
        return content[:at] + element + content[at:]

    return edit


NEEDED_BY_HEADER: Final = (
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
NEEDED_BY_PIXELS: Final = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation",
    "RescaleSlope", "RescaleIntercept", "PixelSpacing",
)  # fmt: skip
DECIMALS: Final = {
    "RescaleSlope": "{}",
    "RescaleIntercept": "{}",
    "PixelSpacing": "0.5\\{}",
    "ImagePositionPatient": "0\\{}\\0",
    "ImageOrientationPatient": "1\\0\\0\\0\\{}\\0",
}
NO_NUMBERS: Final = ("abc", "nan", "inf", "-inf", "1e999", "1_0", "0,5", "1 2", "0x1", "--1")
JPEG_2000_MARK: Final = b"\xff\x4f\xff\x51"

MISSING: Final = {
    f"{keyword}_{state}": (ct({keyword: value}), f"missing_tag:{keyword}")
    for keyword in (*NEEDED_BY_HEADER, *NEEDED_BY_PIXELS)
    for state, value in (("absent", None), ("empty", b""))
}

NOT_NUMBERS: Final = {
    f"{keyword}_{text}": (ct({keyword: form.format(text).encode()}), f"bad_value:{keyword}")
    for keyword, form in DECIMALS.items()
    for text in NO_NUMBERS
}

IN_EVERY_SYNTAX: Final = {
    f"{name}_{short}": (ct(changes, syntax=short), reason)
    for name, changes, reason in (
        ("no_position", {"ImagePositionPatient": None}, "missing_tag:ImagePositionPatient"),
        ("no_slope", {"RescaleSlope": None}, "missing_tag:RescaleSlope"),
        ("no_rows", {"Rows": None}, "missing_tag:Rows"),
        ("no_pixels", {"PixelData": None}, "missing_tag:PixelData"),
        ("slope_abc", {"RescaleSlope": b"abc"}, "bad_value:RescaleSlope"),
        ("mr", {"Modality": "MR"}, "not_ct_image"),
        ("short_pixels", {"PixelData": STORED.tobytes()[:-2]}, "truncated_pixels"),
    )
    for short in NATIVE
}

VALUES: Final = {
    "slope_0": (ct({"RescaleSlope": 0}), "bad_value:RescaleSlope"),
    "slope_minus_0": (ct({"RescaleSlope": b"-0.0"}), "bad_value:RescaleSlope"),
    "slope_negative": (ct({"RescaleSlope": -1}), "bad_value:RescaleSlope"),
    "slope_1e9": (ct({"RescaleSlope": b"1e9"}), "bad_value:RescaleSlope"),
    "slope_1e-9": (ct({"RescaleSlope": b"1e-9"}), "bad_value:RescaleSlope"),
    "two_slopes": (ct({"RescaleSlope": b"1\\1"}), "bad_value:RescaleSlope"),
    "intercept_1e10": (ct({"RescaleIntercept": b"1e10"}), "bad_value:RescaleIntercept"),
    "spacing_0": (ct({"PixelSpacing": b"0\\0.5"}), "bad_value:PixelSpacing"),
    "spacing_negative": (ct({"PixelSpacing": b"0.5\\-0.5"}), "bad_value:PixelSpacing"),
    "spacing_in_metres": (ct({"PixelSpacing": b"0.0005\\0.0005"}), "bad_value:PixelSpacing"),
    "spacing_1e6": (ct({"PixelSpacing": b"1e6\\0.5"}), "bad_value:PixelSpacing"),
    "one_spacing": (ct({"PixelSpacing": b"0.5"}), "bad_value:PixelSpacing"),
    "rows_0": (ct({"Rows": 0}), "over_limit:Rows"),
    "rows_4_of_64": (ct({"Rows": 4}), "over_limit:aspect"),
    "columns_4097": (ct({"Columns": 4097}), "over_limit:Columns"),
    "rows_of_4_bytes": (ct({"Rows": b"\x40\0\0\0"}), "bad_value:Rows"),
    "bits_allocated_32": (ct({"BitsAllocated": 32}), "bad_value:BitsAllocated"),
    "bits_allocated_12": (ct({"BitsAllocated": 12}), "bad_value:BitsAllocated"),
    "bits_stored_17": (ct({"BitsStored": 17, "HighBit": 16}), "bad_value:BitsStored"),
    "bits_stored_1": (ct({"BitsStored": 1, "HighBit": 0}), "bad_value:BitsStored"),
    "high_bit_15_of_12": (ct({"HighBit": 15}), "bad_value:HighBit"),
    "representation_2": (ct({"PixelRepresentation": 2}), "bad_value:PixelRepresentation"),
    "rgb": (ct({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}), "bad_value:PhotometricInterpretation"),
    "palette": (ct({"PhotometricInterpretation": "PALETTE COLOR"}), "bad_value:PhotometricInterpretation"),
    "two_frames": (ct({"NumberOfFrames": 2}), "multi_frame"),
    "no_frame": (ct({"NumberOfFrames": 0}), "multi_frame"),
    "frames_nan": (ct({"NumberOfFrames": b"nan"}), "bad_value:NumberOfFrames"),
    "localizer": (ct({"ImageType": b"ORIGINAL\\PRIMARY\\LOCALIZER \\CT_SOM5 TOP"}), "not_axial"),
    "localizer_of_3": (ct({"ImageType": b"DERIVED\\SECONDARY\\LOCALIZER"}, syntax="deflated"), "not_axial"),
    "sagittal": (ct({"ImageOrientationPatient": b"0\\1\\0\\0\\0\\-1"}), "not_axial"),
    "coronal": (ct({"ImageOrientationPatient": b"1\\0\\0\\0\\0\\-1"}), "not_axial"),
    "no_direction": (ct({"ImageOrientationPatient": b"0\\0\\0\\0\\0\\0"}), "bad_value:ImageOrientationPatient"),
    "five_cosines": (ct({"ImageOrientationPatient": b"1\\0\\0\\0\\1"}), "bad_value:ImageOrientationPatient"),
    "coordinate_1e300": (ct({"ImagePositionPatient": b"0\\0\\1e300"}), "bad_value:ImagePositionPatient"),
    "intercept_32768": (ct({"RescaleIntercept": 32768, "BitsStored": 16, "HighBit": 15}), "noise_or_constant"),
    "two_coordinates": (ct({"ImagePositionPatient": b"0\\0"}), "bad_value:ImagePositionPatient"),
}

OBJECTS: Final = {
    "key_object": (ct({"SOPClassUID": KEY_OBJECT, "Modality": "KO"}), "not_ct_image"),
    "presentation_state": (ct({"SOPClassUID": PRESENTATION_STATE, "Modality": "PR"}), "not_ct_image"),
    "presentation_state_of_ct": (ct({"SOPClassUID": PRESENTATION_STATE}), "not_ct_image"),
    "enhanced_ct": (ct({"SOPClassUID": CT_ENHANCED}), "not_ct_image"),
    "unknown_syntax": (
        edited(lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")),
        "unsupported_syntax",
    ),
    "video_syntax": (compressed(b"\0\0\0\1", "1.2.840.10008.1.2.4.102"), "unsupported_syntax"),
    **{
        name: (of_pydicom(name), reason)
        for name, reason in {
            "MR_truncated.dcm": "not_ct_image",
            "badVR.dcm": "not_ct_image",
            "rtplan_truncated.dcm": "not_ct_image",
            "meta_missing_tsyntax.dcm": "missing_tag:SOPInstanceUID",
            "no_meta.dcm": "not_dicom",
            "image_dfl.dcm": "not_ct_image",
            "GDCMJ2K_TextGBR.dcm": "not_ct_image",
            "JPEG-lossy.dcm": "not_ct_image",
            "liver_1frame.dcm": "not_ct_image",
            "test-SR.dcm": "not_ct_image",
            "reportsi.dcm": "not_ct_image",
            "rtstruct.dcm": "not_dicom",
            "rtdose.dcm": "not_ct_image",
            "waveform_ecg.dcm": "not_ct_image",
            "UN_sequence.dcm": "missing_tag:SOPInstanceUID",
            "nested_priv_SQ.dcm": "missing_tag:SOPInstanceUID",
            "DICOMDIR": "missing_tag:SOPInstanceUID",
            "DICOMDIR-bigEnd": "missing_tag:SOPInstanceUID",
            "zipMR.gz": "not_dicom",
        }.items()
    },
}  # fmt: skip

DAMAGE: Final = {
    "empty": (raw(b""), "not_dicom"),
    "preamble_only": (raw(bytes(128) + b"DICM"), "missing_tag:SOPInstanceUID"),
    "html": (raw(b"<!DOCTYPE html><html><body>404</body></html>" * 99), "not_dicom"),
    "text": (raw(b"ID,Label\n1,0\n"), "not_dicom"),
    "zeros": (raw(bytes(40_000)), "not_dicom"),
    "random": (raw(np.random.default_rng(0).bytes(40_000)), "not_dicom"),
    "magic_then_random": (
        raw(bytes(128) + b"DICM" + np.random.default_rng(1).bytes(40_000)), "missing_tag:SOPInstanceUID",
    ),
    "no_preamble": (edited(lambda content: content[132:]), "not_dicom"),
    "cut_in_a_value": (
        edited(lambda content: content[: content.index(b"ID_0000000bb") + 5]), "missing_tag:SeriesInstanceUID",
    ),
    "cut_after_identifiers": (
        edited(lambda content: content[: content.index(b"\x28\x00\x10\x00US")]), "missing_tag:Rows",
    ),
    "cut_before_pixels": (
        edited(lambda content: content[: content.index(b"\xe0\x7f\x10\x00OW")]), "missing_tag:PixelData",
    ),
    "half_the_pixels": (edited(lambda content: content[: len(content) - STORED.nbytes // 2]), "truncated_pixels"),
    "one_byte_short": (edited(lambda content: content[:-1]), "truncated_pixels"),
    "two_bytes_short": (edited(lambda content: content[:-2]), "truncated_pixels"),
    "no_pixels_at_all": (edited(lambda content: content[: -STORED.nbytes]), "truncated_pixels"),
    "no_pixel_data": (ct({"PixelData": None}), "missing_tag:PixelData"),
    "empty_pixel_data": (ct({"PixelData": b""}), "truncated_pixels"),
    "cut_deflated": (edited(lambda content: content[:-100], ct(syntax="deflated")), "damaged"),
    "cut_rle": (edited(lambda content: content[:-300], ct(syntax=RLELossless)), "decoder_crash"),
    "cut_jpeg_2000": (
        edited(lambda content: content[: content.index(JPEG_2000_MARK) + 60], ct(syntax=JPEG2000Lossless)),
        "decoder_crash",
    ),
    "damaged_jpeg_2000": (
        edited(lambda c: c.replace(JPEG_2000_MARK, b"\xff\x4f\xde\xad"), ct(syntax=JPEG2000Lossless)), "decoder_crash",
    ),
    "no_jpeg": (compressed(b"no JPEG at all, but some text", JPEGBaseline8Bit), "decoder_crash"),
    "empty_jpeg": (compressed(b"\0\0", JPEGBaseline8Bit), "decoder_crash"),
    "constant": (ct(stored=np.full((SIDE, SIDE), 1024, np.uint16)), "noise_or_constant"),
    "constant_but_for_garbage_bits": (
        ct(stored=(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) % 16 << 12) + np.uint16(7)),
        "noise_or_constant",
    ),
    "noise": (ct(stored=noisy(0, SIDE)), "noise_or_constant"),
    "noise_from_row_332": (ct(stored=noisy(332, 512)), "noise_or_constant"),
    "swapped_bytes": (swapped_real_pixels, "noise_or_constant"),
}  # fmt: skip

BOMBS: Final = {
    "deflated_300_mib": (deflated_bomb(), "over_limit:file"),
    "rle_of_65535_squared": (
        compressed(rle_of(3000), RLELossless, {"Rows": 65535, "Columns": 65535}),
        "over_limit:Rows",
    ),
    "rle_of_65535_squared_in_its_stream": (
        compressed(rle_of(2**20), RLELossless),
        "decoder_crash",
    ),
    "nested_5000": (edited(at_element(b"\x08\x00\x18\x00UI", NESTED_ITEM * 5000)), "damaged"),
    "nested_5000_implicit": (
        edited(
            at_element(b"\x08\x00\x18\x00", (b"\x08\x00\x40\x11" + b"\xff" * 4 + NESTED_ITEM[12:]) * 5000),
            ct(syntax="implicit"),
        ),
        "damaged",
    ),
    "65_mib": (edited(lambda content: content + bytes(65 * 2**20)), "over_limit:file"),
}  # fmt: skip

PLACES: Final = {
    "vanished": (lambda folder: folder / "gone.dcm", "unreadable"),
    "folder": (lambda folder: folder, "unreadable"),
    "link_to_itself": (link("slice.dcm"), "unreadable"),
    "link_to_nowhere": (link("gone.dcm"), "unreadable"),
    "link_to_its_folder": (link("."), "unreadable"),
    "pipe": (pipe, "unreadable"),
    "device": (link("/dev/zero"), "unreadable"),
}

BAD: Final[dict[str, tuple[Maker, str]]] = {
    **MISSING, **NOT_NUMBERS, **IN_EVERY_SYNTAX, **VALUES, **OBJECTS, **DAMAGE, **BOMBS, **PLACES,
}  # fmt: skip


EXTREMES: Final = (b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f")


def mutants(content: bytes, header_bytes: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Endlessly: bytes flipped anywhere or in the header, cut off, cut out, inserted, repeated, or zeroed."""
    while True:
        changed = bytearray(content)
        kind = int(rng.integers(7))
        at, length = int(rng.integers(128, len(changed))), int(rng.integers(1, 200))
        if kind in (0, 1):
            end = header_bytes if kind else len(changed)
            for place in rng.integers(128, max(129, end), int(rng.integers(1, 9))):
                changed[place] ^= int(rng.integers(1, 256))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[min(at, header_bytes) : min(at, header_bytes) + length]
        elif kind == 4:
            changed[at % header_bytes : at % header_bytes] = rng.bytes(length)
        elif kind == 5:
            changed[at % header_bytes : at % header_bytes] = changed[at : at + length]
        else:
            changed[at % header_bytes : at % header_bytes + 4] = EXTREMES[rng.integers(3)]
        yield bytes(changed)


def header_length(content: bytes) -> int:
    """Where PixelData begins; the file's length without one."""
    stream = BytesIO(content)
    with pydicom.config.disable_value_validation():
        pydicom.dcmread(stream, stop_before_pixels=True)
    return stream.tell()

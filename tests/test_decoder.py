"""The decoder's process may crash, hang or want too much: it costs one file; and both readers of a header agree."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bad_files import BAD, STORED, ct, deflated_bomb, real_files, shipped, shipped_ct, write_big_endian
from dicom_files import head_hu, stored_12_bit, write_ct
from pydicom.dataelem import RawDataElement
from pydicom.pixels.processing import apply_rescale
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ichsearch.dicom import decoder as decoder_module
from ichsearch.dicom import pixels as pixels_module
from ichsearch.dicom.decoder import Decoder
from ichsearch.dicom.elements import TAGS, NotPlainError, walk
from ichsearch.dicom.pixels import read_image
from ichsearch.dicom.reasons import RejectedError

SHORTS = {
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
}
"""Elements held as 16-bit integers; all others are text."""

LARGE = 2048


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


@pytest.fixture(scope="module")
def slow_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that takes a good part of a second to decode."""
    stored = np.random.default_rng(0).integers(0, 4096, (LARGE, LARGE), dtype=np.uint16)
    path = write_ct(tmp_path_factory.mktemp("slow") / "slow.dcm", stored, syntax=JPEG2000Lossless)
    return path.read_bytes()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return ct(syntax=RLELossless)(tmp_path).read_bytes()


def reason_of(decoder: Decoder, content: bytes, *, pixels: bool = True) -> str:
    with pytest.raises(RejectedError) as caught:
        decoder.read(content, pixels=pixels)
    return caught.value.reason


def frame_of(decoder: Decoder, content: bytes) -> "np.ndarray[tuple[int, int], np.dtype[np.int16 | np.uint16]]":
    _, frame = decoder.read(content, pixels=True)
    assert frame is not None
    return frame


def child_of(decoder: Decoder) -> int:
    assert decoder.pid is not None
    return decoder.pid


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def signal_later(pid: int, number: signal.Signals, after_s: float) -> None:
    """A process of its own sends the signal, while this one waits for the reply."""
    if os.fork() == 0:
        time.sleep(after_s)
        os.kill(pid, number)
        os._exit(0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_child_killed_at_work_costs_one_file(
    decoder: Decoder, content: bytes, slow_content: bytes, number: signal.Signals
) -> None:
    assert np.array_equal(frame_of(decoder, content), STORED)
    first = child_of(decoder)
    signal_later(first, number, 0.1)

    assert reason_of(decoder, slow_content) == "decoder_crash"

    assert np.array_equal(frame_of(decoder, content), STORED)
    assert child_of(decoder) != first
    assert is_gone(first)
    os.wait()


@pytest.mark.timeout(60)
def test_a_child_killed_between_two_files_costs_at_most_the_next(decoder: Decoder, content: bytes) -> None:
    frame_of(decoder, content)
    os.kill(child_of(decoder), signal.SIGKILL)
    time.sleep(0.2)

    assert reason_of(decoder, content) == "decoder_crash"
    assert np.array_equal(frame_of(decoder, content), STORED)


@pytest.mark.timeout(60)
def test_a_child_that_hangs_is_ended_at_the_time_limit(
    decoder: Decoder, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame_of(decoder, content)
    hanging = child_of(decoder)
    os.kill(hanging, signal.SIGSTOP)
    monkeypatch.setattr(decoder_module, "TIME_LIMIT_S", 0.5)
    began = time.monotonic()

    assert reason_of(decoder, content) == "over_limit:time"

    assert time.monotonic() - began < 5
    assert is_gone(hanging)
    monkeypatch.undo()
    assert np.array_equal(frame_of(decoder, content), STORED)


@pytest.mark.timeout(60)
def test_an_interrupt_while_waiting_leaves_no_reply_for_the_next_file(
    decoder: Decoder, content: bytes, slow_content: bytes
) -> None:
    frame_of(decoder, content)
    signal_later(os.getpid(), signal.SIGINT, 0.1)

    with pytest.raises(KeyboardInterrupt):
        decoder.read(slow_content, pixels=True)

    assert np.array_equal(frame_of(decoder, content), STORED)
    os.wait()


@pytest.mark.timeout(120)
def test_a_file_that_wants_too_much_memory_costs_itself_alone(decoder: Decoder, content: bytes, tmp_path: Path) -> None:
    greedy = deflated_behind_a_long_meta(deflated_bomb(2**31)(tmp_path).read_bytes())

    assert reason_of(decoder, greedy, pixels=False) in ("over_limit:memory", "over_limit:file", "decoder_crash")
    assert np.array_equal(frame_of(decoder, content), STORED)


def deflated_behind_a_long_meta(content: bytes) -> bytes:
    """The same file with 2,000 bytes of private information before the transfer syntax (PS3.10 7.1 allows no such)."""
    at = content.index(b"\x02\x00\x10\x00UI")
    private = b"\x02\x00\x03\x00UI" + (2000).to_bytes(2, "little") + b"1" * 2000
    length = int.from_bytes(content[140:144], "little") + len(private)
    return content[:140] + length.to_bytes(4, "little") + content[144:at] + private + content[at:]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["deflated_300_mib", "nested_5000", "damaged_jpeg_2000", "no_jpeg", "cut_rle"])
def test_a_refused_file_leaves_the_child_at_work(decoder: Decoder, content: bytes, tmp_path: Path, name: str) -> None:
    make, _ = BAD[name]
    frame_of(decoder, content)
    child = child_of(decoder)
    (tmp_path / "bad").mkdir()

    reason_of(decoder, make(tmp_path / "bad").read_bytes())

    assert np.array_equal(frame_of(decoder, content), STORED)
    assert child_of(decoder) == child


def test_no_child_is_started_for_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Decoder()
    monkeypatch.setattr(pixels_module, "DECODER", idle)

    read_image(ct()(tmp_path))

    assert idle.pid is None


def test_closing_ends_the_child_and_leaks_no_descriptor(content: bytes) -> None:
    made = Decoder()
    frame_of(made, content)
    child, before = child_of(made), len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not walked
    for _ in range(5):
        made.close()
        frame_of(made, content)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    made.close()
    assert made.pid is None
    assert is_gone(child)


def made_files(folder: Path) -> list[Path]:
    """A head in each form that `write_ct` knows."""
    syntaxes = {
        "explicit": ExplicitVRLittleEndian,
        "implicit": ImplicitVRLittleEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
        "rle": RLELossless,
        "jpeg_2000": JPEG2000Lossless,
        "jpeg_ls": JPEGLSLossless,
    }
    stored = stored_12_bit(head_hu(64))
    made = [write_ct(folder / f"{name}.dcm", stored, syntax=syntax) for name, syntax in syntaxes.items()]
    odd = {"PatientID": b"odd", "NumberOfFrames": 1, "WindowCenter": [40, 80], "KVP": b""}
    made += [write_ct(folder / f"odd_{name}.dcm", stored, odd, syntax=s) for name, s in syntaxes.items()]
    return [*made, write_big_endian(folder / "big_endian.dcm", stored, odd)]


def values_by_pydicom(path: Path) -> dict[int, bytes]:
    """The wanted elements' bytes that are not empty, read by pydicom alone."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    items = {tag: ds.get_item(BaseTag(tag)) for tag in TAGS.values()}
    return {tag: item.value for tag, item in items.items() if isinstance(item, RawDataElement) and item.value}


def test_the_walk_and_pydicom_read_the_same_values(tmp_path: Path) -> None:
    names = ("rtplan.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "JPEG2000.dcm", "test-SR.dcm", "nested_priv_SQ.dcm")
    walked = 0
    for path in [*shipped_ct(), *map(shipped, names), *real_files(), *made_files(tmp_path)]:
        try:
            found = walk(path.read_bytes())
        except NotPlainError:
            continue
        walked += 1
        assert {tag: value for tag, value in found.values.items() if value} == values_by_pydicom(path), path.name
        assert found.syntax == pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID, path.name
    assert walked >= 20


def test_the_walk_refuses_to_read_deflated_and_big_endian_files(tmp_path: Path) -> None:
    for name in ("deflated", "odd_deflated", "big_endian"):
        path = next(path for path in made_files(tmp_path) if path.stem == name)
        with pytest.raises(NotPlainError):
            walk(path.read_bytes())


def test_big_endian_values_are_converted_as_little_endian_ones(tmp_path: Path, decoder: Decoder) -> None:
    content = write_big_endian(tmp_path / "big.dcm", STORED, {}).read_bytes()
    plain = walk(write_ct(tmp_path / "plain.dcm", STORED).read_bytes())

    found, frame = decoder.read(content, pixels=True)

    assert not found.little_endian
    assert frame is not None
    assert np.array_equal(frame, STORED)
    for keyword in TAGS:
        read = "optional_short" if keyword in SHORTS else "optional_text"
        assert getattr(found, read)(keyword) == getattr(plain, read)(keyword), keyword


def test_frames_of_the_walk_are_those_of_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_read_frame` of native files, its decoder taken away."""
    native = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    paths = [*shipped_ct(), *real_files(), *made_files(tmp_path)]
    compared = 0
    monkeypatch.setattr(pixels_module, "DECODER", None)
    for path in paths:
        with pydicom.config.disable_value_validation():
            ds = pydicom.dcmread(path)
        if ds.file_meta.TransferSyntaxUID in native and "PixelData" in ds:
            try:
                walk(path.read_bytes())
            except NotPlainError:
                continue
            _, _, frame = pixels_module._read_frame(path.read_bytes())
            assert np.array_equal(frame, ds.pixel_array), path.name
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("path", real_files() or [None], ids=lambda path: path.stem if path else "no_real_data")
def test_hu_of_a_real_file_are_those_of_pydicom(path: Path | None) -> None:
    if path is None:
        pytest.skip("no real data: set ICHSEARCH_REAL_DATA")
    image = read_image(path)
    if image.encoding.wrapped:
        pytest.skip("fix_pxrepr applies")
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(path)
        expected = apply_rescale(ds.pixel_array, ds)

    assert np.array_equal(image.hu, np.clip(expected, -1024, 3071).astype(np.int16))


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_hu_of_the_slices_of_pydicom_are_pydicoms_own(name: str) -> None:
    ds = pydicom.dcmread(shipped(name))

    image = read_image(shipped(name))

    assert not image.encoding.wrapped
    expected = apply_rescale(ds.pixel_array, ds)
    assert np.array_equal(image.hu, np.clip(np.rint(expected), -1024, 3071).astype(np.int16))

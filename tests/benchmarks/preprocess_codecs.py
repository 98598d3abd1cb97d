"""Compressed files: `read_image` against every decoder that pydicom finds, used directly.

In: uncompressed files. Out: per transfer syntax the seconds of ours and of each decoder, round by round.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

import preprocess_ours as ours
import pydicom
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from ichsearch.dicom.memory import keep_freed_memory

SYNTAXES: Final = {
    "RLE": RLELossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG lossless SV1": JPEGLosslessSV1,
}

OURS: Final = {"ours read_image": ours.hu_of, "ours decode": ours.stored}
"""A slice in HU with hash, statistics and checks; and what the decoders give, the stored values."""


@dataclass
class CodecTimes:
    """Seconds a round over `files` compressed files; `skipped` says what could not run, and why."""

    files: int = 0
    identical: bool = True
    seconds: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def time_syntax(paths: list[Path], folder: Path, uid: UID, rounds: int) -> CodecTimes:
    """Compress `paths` into `folder` and time all readers in turn; one round more, the first, warms up."""
    times = CodecTimes()
    keep_freed_memory()  # as `build_shard` does; the decoders have it too
    folder.mkdir()
    compressed = [target for path in paths if (target := _try_compress(path, folder, uid, times)) is not None]
    times.files = len(compressed)
    if not compressed:
        return times
    times.identical = all(ours.stored_hash(path) == ours.stored_hash(_origin(path, paths)) for path in compressed)
    readers = _readers(uid)
    for _ in range(rounds + 1):
        for name in [name for name in readers if name not in times.skipped]:
            _add_round(times, name, readers[name], compressed)
    times.seconds = {name: values[1:] for name, values in times.seconds.items() if name not in times.skipped}
    return times


def _add_round(times: CodecTimes, name: str, read: Callable[[Path], object], paths: list[Path]) -> None:
    try:
        times.seconds.setdefault(name, []).append(_seconds(read, paths))
    except Exception as error:  # noqa: BLE001 - each decoder fails in its own way, and is left out
        times.skipped[name] = f"{type(error).__name__}: {error}"


def _origin(path: Path, paths: list[Path]) -> Path:
    return next(origin for origin in paths if origin.stem == path.stem)


def _readers(uid: UID) -> dict[str, Callable[[Path], object]]:
    plugins = get_decoder(uid).available_plugins
    return OURS | {name: _direct(uid, name) for name in plugins}


def _direct(uid: UID, plugin: str) -> Callable[[Path], object]:
    """Stored values as the decoder gives them: no HU, no hash, no checks."""
    decoder = get_decoder(uid)
    return lambda path: decoder.as_array(pydicom.dcmread(path), decoding_plugin=plugin)


def _seconds(read: Callable[[Path], object], paths: list[Path]) -> float:
    start = perf_counter()
    for path in paths:
        read(path)
    return perf_counter() - start


def _try_compress(path: Path, folder: Path, uid: UID, times: CodecTimes) -> Path | None:
    target = folder / f"{path.stem}.dcm"
    try:
        (_compress_by_gdcm if uid == JPEGLosslessSV1 else _compress)(path, target, uid)
    except Exception as error:  # noqa: BLE001 - an encoder that is missing or refuses is reported, not fatal
        times.skipped["encoder"] = f"{type(error).__name__}: {error}"
        return None
    return target


def _compress(path: Path, target: Path, uid: UID) -> None:
    ds = pydicom.dcmread(path)
    ds.compress(uid, generate_instance_uid=False)
    ds.save_as(target)


def _compress_by_gdcm(path: Path, target: Path, _uid: UID) -> None:
    """JPEG lossless: pydicom has no encoder, gdcm rewrites the whole file."""
    import gdcm  # noqa: PLC0415 - optional, as `codecs` is

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("gdcm does not read the file")
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise ValueError("gdcm does not compress the pixels")
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise ValueError("gdcm does not write the file")

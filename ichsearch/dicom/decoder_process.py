"""The child process of `decoder.py`: parses and decodes one file after the other until its input ends.

In: requests on standard input, a file's bytes in shared memory. Out: replies as JSON on a pipe, a frame in that memory.
"""

import io
import json
import mmap
import os
import resource
import signal
import sys
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ichsearch.dicom.decoder import MAP_BYTES, MAX_FILE_BYTES, REPLY, REQUEST, TIME_LIMIT_S, Frame
from ichsearch.dicom.elements import (
    DEFLATED_LITTLE,
    MAX_VALUE_BYTES,
    SYNTAXES,
    TAGS,
    Elements,
    NotPlainError,
    file_meta,
    walk,
)
from ichsearch.dicom.memory import keep_freed_memory
from ichsearch.dicom.pixels import Encoding, read_encoding
from ichsearch.dicom.reasons import RejectedError

MAX_INFLATED_BYTES: Final = 256 * 2**20
MEMORY_BYTES: Final = 3 * 2**29
"""What one file may take beyond what the process needs anyway: 1.5 GiB."""
Source = Dataset | bytes

FASTEST: Final = {
    RLELossless: ("pylibjpeg",),
    JPEGLSLossless: ("pyjpegls", "gdcm"),
    JPEGLSNearLossless: ("pyjpegls", "gdcm"),
    JPEG2000: ("pylibjpeg",),
    JPEG2000Lossless: ("pylibjpeg",),
    JPEGLossless: ("gdcm",),
    JPEGLosslessSV1: ("gdcm",),
}
"""Decoders by measured speed where pydicom's own order tries a slower one first."""


def main(memory: int, replies: int) -> None:
    """Serve requests until standard input ends."""
    # Identifiers of real cohorts are no valid UIDs (RSNA: ID_12cadc6af): they are opaque text.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    keep_freed_memory()
    shared = mmap.mmap(memory, MAP_BYTES)
    _limit_memory()
    os.write(replies, REPLY.pack(0))  # ready
    while request := sys.stdin.buffer.read(REQUEST.size):
        pixels, length = REQUEST.unpack(request)
        signal.alarm(int(TIME_LIMIT_S) + 5)  # ends a hanging decoder whose parent died
        answer = json.dumps(_answer(shared, shared[:length], pixels)).encode()
        signal.alarm(0)
        os.write(replies, REPLY.pack(len(answer)) + answer)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * mmap.PAGESIZE + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(shared: mmap.mmap, content: bytes, pixels: bool) -> dict[str, Any]:
    try:
        elements, source = _read(content, pixels=pixels)
        reply = {
            "syntax": elements.syntax,
            "values": {tag: value.hex() for tag, value in elements.values.items()},
            "little_endian": elements.little_endian,
        }
        if pixels:
            frame = decoded_frame(source, elements)
            np.frombuffer(shared, frame.dtype, frame.size, MAX_FILE_BYTES)[:] = frame.ravel()
            reply |= {"dtype": frame.dtype.str, "shape": frame.shape}
    except RejectedError as error:
        return {"rejected": error.reason}
    except MemoryError:
        return {"rejected": "over_limit:memory"}
    return reply


def _read(content: bytes, *, pixels: bool) -> tuple[Elements, Source]:
    """Elements, and what the frame is decoded from: PixelData where the walk finds it, else the whole data set."""
    try:
        elements = walk(content)
    except NotPlainError:
        ds = _parse(content, pixels=pixels)
        return _elements(ds), ds
    start, end = elements.pixels or (0, 0)
    return elements, content[start:end]


def _parse(content: bytes, *, pixels: bool) -> Dataset:
    _refuse_bomb(content)
    tags: list[Any] = [*TAGS, "PlanarConfiguration", *(["PixelData"] if pixels else [])]
    try:
        return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=not pixels, specific_tags=tags)
    except InvalidDicomError:
        raise RejectedError("not_dicom") from None
    except (MemoryError, RejectedError):
        raise
    except Exception:  # noqa: BLE001 - pydicom's parser raises whatever a damaged file makes it stumble over
        raise RejectedError("damaged") from None


def _refuse_bomb(content: bytes) -> None:
    """Inflate a deflated data set in small pieces before pydicom does it in one (PS3.5 A.5)."""
    try:
        syntax, start = file_meta(content)
    except NotPlainError:
        return  # pydicom takes a file without readable meta for an uncompressed one
    if syntax != DEFLATED_LITTLE:
        return
    waiting = content[start:]
    unpacker, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while waiting and not unpacker.eof:
        try:
            inflated += len(unpacker.decompress(waiting, 2**20))
        except zlib.error:
            raise RejectedError("damaged") from None
        waiting = unpacker.unconsumed_tail
        if inflated > MAX_INFLATED_BYTES:
            raise RejectedError("over_limit", "file")


def _elements(ds: Dataset) -> Elements:
    implicit, little_endian = ds.original_encoding
    if "TransferSyntaxUID" not in ds.file_meta:
        guessed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        ds.file_meta.TransferSyntaxUID = guessed if little_endian else ExplicitVRBigEndian
    values = {tag: value for keyword, tag in TAGS.items() if (value := _raw_value(ds, keyword))}
    return Elements(str(ds.file_meta.TransferSyntaxUID), values, None, little_endian is not False)


def _raw_value(ds: Dataset, keyword: str) -> bytes:
    """The bytes of an element as they stand in the file, b'' without it; no conversion can stumble over them."""
    try:
        element = ds.get_item(BaseTag(TAGS[keyword]))
    except NotImplementedError:  # its VR is none
        raise RejectedError("damaged") from None
    if not isinstance(element, RawDataElement):
        return b""
    value = element.value or b""
    if len(value) > MAX_VALUE_BYTES:
        raise RejectedError("bad_value", keyword)
    return value


def decoded_frame(source: Source, elements: Elements) -> Frame:
    """The frame in this machine's byte order, (rows, columns), the stored values as they stand.

    Args:
        source: a data set with its pixels, or the value of a compressed PixelData element.
        elements: of the same file.

    Raises:
        RejectedError: no pixels, fewer than the frame needs, or no decoder that can read them.
    """
    encoding = read_encoding(elements)
    if isinstance(source, Dataset) and "PixelData" not in source:
        raise RejectedError("missing_tag", "PixelData")
    syntax = UID(elements.syntax)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise RejectedError("unsupported_syntax") from None
    if not decoder.is_available:
        raise RejectedError("unsupported_syntax", SYNTAXES.get(syntax, ""))
    if isinstance(source, Dataset) and not syntax.is_encapsulated and len(source.PixelData) < encoding.frame_bytes:
        raise RejectedError("truncated_pixels")
    frame = _first_success(decoder, source, encoding, syntax)
    if frame.shape != (encoding.rows, encoding.columns):
        raise RejectedError("bad_value", "PixelData")
    if frame.dtype.itemsize > 2:
        raise RejectedError("bad_value", "BitsAllocated")
    return frame.astype("<i2" if encoding.signed else "<u2", copy=False)


def _first_success(decoder: Decoder, source: Source, encoding: Encoding, syntax: UID) -> "np.ndarray[Any, Any]":
    options = {} if isinstance(source, Dataset) else _options(encoding)
    available = decoder.available_plugins
    preferred = [name for name in FASTEST.get(syntax, ()) if name in available]
    others = [name for name in available if name not in preferred] if syntax.is_encapsulated else [""]
    for plugin in [*preferred, *others]:
        try:
            return decoder.as_array(source, raw=True, decoding_plugin=plugin, **options)[0]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # noqa: BLE001, S112 - pylibjpeg's PanicException is no Exception; try the next decoder
            continue
    raise RejectedError("decoder_crash")


def _options(encoding: Encoding) -> dict[str, Any]:
    """What a decoder must know of a frame that comes without its data set."""
    return {
        "rows": encoding.rows,
        "columns": encoding.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME1" if encoding.inverted else "MONOCHROME2",
        "bits_allocated": encoding.bits_allocated,
        "bits_stored": encoding.bits_stored,
        "pixel_representation": int(encoding.signed),
        "pixel_keyword": "PixelData",
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

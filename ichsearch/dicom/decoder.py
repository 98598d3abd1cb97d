"""Files that need a full parser or a decoder, read by pydicom in a process of their own.

In: a file's bytes. Out: `Elements` and pixels, or `RejectedError`. Decoders are C code fed with untrusted bytes: one
that crashes, panics, hangs or wants too much memory ends its own process, costs one file, and a new one is started.
Bytes and pixels pass through memory that both processes map.
"""

import json
import mmap
import os
import select
import struct
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ichsearch.dicom.elements import Elements
from ichsearch.dicom.reasons import RejectedError
from ichsearch.errors import IchsearchError

MAX_FILE_BYTES: Final = 64 * 2**20
MAX_SIDE: Final = 4096
MAP_BYTES: Final = MAX_FILE_BYTES + MAX_SIDE * MAX_SIDE * 2
"""A file's bytes from 0, a frame's from `MAX_FILE_BYTES`; only pages that are touched exist."""
TIME_LIMIT_S: Final = 60.0
START_LIMIT_S: Final = 120.0
REQUEST: Final = struct.Struct("<?Q")
REPLY: Final = struct.Struct("<Q")

Frame = npt.NDArray[np.int16] | npt.NDArray[np.uint16]


class DecoderStartError(IchsearchError):
    """The decoding process cannot run on this machine: no file's fault."""


class Decoder:
    """One child process that parses and decodes, started when first needed."""

    def __init__(self) -> None:
        self._memory = -1
        self._map = mmap.mmap(-1, 1)
        self._child: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._lock = Lock()

    def read(self, content: bytes, *, pixels: bool) -> tuple[Elements, Frame | None]:
        """Elements of a file, and with `pixels` its frame as stored, (rows, columns) int16 or uint16.

        The frame lies in the shared memory: it stands until the next file is read.

        Raises:
            RejectedError: whatever is wrong with the file, a crash (`decoder_crash`) or `over_limit:time`.
        """
        with self._lock:
            if self._child is None:
                self._start()
            try:
                self._map[: len(content)] = content
                self._send(REQUEST.pack(pixels, len(content)))
                reply = self._reply()
            except BaseException:
                self.close()
                raise
            if "rejected" in reply:
                raise RejectedError.from_text(reply["rejected"])
            return _elements(reply), self._frame(reply) if pixels else None

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdin is not None
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            os.close(self._replies)
            self._child = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._child.pid if self._child else None

    def _start(self) -> None:
        if self._memory < 0:
            self._memory = os.memfd_create("ichsearch")
            os.ftruncate(self._memory, MAP_BYTES)
            self._map = mmap.mmap(self._memory, MAP_BYTES)
        self._replies, answers = os.pipe()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._child = subprocess.Popen(  # noqa: S603 - this Python, this package
            [sys.executable, "-P", "-m", "ichsearch.dicom.decoder_process", str(self._memory), str(answers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # what decoders print may hold header text
            stderr=subprocess.DEVNULL,
            pass_fds=(self._memory, answers),
            env=os.environ | threads,
        )
        os.close(answers)
        try:
            self._receive(REPLY.size, START_LIMIT_S)
        except RejectedError:
            self.close()
            raise DecoderStartError(
                "the process that decodes DICOM must start, but did not; check that pydicom can be imported here"
            ) from None

    def _send(self, message: bytes) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # that the child is dead shows when its reply is read
            self._child.stdin.write(message)
            self._child.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        (length,) = REPLY.unpack(self._receive(REPLY.size, TIME_LIMIT_S))
        value: dict[str, Any] = json.loads(self._receive(length, TIME_LIMIT_S))
        return value

    def _receive(self, length: int, limit_s: float) -> bytearray:
        received = bytearray()
        deadline_s = monotonic() + limit_s
        while len(received) < length:
            if not select.select([self._replies], [], [], max(0.0, deadline_s - monotonic()))[0]:
                raise RejectedError("over_limit", "time")
            piece = os.read(self._replies, length - len(received))
            if not piece:
                raise RejectedError("decoder_crash")
            received += piece
        return received

    def _frame(self, reply: dict[str, Any]) -> Frame:
        dtype, shape = np.dtype(reply["dtype"]), tuple(reply["shape"])
        frame: Frame = np.frombuffer(self._map, dtype, shape[0] * shape[1], MAX_FILE_BYTES).reshape(shape)
        frame.flags.writeable = False
        return frame


def _elements(reply: dict[str, Any]) -> Elements:
    values = {int(tag): bytes.fromhex(value) for tag, value in reply["values"].items()}
    return Elements(reply["syntax"], values, None, reply["little_endian"])


DECODER: Final = Decoder()
"""The decoder of this process; it starts no child until it is asked."""

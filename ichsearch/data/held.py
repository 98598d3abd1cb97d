"""Where the pixels of a part wait for their turn: in a GPU's memory if they fit, else on the host.

In: the pixels of a `SliceSet`, and the rows of them that make each place of the part. Out: int16 HU on the device.
"""

import warnings
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ichsearch.data.stream import SliceStream

RESIDENT_SHARE: Final = 0.5
"""Share of the memory that a process can get on a GPU which it may hold once the slices of a part are there too."""
UPLOADED_SLICES: Final = 1024

Images = npt.NDArray[np.int16] | SliceStream
Rows = npt.NDArray[np.int64]


class HeldPixels(Protocol):
    """The pixels of a part of P places, each made of K slices."""

    def gather(self, chosen: Rows) -> Tensor:
        """(B, K, S, S) int16 HU of (B,) places, on the device; it may be overwritten by the next ones."""

    def each(self, chosen: Rows) -> Iterator[Tensor] | None:
        """(1, K, S, S) int16 HU of each of (B,) places as it lies in memory; None if it does not."""

    def arranged(self, order: Rows, rng: np.random.Generator) -> Rows:
        """An epoch's (N,) places in an order in which they are read fast."""


def hold(hu: Images, sources: Rows, device: torch.device) -> HeldPixels:
    """Hold the slices of (P, K) rows; a K holds the row before, the row itself and the row after, or the row alone."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) + torch.cuda.mem_get_info(device)[0]
        needed = len(np.unique(sources)) * hu.shape[1] * hu.shape[2] * 2
        if torch.cuda.memory_allocated(device) + needed <= RESIDENT_SHARE * own:  # other parts are held already
            return ResidentPixels(hu, sources, device)
    return HostPixels(hu, sources, device)


class ReusedBuffer:
    """One tensor handed out again and again: fresh memory costs more than what is written to it."""

    def __init__(self, dtype: torch.dtype, device: torch.device, *, pinned: bool = False) -> None:
        self._tensor = torch.empty(0, dtype=dtype, device=device)
        self._pinned = pinned

    def of_shape(self, length: int, *rest: int) -> Tensor:
        """A tensor of this shape that holds anything; `rest` is the same in every call."""
        if len(self._tensor) < length:
            kind, device = self._tensor.dtype, self._tensor.device
            with torch.inference_mode(mode=False):  # else it could not be trained on after an evaluation
                self._tensor = torch.empty((length, *rest), dtype=kind, device=device, pin_memory=self._pinned)
        return self._tensor[:length]


class ResidentPixels:
    """All slices on the device."""

    def __init__(self, hu: Images, sources: Rows, device: torch.device) -> None:
        rows, places = np.unique(sources, return_inverse=True)
        self._places = torch.from_numpy(places.reshape(sources.shape)).to(device)
        self._hu = torch.empty((len(rows), *hu.shape[1:]), dtype=torch.int16, device=device)
        host = np.empty((min(len(rows), UPLOADED_SLICES), 1, *hu.shape[1:]), np.int16)
        for start in range(0, len(rows), UPLOADED_SLICES):
            part = rows[start : start + UPLOADED_SLICES]
            _take(hu, part[:, None], host[: len(part)])
            self._hu[start : start + len(part)] = torch.from_numpy(host[: len(part), 0]).to(device)

    def gather(self, chosen: Rows) -> Tensor:
        """See `HeldPixels`."""
        places = self._places[torch.from_numpy(chosen).to(self._places.device)]
        return self._hu.index_select(0, places.flatten()).view(*places.shape, *self._hu.shape[1:])

    def each(self, chosen: Rows) -> None:
        """See `HeldPixels`."""

    def arranged(self, order: Rows, rng: np.random.Generator) -> Rows:  # noqa: ARG002 - any order is fast
        """See `HeldPixels`."""
        return order


class HostPixels:
    """Slices in a memory map or a stream, gathered into one buffer, or for a GPU by turns into two pinned ones.

    While a copy to the GPU runs from one, the next slices are gathered into the other; an event says when a copy has
    ended, so that none is overwritten before.
    """

    def __init__(self, hu: Images, sources: Rows, device: torch.device) -> None:
        self._hu, self._sources, self._device = hu, sources, device
        self._on_gpu = device.type == "cuda"
        self._mapped = None if self._on_gpu or isinstance(hu, SliceStream) else _as_tensor(hu)
        host = torch.device("cpu")
        self._buffers = [ReusedBuffer(torch.int16, host, pinned=self._on_gpu) for _ in range(1 + self._on_gpu)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if self._on_gpu else []  # type: ignore[no-untyped-call]
        self._turn = 0

    def gather(self, chosen: Rows) -> Tensor:
        """See `HeldPixels`."""
        rows = self._sources[chosen]
        if not self._on_gpu:
            return self._gathered(rows, self._buffers[0])
        self._turn = 1 - self._turn
        copied = self._copied[self._turn]
        copied.synchronize()
        on_device = self._gathered(rows, self._buffers[self._turn]).to(self._device, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        return on_device

    def each(self, chosen: Rows) -> Iterator[Tensor] | None:
        """See `HeldPixels`."""
        if self._mapped is None:
            return None
        return (_of_rows(self._mapped, rows)[None] for rows in self._sources[chosen].tolist())

    def arranged(self, order: Rows, rng: np.random.Generator) -> Rows:
        """See `HeldPixels`."""
        if isinstance(self._hu, SliceStream):
            return self._hu.arranged(self._sources[:, self._sources.shape[1] // 2], order, rng)
        return order

    def _gathered(self, rows: Rows, buffer: ReusedBuffer) -> Tensor:
        hu = buffer.of_shape(*rows.shape, *self._hu.shape[1:])
        _take(self._hu, rows, hu.numpy())
        return hu


def _as_tensor(hu: npt.NDArray[np.int16]) -> Tensor:
    """The array's own memory, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(hu)


def _of_rows(slices: Tensor, rows: list[int]) -> Tensor:
    """(K, S, S) slices, without a copy where their rows follow each other."""
    return slices[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] == len(rows) - 1 else slices[rows]


def _take(hu: Images, rows: Rows, out: npt.NDArray[np.int16]) -> None:
    """Copy the slices of (B, K) rows to (B, K, S, S) `out`."""
    if isinstance(hu, SliceStream):
        hu.take(rows, out)
    else:
        np.take(hu, rows.ravel(), axis=0, out=out.reshape(-1, *hu.shape[1:]), mode="clip")  # "raise" copies once more

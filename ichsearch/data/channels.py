"""HU become what a backbone sees: windows, neighbouring slices or a histogram scaling, as normalised channels.

In: (B, K, S, S) int16 or float32 HU of slices, K = 3 with their neighbours. Out: (B, C, S, S) float32 inputs.
"""

from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.dicom.windows import BONE, BRAIN, SOFT, SUBDURAL, Window

Channels = Literal["hu", "windows", "neighbours", "hist"]
CHANNELS: Final[dict[Channels, int]] = {"hu": 1, "windows": 3, "neighbours": 3, "hist": 1}
"""How many channels each has. `hu` is the soft-tissue window, `hist` fastai's `hist_scaled`."""
assert set(CHANNELS) == set(get_args(Channels))

WINDOWS: Final[dict[Channels, tuple[Window, ...]]] = {
    "hu": (SOFT,),
    "windows": (BRAIN, SUBDURAL, BONE),
    "neighbours": (SUBDURAL,),
}

MEAN: Final = 0.449
STD: Final = 0.226
"""ImageNet's grey mean and deviation: what pretrained backbones expect of inputs in [0, 1]."""

BLOCK_PIXELS: Final = 2**17
"""What a CPU converts at once: two slices at 256 px, whose floats stay in its second-level cache."""

HIST_BINS: Final = 100


def depth(channels: Channels) -> int:
    """Slices that one input is made of."""
    return 3 if channels == "neighbours" else 1


def hist_breaks(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """(≤ 102,) rising HU between which equally many pixels of `hu` lie.

    Quantiles .001, (i + .5) / 100 and .999, made unique: fastai's `freqhist_bins`, here from counts instead of a sort.
    """
    counts = np.bincount(hu.ravel().clip(MIN_HU, MAX_HU) - MIN_HU)
    shares = np.array([0.001, *(np.arange(HIST_BINS) / HIST_BINS + 0.5 / HIST_BINS), 0.999], np.float32)
    places = (np.float32(hu.size) * shares).astype(np.int64)
    return np.unique(np.searchsorted(counts.cumsum(), places, side="right") + MIN_HU).astype(np.int16)


class InputMaker:
    """Makes inputs of one kind on one device, into tensors of the caller.

    The normalisation is folded into the window's own scale and offset: a copy to float, a clip and one multiply-add.
    """

    def __init__(self, channels: Channels, breaks: npt.NDArray[np.int16], device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._windows = [_Affine(window, device) for window in WINDOWS.get(channels, ())]
        self._table = hist_table(breaks).to(device)

    def fill(self, hu: Tensor, out: Tensor) -> None:
        """Make the inputs of (B, K, S, S) HU in `out`, (B, C, S, S) float32, both on the maker's device."""
        step = max(1, BLOCK_PIXELS // hu[0, 0].numel()) if self._on_cpu else len(hu)
        for start in range(0, len(hu), step):
            self.fill_block(hu[start : start + step], out[start : start + step])

    def fill_block(self, hu: Tensor, out: Tensor) -> None:
        """The same in one piece: for as few images as stay in a CPU's cache."""
        if not self._windows:
            self._fill_hist(hu, out)
        elif len(self._windows) == 1:
            self._windows[0].fill(hu, out)
        else:
            for channel, window in enumerate(self._windows):
                window.fill(hu, out[:, channel : channel + 1])

    def _fill_hist(self, hu: Tensor, out: Tensor) -> None:
        """Break points are whole HU, so that the curve is straight between any two neighbours in its table."""
        last = len(self._table) - 1
        if not hu.is_floating_point():
            index = (hu.int() - MIN_HU).clamp_(0, last)
            out.copy_(self._table.index_select(0, index.flatten()).view_as(out))
            return
        place = (hu - MIN_HU).clamp_(0, last)
        below = place.int().clamp_(max=last - 1)
        low, high = (self._table.index_select(0, (below + more).flatten()).view_as(out) for more in (0, 1))
        torch.lerp(low, high, place - below, out=out)


class _Affine:
    """A window and the normalisation after it as one clip and one multiply-add."""

    def __init__(self, window: Window, device: torch.device) -> None:
        self._low, self._high = window.low_hu, window.high_hu
        self._scale, offset = scale_and_offset(window)
        self._offset = torch.tensor(offset, device=device)

    def fill(self, hu: Tensor, out: Tensor) -> None:
        out.copy_(hu).clamp_(self._low, self._high)
        torch.add(self._offset, out, alpha=self._scale, out=out)


def scale_and_offset(window: Window) -> tuple[float, float]:
    """What a clipped HU is multiplied by, and what is added then: the window's grey, normalised."""
    return 1 / (window.width_hu * STD), (-window.low_hu / window.width_hu - MEAN) / STD


def hist_table(breaks: npt.NDArray[np.int16]) -> Tensor:
    """(4096,) float32: the normalised value of each HU from the lowest to the highest, as fastai's `hist_scaled`."""
    scaled = np.interp(np.arange(MIN_HU, MAX_HU + 1), breaks, np.linspace(0, 1, len(breaks)))
    return torch.from_numpy(((scaled - MEAN) / STD).astype(np.float32))

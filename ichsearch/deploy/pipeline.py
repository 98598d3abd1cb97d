"""From HU as shards store them to probabilities, as one module: what a run's models are used by, and exported as.

In: (B, K, S, S) int16 HU of slices at the stored size, K = 3 with their neighbours below and above. Out: (B, L)
float32 probabilities. It has only operations that ONNX has, too; that it sees what the trials saw is tested.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ichsearch.data.channels import WINDOWS, depth, hist_table, scale_and_offset
from ichsearch.data.preprocessing import Preprocessing
from ichsearch.dicom.pixels import MIN_HU
from ichsearch.train.config import InputConfig
from ichsearch.train.steps import Arithmetic, autocast


class Pipeline(nn.Module):
    """The weighted mean of its members' probabilities, each averaged with that of the mirrored image if `flip`."""

    def __init__(self, members: Sequence["Member"], weights: Sequence[float], *, flip: bool) -> None:
        super().__init__()
        self.depth = max(member.depth for member in members)
        self._members = nn.ModuleList(members)
        self._weights, self._flip = list(weights), flip

    @property
    def heaviest(self) -> "Member":
        """The first of the members with the largest weight."""
        member = self._members[self._weights.index(max(self._weights))]
        assert isinstance(member, Member)
        return member

    def forward(self, hu: Tensor) -> Tensor:
        """See the module."""
        images = hu.float()
        parts = [
            weight * self._one(member, images) for member, weight in zip(self._members, self._weights, strict=True)
        ]
        return torch.stack(parts).sum(dim=0).clamp(0, 1)  # weights that are rounded may add up to more than 1

    def _one(self, member: nn.Module, images: Tensor) -> Tensor:
        assert isinstance(member, Member)
        inputs = member.inputs(images)
        probabilities = member(inputs).sigmoid()
        mean: Tensor = (probabilities + member(inputs.flip(-1)).sigmoid()) / 2 if self._flip else probabilities
        return mean


class Member(nn.Module):
    """A trained model with what makes its inputs; `kind` is the arithmetic that it was validated in."""

    def __init__(
        self, model: nn.Module, config: InputConfig, preprocessing: Preprocessing, kind: Arithmetic = "fp32"
    ) -> None:
        super().__init__()
        self.depth, self.kind = depth(config.channels), kind
        self._smaller = _Smaller(preprocessing.size, config.size) if config.size < preprocessing.size else nn.Identity()
        breaks = np.array(preprocessing.hist_breaks.get(config.size, []), np.int16)
        self._channels = _Histogram(breaks) if config.channels == "hist" else _Windowed(config)
        self._model = model

    def inputs(self, images: Tensor) -> Tensor:
        """(B, K, S, S) float32 HU at the stored size as the model's inputs, (B, C, s, s)."""
        own = images[:, 1:2] if images.shape[1] > self.depth else images
        inputs: Tensor = self._channels(self._smaller(own))
        return inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, L) float32 logits."""
        if self.kind == "fp32":
            logits: Tensor = self._model(inputs)
            return logits
        with autocast(inputs.device, self.kind):
            return self._model(inputs).float()  # type: ignore[no-any-return]


class _Smaller(nn.Module):
    """Averages over areas, rounded to whole HU, as `area_averaged` makes them: sums of whole numbers are exact."""

    def __init__(self, stored: int, size: int) -> None:
        super().__init__()
        pixel, place = np.arange(stored), np.arange(size)[:, None]
        first, end = place * stored // size, -(-(place + 1) * stored // size)
        taken = ((pixel >= first) & (pixel < end)).astype(np.float32)  # (size, stored)
        self.register_buffer("taken", torch.from_numpy(taken), persistent=False)
        self.register_buffer("count", torch.from_numpy(taken.sum(axis=1)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        taken, count = self.get_buffer("taken"), self.get_buffer("count")
        sums = taken @ images @ taken.T
        means: Tensor = (sums / count[:, None] / count).round()
        return means


class _Windowed(nn.Module):
    """HU windows as normalised channels: several of one slice, or one of several slices."""

    def __init__(self, config: InputConfig) -> None:
        super().__init__()
        windows = WINDOWS[config.channels]
        columns = [(window.low_hu, window.high_hu, *scale_and_offset(window)) for window in windows]
        limits = torch.tensor(columns, dtype=torch.float32).T.reshape(4, -1, 1, 1)
        self.register_buffer("limits", limits, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        low, high, scale, offset = self.get_buffer("limits").unbind()
        grey: Tensor = images.maximum(low).minimum(high) * scale + offset
        return grey


class _Histogram(nn.Module):
    """The channel `hist`: a table of whole HU."""

    def __init__(self, breaks: np.typing.NDArray[np.int16]) -> None:
        super().__init__()
        self.register_buffer("table", hist_table(breaks), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        table = self.get_buffer("table")
        grey: Tensor = table[(images - MIN_HU).clamp(0, len(table) - 1).long()]
        return grey

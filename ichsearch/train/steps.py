"""One training step and one prediction, whatever the precision and however little memory there is.

In: a model, its optimizer and batches. Out: losses, gradients applied, probabilities.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ichsearch.train.config import Precision, TrialFailedError
from ichsearch.train.loss import TrainLoss
from ichsearch.train.memory import MicroBatch
from ichsearch.train.metrics import FloatArray
from ichsearch.train.parallel import ALONE, Ranks

Arithmetic = Literal["fp32", "bf16", "fp16"]
RUNNING_STATISTICS: Final = ("running_mean", "running_var")
DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """What `auto` means on a device: bfloat16 on a GPU that has it, else float16 there; float32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, kind: Arithmetic) -> AbstractContextManager[None]:
    """Mixed-precision arithmetic on a device; none for fp32."""
    return torch.autocast(device.type, DTYPES[kind], enabled=kind != "fp32")


class Stepper:
    """Training steps of one model.

    A batch larger than the micro-batch goes through the model in pieces whose gradients add up to the batch's; what
    normalises over a batch (BatchNorm) then sees the pieces, those of a failed attempt too. Several ranks each take a
    share of a batch; their gradients, losses and running statistics are averaged. Float16 gradients are scaled, so that
    small ones survive.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: TrainLoss,
        *,
        micro: MicroBatch,
        kind: Arithmetic = "fp32",
        clip_norm: float = 0.0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.micro, self.kind, self._ranks = micro, kind, ranks
        self._model, self._optimizer, self._loss, self._clip_norm = model, optimizer, loss, clip_norm
        self.scaler = torch.GradScaler(next(model.parameters()).device.type, enabled=kind == "fp16")
        self._running = [
            value for name, value in model.named_buffers() if name.rpartition(".")[2] in RUNNING_STATISTICS
        ]

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step on (B, C, S, S) inputs and (B, L) labels; the loss before it, a scalar still on the device."""
        try:
            loss = self.micro.run(lambda size: self._gradients(inputs, labels, size))
        except ValueError as error:
            pieces = len(_pieces(inputs, self.micro.size))
            if pieces == 1 or len(inputs) // pieces > 1:
                raise
            raise TrialFailedError("out_of_memory", "its BatchNorm needs two slices at a time") from error
        if self._ranks.size > 1:
            self._ranks.average([loss, *self._gradients_there(), *self._running], len(inputs))
        if self._clip_norm:
            self.scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        return loss

    def _gradients_there(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]

    def _gradients(self, inputs: Tensor, labels: Tensor, size: int) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=inputs.device)
        for piece, truth in zip(_pieces(inputs, size), _pieces(labels, size), strict=True):
            with autocast(inputs.device, self.kind):
                logits = self._model(piece)
            loss = self._loss(logits, truth) * (len(piece) / len(inputs))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def rehearse(self, inputs: Tensor, labels: int) -> None:
        """Forward and backward on a batch in one piece, the weights untouched: does it fit, beside Adam's moments?"""
        moments = [torch.empty_like(parameter) for parameter in self._model.parameters() for _ in range(2)]
        self._gradients(inputs, torch.zeros(len(inputs), labels, device=inputs.device), len(inputs))
        self._optimizer.zero_grad(set_to_none=True)
        del moments

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"micro_batch": self.micro.size, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.micro.size = state["micro_batch"]
        if state["scaler"] and self.scaler.is_enabled():  # another node may have other arithmetic
            self.scaler.load_state_dict(state["scaler"])


def _pieces(batch: Tensor, size: int) -> tuple[Tensor, ...]:
    """Pieces of at most `size`, as even as can be: BatchNorm cannot train on one left over."""
    return torch.tensor_split(batch, -(len(batch) // -size))


def predict(
    model: nn.Module, batches: Iterable[Tensor], *, micro: MicroBatch | None = None, kind: Arithmetic = "fp32"
) -> FloatArray:
    """Probabilities (N, L), float32, of all slices of `batches`, the model in evaluation mode."""
    model.eval()
    probabilities = [_probabilities(model, inputs, micro or MicroBatch(len(inputs)), kind) for inputs in batches]
    return np.concatenate(probabilities)


@torch.inference_mode()
def _probabilities(model: nn.Module, inputs: Tensor, micro: MicroBatch, kind: Arithmetic) -> FloatArray:
    def forward(size: int) -> Tensor:
        with autocast(inputs.device, kind):
            return torch.cat([model(piece).float() for piece in _pieces(inputs, size)])

    probabilities: FloatArray = micro.run(forward).sigmoid().cpu().numpy()
    return probabilities

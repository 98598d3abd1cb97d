"""A trial's state on disk, from which it goes on to the same numbers; a torn or flipped one is never loaded.

In: the model, the optimizer and the trial's records. Out: `checkpoint/epoch-NNN[-step-NNNNNN]/` folders with the
SHA-256 of their files. Weights, optimizer and random states are safetensors, records JSON: nothing is unpickled.
"""

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ichsearch.errors import DataError
from ichsearch.files import read_json, sha256_of, sync, write_json

RECORDS: Final = "records.json"
DIGESTS: Final = "sha256.json"
TENSORS: Final = ("model", "optimizer", "best", "predictions", "random")
FILES: Final = (*(f"{name}.safetensors" for name in TENSORS), RECORDS)
KEPT: Final = 2
"""Newest and the one before, should the newest prove damaged."""


@dataclass
class TrainState:
    """What a trial carries from step to step; `records` is JSON-able, and says where the trial is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    best_weights: dict[str, Tensor]
    records: dict[str, Any]
    best_probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))


def save_checkpoint(folder: Path, epoch: int, state: TrainState, step: int = 0) -> None:
    """Write the state after `epoch` epochs and `step` steps of the next, then remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / (f"epoch-{epoch:03d}-step-{step:06d}" if step else f"epoch-{epoch:03d}")
    aside = folder / f".{final.name}.aside"
    for leftover in (aside, final):  # of a run killed in between, or proved damaged
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir()
    tensors = {
        "model": state.model.state_dict(),
        "optimizer": _flat(state.optimizer),
        "best": state.best_weights,
        "predictions": {"best": state.best_probabilities},
        "random": _random_states(),
    }
    try:
        for name in TENSORS:
            save_weights(aside / f"{name}.safetensors", tensors[name])
        write_json(aside / RECORDS, state.records)
        write_json(aside / DIGESTS, {name: sha256_of(aside / name) for name in FILES})
    except OSError:  # a full disk must not stay full of this
        shutil.rmtree(aside, ignore_errors=True)
        raise
    aside.rename(final)
    sync(folder)
    for old in sorted(folder.glob("epoch-*"))[:-KEPT]:
        shutil.rmtree(old)


def whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` of which every file is as it was written; None if there is none."""
    for path in sorted(folder.glob("epoch-*"), reverse=True):
        try:
            if read_json(path / DIGESTS) == {name: sha256_of(path / name) for name in FILES}:
                return path
        except (FileNotFoundError, DataError):
            continue
    return None


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Load a checkpoint that `whole_checkpoint` has found into `state`, and torch's random states."""
    tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSORS}
    state.model.load_state_dict(tensors["model"])
    _restore(state.optimizer, tensors["optimizer"])
    state.best_weights = tensors["best"]
    state.best_probabilities = tensors["predictions"]["best"]
    state.records = read_json(path / RECORDS)
    _set_random_states(tensors["random"])


def save_weights(path: Path, values: dict[str, Tensor]) -> None:
    """Write tensors as safetensors and flush them to the disk; a full disk is an `OSError` as everywhere."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, path)
    except SafetensorError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"os error {number}" in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise
    sync(path)


def _random_states() -> dict[str, Tensor]:
    """Torch's generators: dropout and the like draw from nothing else."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def _restore(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # in the parameter's memory format, as fused AdamW demands
                values[name] = torch.empty_like(parameter).copy_(value)

"""Where a trial starts from: nothing, its own checkpoint, or what its parent has left.

In: a configuration, the data, the trial's folder and its parent's. Out: a `Start`; `config.json` and `lineage.json`,
by which a trial that is called again knows its own traces from those of another.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.errors import DataError
from ichsearch.files import read_json, sha256_of, write_json
from ichsearch.train.checkpoint import whole_checkpoint
from ichsearch.train.config import TrialConfig

CONFIG: Final = "config.json"
LINEAGE: Final = "lineage.json"
METRICS: Final = "metrics.json"
PREDICTIONS: Final = "predictions.parquet"
WEIGHTS: Final = "weights.safetensors"
CHECKPOINT: Final = "checkpoint"
"""What the trial itself goes on from while it trains."""
STATE: Final = "state"
"""What a child goes on from when the trial has ended within its cycle."""
EVENTS: Final = "events"


class Lineage(BaseModel):
    """What a trial's result depends on beside its configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(description="fingerprint of the shards")
    split: str = Field(description="SHA-256 of the folds of all patients")
    weights: str | None = Field(description="SHA-256 of the start weights; None: random ones")
    parent: str | None = Field(description="name of the parent's folder; None: the trial is no child")
    restarted: bool = Field(False, description="a child whose parent had left nothing that it could go on from")


@dataclass(frozen=True)
class Start:
    """Where a trial begins or goes on.

    Attributes:
        config: what is trained; of a restarted child, without epochs before it.
        checkpoint: a whole one of the trial's own, or its parent's last state.
        weights: the parent's best ones, for a new cycle.
        restarted: see `Lineage`.
    """

    config: TrialConfig
    checkpoint: Path | None = None
    weights: Path | None = None
    restarted: bool = False


class _Traces(NamedTuple):
    config: TrialConfig
    lineage: Lineage


def lineage_of(
    config: TrialConfig, slices: SliceSet, split: Split, weights: Path | None, parent: Path | None
) -> Lineage:
    """The lineage of a trial that has not begun."""
    return Lineage(
        data=slices.fingerprint,
        split=hashlib.sha256(json.dumps(split.as_json(), sort_keys=True).encode()).hexdigest(),
        weights=sha256_of(weights) if weights else None,
        parent=parent.name if parent and config.epochs_before else None,
    )


def claim(folder: Path, config: TrialConfig, lineage: Lineage) -> Lineage:
    """Make the folder this trial's own; what a trial of other configuration or lineage left in it is removed.

    Returns:
        The lineage, with what the trial has decided if it was begun before.
    """
    for leftover in folder.glob(".*.aside"):  # of a killed worker
        leftover.unlink()
    known = _traces(folder)
    if known and known == (config, lineage.model_copy(update={"restarted": known.lineage.restarted})):
        return known.lineage
    for name in (CHECKPOINT, STATE, EVENTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (LINEAGE, METRICS, PREDICTIONS, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CONFIG, config.model_dump())
    write_json(folder / LINEAGE, lineage.model_dump())
    return lineage


def find_start(folder: Path, config: TrialConfig, lineage: Lineage, parent: Path | None) -> Start:
    """Where the trial goes on from; a child that can go on from nothing restarts, and stays restarted."""
    own = whole_checkpoint(folder / CHECKPOINT)
    anew = Start(config.model_copy(update={"epochs_before": 0}), own, restarted=True)
    if lineage.restarted:
        return anew
    if own or not config.epochs_before:
        return Start(config, own)
    if parent and (inherited := _inherited(parent, config, lineage)):
        return inherited
    write_json(folder / LINEAGE, lineage.model_copy(update={"restarted": True}).model_dump())
    return anew


def _inherited(parent: Path, config: TrialConfig, lineage: Lineage) -> Start | None:
    """What the parent left, if it is whole and the parent is one: the same trial, trained for the epochs before."""
    known = _traces(parent)
    if known is None or known.config.epochs != config.epochs_before:
        return None
    epochs = {"epochs": config.epochs, "epochs_before": config.epochs_before}
    origin = {"parent": lineage.parent, "restarted": lineage.restarted}
    if (known.config.model_copy(update=epochs), known.lineage.model_copy(update=origin)) != (config, lineage):
        return None
    if config.cycle_epochs:
        state = whole_checkpoint(parent / STATE)
        return Start(config, checkpoint=state) if state else None
    return Start(config, weights=parent / WEIGHTS) if _as_written(parent, WEIGHTS) else None


def _traces(folder: Path) -> _Traces | None:
    try:
        return _Traces(
            TrialConfig.model_validate(read_json(folder / CONFIG)), Lineage.model_validate(read_json(folder / LINEAGE))
        )
    except (FileNotFoundError, DataError, ValidationError):
        return None


def recorded_sha256(folder: Path, name: str) -> str | None:
    """The SHA-256 that a finished trial's metrics.json tells of one of its files; None where it tells none."""
    try:
        known = read_json(folder / METRICS)["sha256"][name]
    except (FileNotFoundError, DataError, LookupError, TypeError):
        return None
    return str(known)


def _as_written(folder: Path, name: str) -> bool:
    """Whether a file of a finished trial is the one that it wrote."""
    try:
        return recorded_sha256(folder, name) == sha256_of(folder / name)
    except FileNotFoundError:
        return False

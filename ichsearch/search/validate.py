"""What a space would do, told before it does it: its size, its rungs, and what a trial would cost on this machine.

In: a `Space`, and shards if there are any. Out: lines of text.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import make_split
from ichsearch.errors import ConfigError
from ichsearch.search.combinations import Size, size_of
from ichsearch.search.durations import duration_text
from ichsearch.search.resources import trial_request
from ichsearch.search.space import Space
from ichsearch.shards.manifest import read_manifest
from ichsearch.shards.metadata import METADATA
from ichsearch.train.config import InputConfig
from ichsearch.train.probe import Cost, cost_of
from ichsearch.train.setup import parts_of

PER_SLICES: Final = 1000
"""Training slices that times are told for when there are no data."""
SHOWN_NAMES: Final = 12


class SliceCounts(NamedTuple):
    """Slices that a trial trains on and is judged on."""

    train: int
    validation: int


def summary(space: Space) -> list[str]:
    """How many configurations there are, and how they would be searched."""
    size = size_of(space.parameters, space.constraints, space.task)
    lines = [*_wildcards(space), _configurations(size), _strategy(space)]
    budget = {"time": space.time_s, "trial_limit": space.trial_limit_s}
    limits = [f"{name} {duration_text(seconds)}" for name, seconds in budget.items() if seconds is not None]
    if space.device_hours is not None:
        limits.append(f"{space.device_hours:g} device hours")
    return [*lines, f"budget: {', '.join([f'{space.trials} trials', *limits])}"]


def _wildcards(space: Space) -> Iterator[str]:
    for pattern, names in space.resolved_wildcards.items():
        yield f"{pattern}: {len(names)} backbones: {_listed(names)}"
    reasons: dict[str, list[str]] = {}
    for name, why in space.left_out.items():
        kind = "more than max_parameters" if why.startswith("max_parameters") else why
        reasons.setdefault(kind, []).append(name)
    for why, names in reasons.items():
        yield f"left out, {why}: {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _configurations(size: Size) -> str:
    number = f"{'' if size.complete else 'at least '}{size.combinations:,}"
    if not size.continuous:
        return f"configurations: {number}"
    return f"configurations: continuous ({', '.join(size.continuous)}), times {number} of the other parameters"


def _strategy(space: Space) -> str:
    rungs = " → ".join(map(str, space.rungs()))
    if space.strategy != "promote":
        what = "every combination once" if space.strategy == "grid" else f"sampler {space.sampler}"
        return f"strategy {space.strategy}: {what}, {rungs} epochs each"
    more = f"schedule {space.schedule}" + (f", children {space.promotion.child}" if len(space.rungs()) > 1 else "")
    return f"strategy promote: sampler {space.sampler}, rungs of {rungs} epochs, {more}"


def count_slices(space: Space, shards: Path) -> SliceCounts:
    """How many slices of `shards` a trial would train on and be judged on.

    Raises:
        DataError: the shards cannot be read or split.
        ConfigError: they do not have what the space asks for.
    """
    manifest = read_manifest(shards)
    if (size := max(space.sizes())) > manifest.settings.size:
        raise ConfigError(
            f"size must be at most the shards' {manifest.settings.size} px, but is {size}; choose a smaller one"
        )
    table = pq.read_table(shards / METADATA).to_pandas()
    no_pixels = np.empty((len(table), 0, 0), np.int16)
    registered = manifest.settings.crop == "series"
    slices = SliceSet(no_pixels, table, manifest.fingerprint, registered, hist_breaks=np.empty(0, np.int16))
    if "neighbours" in space.channels():
        slices.require_registered()
    split = make_split(table, manifest.fingerprint, space.split_seed, space.split)
    parts = parts_of(slices, split, min(space.values_of("min_brain")), space.task)
    return SliceCounts(len(parts.train), len(parts.validation))


def costs(space: Space, counts: SliceCounts | None) -> Iterator[str]:
    """For every backbone and batch size, what a trial at full length takes here, as each has been measured.

    Args:
        space: of several sizes, channels and heads the dearest counts.
        counts: the slices of the data; None tells the time for each 1,000 slices to train on.
    """
    threads = _threads(space)
    given = counts or SliceCounts(PER_SLICES, PER_SLICES // 3)  # of five folds three train, one validates
    per = "" if counts else f" for {PER_SLICES:,} training slices"
    heads: dict[str, None] = {}
    for config in _dearest(space):
        cost = cost_of(config, threads)
        if isinstance(cost, Cost) and cost.device not in heads:
            heads[cost.device] = None
            yield f"a trial of {space.epochs} epochs{per} on this machine ({cost.device}), from a few steps on noise:"
        yield f"  {config.backbone} · batch {config.batch_size} · {config.size} px: {_told(cost, config, given, space)}"


def _told(cost: Cost | str, config: InputConfig, counts: SliceCounts, space: Space) -> str:
    if isinstance(cost, str):
        return cost
    seconds = cost.trial_s(counts.train, counts.validation, config.batch_size, space.epochs)
    about = "about " if cost.measured_batch < config.batch_size else ""
    text = f"{about}{duration_text(seconds)}, {cost.memory_bytes / 1e9:.2f} GB"
    return text + (f", in micro-batches of {cost.micro_batch}" if cost.micro_batch < config.batch_size else "")


def _threads(space: Space) -> int:
    """CPU threads that a trial would have on this machine."""
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return int(trial_request(space.resources, [here])["CPU"])


def _dearest(space: Space) -> list[InputConfig]:
    """Of each backbone and batch size the input with most pixels, and the larger head."""
    found: dict[tuple[str, int], InputConfig] = {}
    for config in space.inputs():
        key = (config.backbone, config.batch_size)
        if key not in found or _pixels(config) > _pixels(found[key]):
            found[key] = config
    return list(found.values())


def _pixels(config: InputConfig) -> tuple[int, bool]:
    return config.size, config.head == "concat_pool"

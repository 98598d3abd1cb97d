"""The lines that a run prints: one an event, each readable on its own.

In: events of a run. Out: text.
"""

import math
from pathlib import Path

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import TEST_FOLD, VALIDATION_FOLD, Split
from ichsearch.labels import ANY
from ichsearch.search.book import FAILED, Started
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.train.config import TrialConfig
from ichsearch.train.lr_finder import LrCurve
from ichsearch.train.metrics import better
from ichsearch.train.trial import TrialResult, read_result


def opening(space: Space, folder: Path, dashboard: str) -> str:
    """Which run this is, and where to watch it."""
    where = f" · Ray dashboard {dashboard} (token in ~/.ray/auth_token)" if dashboard else ""
    return f"run {space.name} in {folder}: {_count(space.trials, 'trial')} of {_count(space.epochs, 'epoch')}{where}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def going_on(done: int, space: Space) -> str:
    """What an earlier start of this run left."""
    return f"going on: {done} of {_count(space.trials, 'trial')} done"


def data_summary(slices: SliceSet, split: Split) -> str:
    """How many slices and patients each part has, and which labels are too rare."""
    folds, positive = split.fold_of(slices.table), slices.labels[:, -1] == 1
    patients = slices.table["patient"]
    parts = []
    for name, part in (
        ("training", folds > VALIDATION_FOLD),
        ("validation", folds == VALIDATION_FOLD),
        ("test", folds == TEST_FOLD),
    ):
        parts.append(f"{name} {part.sum()} ({patients[part].nunique()} patients, {(part & positive).sum()} {ANY})")
    text = f"slices by patient: {', '.join(parts)}"
    if unknown := int((~slices.table["patient_known"]).sum()):
        text += f"\n{unknown} slices have no PatientID: their study counts as the patient"
    if slices.streams:
        text += "\nthe slices do not fit into the node's cache (ICHSEARCH_CACHE_BYTES): each epoch reads them anew"
    if split.unreliable:
        rare = ", ".join(f"{label} ({count})" for label, count in split.unreliable.items())
        text += f"\nunreliable, positive in fewer than 5 patient groups: {rare}"
    return text


def weights_summary(origins: dict[str, str]) -> str:
    """Which backbones start from which weights, grouped."""
    by_origin: dict[str, list[str]] = {}
    for name, origin in origins.items():
        by_origin.setdefault(origin, []).append(name)
    lines = []
    for origin, names in by_origin.items():
        if origin.startswith("scratch ("):
            lines.append(
                f"no pretrained weights {origin.removeprefix('scratch ')}: {', '.join(names)} train from scratch"
            )
        else:
            lines.append(
                f"{', '.join(names)}: " + ("train from scratch" if origin == "scratch" else f"{origin} weights")
            )
    return "\n".join(lines)


def lr_opening(count: int) -> str:
    """What the first stage is about to do."""
    return f"LR finder: {count} combination{'s' * (count != 1)} of backbone, batch size and input"


def lr_line(curve: LrCurve) -> str:
    """What the LR finder suggests."""
    config = curve.config
    where = f"{config.backbone} · batch {config.batch_size} · {config.size} px · {config.channels}"
    why = f"it failed with {curve.failure}" if curve.failure else "the curve suggests nothing plausible"
    return f"LR finder  {where}: {curve.lr:.2g}{f' (fallback: {why})' if curve.guarded else ''}"


def started_line(started: Started) -> str:
    """Which configuration a trial tries."""
    return f"trial {started.record.trial} started   {_parameters(started)}"


def _parameters(started: Started) -> str:
    config, drawn = started.config, started.record.parameters
    shown = [config.backbone, f"batch {config.batch_size}"]
    for name, value in drawn.items():
        known = name in ("backbone", "batch_size", "lr", "lr_factor", "size")
        if not known and value != TrialConfig.model_fields[name].default:
            shown.append(f"{name} {_short(value)}")
    return " · ".join([*shown, f"lr {config.lr:.2g}"])


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def ended_line(started: Started, result: TrialResult | None, reason: str, folder: RunFolder, space: Space) -> str:
    """How a trial ended, and the best so far."""
    name = started.record.trial
    if result is None:
        head = f"trial {name} failed    {reason}"
    else:
        head = (
            f"trial {name} finished  {space.metric} {result.score:.3f} (epoch {result.best_epoch} of {space.epochs}) "
            f"in {result.seconds:.0f} s, {result.images_per_s:.0f} images/s"
        )
    records = folder.records()
    ended = sum(record.status in ("finished", FAILED) for record in records)
    best_name, best_score = best_trial(folder, space)
    best = f" · best {best_score:.3f} (trial {best_name})" if best_name else ""
    return f"{head}{best} · {ended} of {space.trials}"


def best_trial(folder: RunFolder, space: Space) -> tuple[str, float]:
    """Name and score of the best finished trial; ('', nan) when there is none."""
    name, score = "", None
    for record in folder.records():
        result = read_result(folder.trial(record.trial))
        if result and better(space.metric, result.score, score):
            name, score = record.trial, result.score
    return name, math.nan if score is None else score

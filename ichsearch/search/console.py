"""The lines that a run prints: one an event, each readable on its own.

In: facts of a run. Out: text.
"""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import FOLDS, TEST_FOLD, VALIDATION_FOLD, Split
from ichsearch.labels import ANY
from ichsearch.search.book import Standing, Started
from ichsearch.search.durations import UNITS_S, duration_text
from ichsearch.search.openings import Opening
from ichsearch.search.paper import Paper, PaperRun
from ichsearch.search.resources import Request
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.search.sections import Confirm
from ichsearch.search.space import Space
from ichsearch.shards.address import Address
from ichsearch.train.config import TrialConfig
from ichsearch.train.lr_finder import LrCurve
from ichsearch.train.trial import TrialResult


def connecting(address: Address) -> str:
    """What the first seconds are needed for: which cluster, and why that one."""
    what = "starting Ray on this machine" if address.is_private else f"connecting to Ray at {address.where}"
    return f"{what} ({address.why})"


def opening(space: Space, folder: RunFolder, dashboard: str) -> str:
    """Which run this is, and where to watch it."""
    where = f" · Ray dashboard {dashboard} (its token: ray get-auth-token)" if dashboard else ""
    budget = f" in {duration_text(space.time_s)}" if space.time_s else ""
    length = f"up to {_count(space.epochs, 'epoch')}"
    return f"run {space.name} in {folder}: {_count(space.trials, 'trial')} of {length}{budget}{where}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def going_on(standing: Standing) -> str:
    """What an earlier start of this run left."""
    done = standing.finished + standing.failed
    return f"going on: {done} of {_count(standing.trials, 'trial')} done"


class Part(NamedTuple):
    """One part of the data."""

    name: str
    slices: int
    patients: int
    positive: int


def data_parts(slices: SliceSet, split: Split) -> list[Part]:
    """How many slices and patients the run trains on, is judged by, and leaves alone."""
    folds, positive = split.fold_of(slices.table), slices.labels[:, -1] == 1
    patients = slices.table["patient"]
    masks = {
        "training": folds > VALIDATION_FOLD,
        "validation": folds == VALIDATION_FOLD,
        "test": folds == TEST_FOLD,
    }
    return [
        Part(name, int(part.sum()), patients[part].nunique(), int((part & positive).sum()))
        for name, part in masks.items()
    ]


def data_summary(parts: list[Part], slices: SliceSet, split: Split) -> str:
    """How many slices and patients each part has, and which labels are too rare."""
    shown = [f"{part.name} {part.slices} ({part.patients} patients, {part.positive} {ANY})" for part in parts]
    how = "slices by slice, LEAKY (the same patients on both sides)" if split.leaks else "slices by patient"
    text = f"{how}: {', '.join(shown)}"
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
    """Which configuration a trial tries, and whether it was promoted."""
    record, epochs = started.record, _count(started.config.epochs, "epoch")
    if record.parent is None:
        return f"trial {record.trial} started   {epochs} · {_parameters(started)}"
    return f"trial {record.trial} promoted  {epochs}, from trial {record.parent} · {_parameters(started)}"


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


def waiting_line(request: Request) -> str:
    """What a run waits for."""
    what = f"a trial of {request['CPU']:g} CPUs and {request['GPU']:g} GPUs"
    return f"waiting for a node: the cluster has none with room for {what}; Ctrl+C stops, the same command goes on"


def again_line(started: Started, reason: str, node: str | None) -> str:
    """Why a trial is run again."""
    where = f" on {node}" if node else ""
    return f"trial {started.record.trial} again     {reason}{where}; it goes on from its checkpoint"


def avoided_line(node: str) -> str:
    """Which node is avoided, and why."""
    return f"avoiding {node}: different configurations crash there and none finishes; no further trial is sent to it"


def ended_line(started: Started, result: TrialResult | None, reason: str, standing: Standing, metric: str) -> str:
    """How a trial ended, the best so far, and how long the run goes on."""
    name = started.record.trial
    if result is None:
        head = f"trial {name} failed    {reason}"
    else:
        head = (
            f"trial {name} finished  {metric} {result.score:.3f} (epoch {result.best_epoch} of "
            f"{started.config.epochs}) in {duration_text(result.seconds)}, {result.images_per_s:.0f} images/s"
        )
    return " · ".join([head, *standing_parts(standing)])


def standing_parts(standing: Standing) -> list[str]:
    """Best so far, how many of how many, how long it will take, what is left of the budgets."""
    ended = standing.finished + standing.failed
    parts = [f"best {standing.best[1]:.3f} (trial {standing.best[0]})"] if standing.best else []
    parts.append(f"{ended} of {standing.trials}")
    left_s = inf if standing.time_s is None else max(0.0, standing.time_s - standing.spent_s)
    if standing.eta_s is not None and standing.eta_s < left_s and not standing.done:
        parts.append(f"about {duration_text(standing.eta_s)} to go")
    if standing.time_s is not None:
        parts.append(f"{duration_text(left_s)} of time left")
    if standing.device_limit_s is not None:
        left_h = max(0.0, standing.device_limit_s - standing.device_s) / UNITS_S["h"]
        parts.append(f"{left_h:.3g} device hours left")
    return parts


def confirming(trials: Sequence[str], plan: Confirm, due: int, eta_s: float) -> str:
    """Which trials are confirmed, and what that takes."""
    what = f"{_count(len(trials), 'trial')} ({', '.join(trials)}) from {_count(plan.seeds, 'fresh seed')} each"
    folds = f", each of {FOLDS} folds held out in turn" if plan.folds else ""
    todo = f"{_count(due, 'replay')}, about {duration_text(eta_s)}" if due else "all replays are done"
    return f"confirming {what}{folds}: {todo}"


def replayed_line(replay: ReplayRecord, result: TrialResult | None, searched: float, metric: str, standing: str) -> str:
    """How a replay ended, beside what the search saw."""
    if result is None:
        return f"replay {replay.name} failed    {replay.reason} · {standing}"
    seen = "" if replay.fold else f" ({searched:.3f} in the search)"
    return (
        f"replay {replay.name} finished  {metric} {result.score:.3f}{seen} in {duration_text(result.seconds)} · "
        f"{standing}"
    )


def test_fold(openings: Sequence[Opening], *, is_opening: bool) -> str:
    """That the test fold is opened now, or was before; and what that means."""
    before = openings[:-1] if is_opening else openings
    now = f"opening the test fold for {_count(len(openings[-1].trials), 'trial')}, noted in test_fold.json"
    if not before:
        return now
    times = (
        f"it was opened {_count(len(before), 'time')} before"
        if is_opening
        else (f"the test fold was opened {_count(len(before), 'time')}")
    )
    warning = f"{times}, first on {before[0].when:%Y-%m-%d}: whoever chooses since then may have looked"
    return f"{now}\n{warning}" if is_opening else warning


def paper_opening(paper: Paper, folder: Path, why: Sequence[str]) -> str:
    """Which runs these are, and why they are no reproduction."""
    twins = _count(sum(run.leaky for run in paper.runs), "of them leaky twin")
    lines = [f"{paper.name} in {folder}: {_count(len(paper.runs), 'run')} one after the other, {twins}"]
    return "\n".join([*lines, *(["NO REPRODUCTION"] if why else []), *(f"  {reason}" for reason in why)])


def paper_run_line(run: PaperRun, number: int, runs: int) -> str:
    """Which run comes next, and what the scale makes of it."""
    changed = [
        f"{name.replace('_', ' ')} {there} → {here}"
        for name, there, here in zip(run.paper._fields, run.paper, run.here, strict=True)
        if there != here
    ]
    leak = " · LEAKY split by slice" if run.leaky else ""
    return f"run {number} of {runs}: {run.name}{leak}" + "".join(f" · {change}" for change in changed)


def closing(standing: Standing, leaderboard: str | Path, more: str) -> str:
    """Why the run has ended, where its results are, and the command that goes on with it."""
    failed = f", {standing.failed} of them without a score" if standing.failed else ""
    ended = _count(standing.finished + standing.failed, "trial")
    why = f"{standing.why_done}: " if standing.why_done else ""
    return f"{why}{ended}{failed}\nleaderboard: {leaderboard}\nto go on: {more}"

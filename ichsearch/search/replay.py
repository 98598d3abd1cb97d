"""A trial trained anew from a fresh seed, with the whole chain of parents that it went on from; runs on a node.

In: a `Replay`, paths. Out: trial folders below `confirm/`, and the scores of the held-out fold.
"""

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ichsearch.data.split import Split
from ichsearch.files import read_json
from ichsearch.search.node_folder import on_node
from ichsearch.search.processes import TrialJob, train
from ichsearch.search.run_folder import REPLAY, ReplayRecord, RunFolder, replay_name
from ichsearch.search.watchdog import explain_hang, has_hung
from ichsearch.search.worker import CHECKPOINT_EVERY_S, CRASHED, TIMED_OUT, Assignment, attempt, outcome_on_node
from ichsearch.train.config import TrialConfig
from ichsearch.train.held_out import score_held_out
from ichsearch.train.lineage import STATE, WEIGHTS
from ichsearch.train.trial import TrialResult, read_result


class Link(NamedTuple):
    """One trial of a chain: each but the first goes on from the one before it."""

    trial: str
    config: TrialConfig


class Replay(NamedTuple):
    """A trial's chain, to be trained from one seed with one fold held out."""

    chain: tuple[Link, ...]
    seed: int
    fold: int = 0

    @property
    def trial(self) -> str:
        """The trial that is replayed."""
        return self.chain[-1].trial

    @property
    def config(self) -> TrialConfig:
        """Its configuration."""
        return self.chain[-1].config

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.name_of(self.chain[-1])

    def name_of(self, link: Link) -> str:
        """The folder's name of a trial of its chain."""
        return replay_name(link.trial, self.seed, self.fold)


def chain_of(folder: RunFolder, trial: str) -> tuple[Link, ...]:
    """A finished trial and the parents whose epochs it was spared, the first one first."""
    record, result = folder.record(trial), read_result(folder.trial(trial))
    assert record is not None, "a chain has records"
    assert result is not None, "only what has finished is gone on with"
    config = TrialConfig.model_validate(record.config)
    if result.restarted or not config.epochs_before or record.parent is None:
        return (Link(trial, config.model_copy(update={"epochs_before": 0})),)
    return (*chain_of(folder, record.parent), Link(trial, config))


def run_replay(replay: Replay, assignment: Assignment, retries: int) -> tuple[Replay, ReplayRecord]:
    """Train what is missing of a replay; what became of it.

    A crash is tried again `retries` times, each time from the newest checkpoint.
    """
    reason, parent = "", None
    for link in replay.chain:
        reason = _trained(replay, link, parent, assignment, retries)
        if reason:
            break
        parent = replay.name_of(link)
    status: Literal["finished", "failed"] = "failed" if reason else "finished"
    return replay, ReplayRecord(trial=replay.trial, seed=replay.seed, fold=replay.fold, status=status, reason=reason)


def _trained(replay: Replay, link: Link, parent: str | None, assignment: Assignment, retries: int) -> str:
    """Train one trial of the chain; the reason why it has no score, "" if it has one."""
    run = assignment.folder
    needed = (run.replay(parent) if parent else None, assignment.weights[link.config.backbone])

    def attempted(folder: RunFolder) -> dict[str, Any]:
        before = folder.replay(parent) if parent else None
        reason = _attempted(replay, link, before, folder, assignment, retries)
        if before and not reason:
            _remove_weights(before)
            folder.push(before)
        return {"reason": reason}

    return str(outcome_on_node(run, run.replay(replay.name_of(link)), needed, attempted)["reason"])


def _attempted(
    replay: Replay, link: Link, parent: Path | None, folder: RunFolder, assignment: Assignment, retries: int
) -> str:
    place = folder.replay(replay.name_of(link))
    if has_hung(place):
        explain_hang(place)
        return TIMED_OUT
    for left in reversed(range(1 + retries)):
        try:
            return str(attempt(place, assignment, lambda: _run(replay, link, parent, folder, assignment))["reason"])
        except Exception:  # noqa: BLE001 - whatever a trial dies of; `error.txt` tells
            if not left:
                return CRASHED
    raise AssertionError("the last attempt returns")


def _run(replay: Replay, link: Link, parent: Path | None, folder: RunFolder, assignment: Assignment) -> TrialResult:
    config = link.config.model_copy(update={"seed": replay.seed})
    to_do = TrialJob(
        config,
        assignment.shards,
        _split(folder, replay.fold),
        folder.replay(replay.name_of(link)),
        weights=assignment.start_weights(config.backbone, folder),
        parent=parent,
        threads=assignment.threads,
        checkpoint_every_s=CHECKPOINT_EVERY_S,
        limit_s=assignment.limit_s,
    )
    return train(to_do, assignment.processes, lambda record: folder.check())


def _split(folder: RunFolder, fold: int) -> Split:
    return Split.model_validate(read_json(folder.split)).holding_out(fold)


def _remove_weights(place: Path) -> None:
    """Free the room of what has been gone on from, unless it is a replay in its own right."""
    if (place / REPLAY).is_file():
        return
    (place / WEIGHTS).unlink(missing_ok=True)
    shutil.rmtree(place / STATE, ignore_errors=True)


def score_replay(replay: Replay, assignment: Assignment) -> Replay:
    """Score a finished replay on the fold that it held out."""
    torch.set_num_threads(assignment.threads)
    slices, run = assignment.slices(replay.config.size), assignment.folder
    with on_node(run, run.replay(replay.name)) as folder:
        score_held_out(folder.replay(replay.name), slices, _split(folder, replay.fold))
    return replay

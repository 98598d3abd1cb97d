"""The best trials of a run confirmed: trained anew from fresh seeds, then scored on the test fold.

In: a run that has finished trials, its shards. Out: `confirm/`, a folder a replay, and what they say together;
`test_fold.json`, which tells when the test fold was opened.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ichsearch.data.cache import local_shards, open_slices
from ichsearch.data.split import FOLDS, Split
from ichsearch.errors import AlreadyRunningError, ConfigError, NoTrialFinishedError, StorageError
from ichsearch.files import read_json
from ichsearch.search import events
from ichsearch.search.confirmed import best_trials, write_confirmed
from ichsearch.search.default_data import shards_location
from ichsearch.search.driving import Held, driving
from ichsearch.search.openings import note_opening
from ichsearch.search.replay import Replay, chain_of, run_replay, score_replay
from ichsearch.search.resources import (
    Requests,
    as_ray_options,
    resources_of_nodes,
    slots,
    trial_request,
    trial_requests,
)
from ichsearch.search.room import NO_ROOM, full_disk
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.search.sections import Confirm
from ichsearch.search.space import Space
from ichsearch.search.space_file import load_space
from ichsearch.search.stages import Watchers, assignment_of, curves_of, seen_mb, start_weights, warm_nodes
from ichsearch.search.worker import AWAY, BUSY, CRASHED, Assignment
from ichsearch.shards.address import choose_address
from ichsearch.shards.ray_session import fan_out, ray_session
from ichsearch.train.held_out import read_held_out
from ichsearch.train.trial import read_result


@dataclass(frozen=True)
class _Work:
    """What replays are run with."""

    space: Space
    assignment: Assignment
    requests: Requests
    held: Held
    watchers: Watchers

    @property
    def folder(self) -> RunFolder:
        return self.assignment.folder


class Confirmed(NamedTuple):
    """A run whose best trials were confirmed."""

    shards: Path
    metric: str


def confirm_run(
    folder: RunFolder,
    data: str | Path | None,
    options: Mapping[str, Any],
    *,
    address: str | None,
    command: Sequence[str],
    watchers: Watchers,
) -> Confirmed:
    """Confirm the best trials of a run, or go on with that.

    Args:
        folder: the run's.
        data: the run's shards; None for a run on its own phantom cohort.
        options: `top`, `seeds`, `folds` instead of what the space says.
        address: of a Ray cluster.
        command: what was typed, for the record.
        watchers: who hears of it.

    Raises:
        ConfigError: the folder is no run's, or was made on other data.
        NoTrialFinishedError: no trial has finished, or no replay.
        AlreadyRunningError: a driver is at work on the folder.
        ClusterError: the cluster went away.
        StorageError: a disk is full, or a store stayed away.
    """
    if not (folder.space.is_file() and folder.split.is_file()):
        raise ConfigError(f"RUN must be the folder of a run, but {folder} is none; give --out of `ichsearch run`")
    space = load_space(folder.space)
    if space.split == "slice":
        raise ConfigError(
            f"a confirmation needs a fold of new patients, but the split of {folder.root} is leaky: by slice; confirm "
            "a run that is split by patient"
        )
    _require_finished(folder, space)
    if data is None and folder.phantom_shards is None:
        raise ConfigError(f"{folder} is a run on data of your own; name them again with --data")
    if data is not None:
        _refuse_other_data(folder, space, data)
    chosen = choose_address(address)
    with driving(folder) as held:
        watchers.tell(events.connecting(chosen))
        with ray_session(address):
            shards = shards_location(data, folder, space.phantom, address, watchers.progress)
            plan = (space.confirm or Confirm()).model_copy(update=options)
            confirm(space, folder, shards, plan, held=held, command=command, watchers=watchers)
    if not any(record.status == "finished" for record in folder.replays()):
        reasons = ", ".join(sorted({record.reason for record in folder.replays()}))
        raise NoTrialFinishedError(
            f"at least one replay must finish, but all failed ({reasons}); see confirm/*/error.txt"
        )
    return Confirmed(local_shards(shards), space.metric)


def _require_finished(folder: RunFolder, space: Space) -> None:
    if not best_trials(folder, space.metric, top=1):
        raise NoTrialFinishedError(f"a confirmation needs a finished trial, but {folder} has none; go on with the run")


def _refuse_other_data(folder: RunFolder, space: Space, data: str | Path) -> None:
    slices = open_slices(local_shards(data), space.sizes()[0], decode=False)
    if Split.model_validate(read_json(folder.split)).fingerprint != slices.fingerprint:
        raise ConfigError(f"--data must be the shards of the run, but {folder} was made on others; name those")


def confirm(
    space: Space,
    folder: RunFolder,
    shards: str | Path,
    plan: Confirm,
    *,
    held: Held,
    command: Sequence[str],
    watchers: Watchers,
) -> None:
    """Confirm the best trials of a run whose lease and Ray session are the caller's; what has ended is kept.

    The seeds of the replays are those that follow the space's. The test fold is opened when they are trained, and only
    if something is to be scored on it: never twice for one replay.
    """
    chains = [chain_of(folder, trial) for trial in best_trials(folder, space.metric, plan.top)]
    seeds = range(space.seed + 1, space.seed + 1 + plan.seeds)
    replays = [Replay(chain, seed) for chain in chains for seed in seeds]
    work = _prepared(space, folder, shards, replays, held, watchers)
    due = _due(work, [*replays, *_turned(replays, plan)])
    watchers.tell(events.confirming([chain[-1].trial for chain in chains], plan, len(due), _estimate_s(work, due)))
    _replay(work, replays)
    finished = _finished(work, replays)
    turned = _turned(finished, plan)
    if unseen := [*_unscored(work, [*finished, *turned]), *_due(work, turned)]:
        held.check()
        trials = list(dict.fromkeys(replay.trial for replay in unseen))
        watchers.tell(events.test_fold(note_opening(folder, command, trials), is_opening=True))
    _replay(work, turned)  # these train on patients of the test fold
    for _ in _on_nodes(work, score_replay, _unscored(work, [*finished, *turned])):
        held.check()
        folder.refresh(folder.confirm)
    write_confirmed(folder)


def _turned(replays: Sequence[Replay], plan: Confirm) -> list[Replay]:
    """The replays with each of the other folds held out, if these are wanted."""
    return [replay._replace(fold=fold) for fold in range(1, FOLDS) if plan.folds for replay in replays]


def _prepared(
    space: Space, folder: RunFolder, shards: str | Path, replays: Sequence[Replay], held: Held, watchers: Watchers
) -> _Work:
    """Start weights, decoded slices, and what replays ask for, as for the trials themselves."""
    configs = [replay.config for replay in replays]
    weights = start_weights(space, folder, {config.backbone for config in configs})
    folder.push(folder.root)  # workers need them
    whole = trial_request(space.resources, resources_of_nodes())
    memory_mb = warm_nodes(sorted({config.size for config in configs}), shards, whole)
    requests = trial_requests(space.resources, resources_of_nodes(), seen_mb(curves_of(folder, configs)), memory_mb)
    return _Work(space, assignment_of(space, folder, shards, whole, weights), requests, held, watchers)


def _due(work: _Work, replays: Sequence[Replay]) -> list[Replay]:
    """Those that have not ended; one that crashed may fare better now."""
    ended = {record.name for record in work.folder.replays() if record.reason != CRASHED}
    return [replay for replay in replays if replay.name not in ended]


def _finished(work: _Work, replays: Sequence[Replay]) -> list[Replay]:
    finished = {record.name for record in work.folder.replays() if record.status == "finished"}
    return [replay for replay in replays if replay.name in finished]


def _unscored(work: _Work, replays: Sequence[Replay]) -> list[Replay]:
    """Those that have finished, but are not scored on the fold that they held out."""
    return [replay for replay in _finished(work, replays) if read_held_out(work.folder.replay(replay.name)) is None]


def _estimate_s(work: _Work, replays: Sequence[Replay]) -> float:
    """Wall clock, by what the trials themselves took."""
    needed_s = 0.0
    for replay in replays:
        results = [read_result(work.folder.trial(link.trial)) for link in replay.chain]
        needed_s += sum(result.seconds for result in results if result)
    return needed_s / max(1, sum(slots(node, work.requests.whole) for node in resources_of_nodes()))


def _replay(work: _Work, replays: Sequence[Replay]) -> None:
    """Train those that are due, on the cluster; what became of each is kept at once."""
    due = _due(work, replays)
    for number, (replay, record) in enumerate(_on_nodes(work, run_replay, due, work.space.max_retries), start=1):
        work.held.check()
        work.folder.refresh(work.folder.confirm)
        _require_an_end(work, record)
        work.folder.write_replay(record)
        done = len(replays) - len(due) + number
        work.watchers.progress("replays", done, len(replays))
        work.watchers.tell(_replayed(work, replay, record, done, len(replays)))


def _replayed(work: _Work, replay: Replay, record: ReplayRecord, done: int, total: int) -> events.Event:
    searched, result = (
        read_result(place) for place in (work.folder.trial(replay.trial), work.folder.replay(replay.name))
    )
    assert searched is not None, "only finished trials are replayed"
    return events.replayed(record, result, searched.score, work.space.metric, done, total)


def _require_an_end(work: _Work, record: ReplayRecord) -> None:
    """Stop at what says nothing about the replay: the same command goes on with it."""
    if record.reason.startswith(NO_ROOM):
        raise full_disk(work.space, record.reason)
    if record.reason == AWAY:
        raise StorageError(f"the store of {work.folder} did not answer a worker; run the same command again")
    if record.reason == BUSY:
        raise AlreadyRunningError(
            f"a trial has one writer, but another process is at work on {record.name}; wait for it, or end it"
        )


def _on_nodes(work: _Work, function: Callable[..., Any], replays: Sequence[Replay], *common: Any) -> Iterator[Any]:
    """Results of `function(replay, assignment, *common)`; those that ask for as much of a node run side by side."""
    groups: defaultdict[tuple[tuple[str, float], ...], list[Replay]] = defaultdict(list)
    for replay in replays:
        groups[tuple(work.requests.of(replay.config.backbone).items())].append(replay)
    for items, group in groups.items():
        request = dict(items)
        assignment = work.assignment._replace(threads=int(request["CPU"]))
        yield from fan_out(function, group, assignment, *common, **as_ray_options(request))

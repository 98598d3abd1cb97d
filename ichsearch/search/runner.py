"""A run from its first stage to its last trial.

In: a space, data, a run folder, and what to call when something happens. Out: the run folder, filled.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ichsearch.data.cache import SliceSet, local_shards, open_slices
from ichsearch.data.preprocessing import preprocessing_of
from ichsearch.data.split import VALIDATION_FOLD, Split, make_split, open_split
from ichsearch.errors import ConfigError, NoTrialFinishedError
from ichsearch.files import read_json, write_json
from ichsearch.search import events
from ichsearch.search.book import Book, Standing
from ichsearch.search.confirm import confirm
from ichsearch.search.default_data import shards_location
from ichsearch.search.driving import Held, driving
from ichsearch.search.durations import duration_text
from ichsearch.search.execution import Execution, run_trials
from ichsearch.search.journal import Journal, open_storage
from ichsearch.search.openings import read_openings
from ichsearch.search.resolved import differences, save_space
from ichsearch.search.resources import (
    Requests,
    resources_of_nodes,
    trial_request,
    trial_requests,
)
from ichsearch.search.room import full_disk
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.search.space_file import load_space
from ichsearch.search.stages import (
    Curves,
    Watchers,
    assignment_of,
    lr_stage,
    seen_mb,
    start_weights,
    warm_nodes,
)
from ichsearch.search.worker import Assignment, trainable
from ichsearch.shards.address import choose_address
from ichsearch.shards.ray_session import ray_session
from ichsearch.train.config import TrialConfig

FIXED: Final = (
    "name", "task", "metric", "split", "split_seed", "seed", "pretrained", "weights_folder", "lr_finder", "phantom",
)  # fmt: skip
"""What stays as it was for the whole life of a run: what is there depends on it, or would not be comparable."""


class Outcome(NamedTuple):
    """A run that has ended."""

    folder: RunFolder
    shards: Path
    standing: Standing


def run_search(
    space: Space,
    data: str | Path | None,
    folder: RunFolder,
    *,
    address: str | None,
    extend: bool,
    command: Sequence[str],
    watchers: Watchers,
) -> Outcome:
    """Run, or go on with, the search of `space` in `folder`, until it has its trials or its budget is spent.

    Then confirm the best trials, if the space says so; `command` is what was typed, for the record of that.

    Raises:
        DataError: the data cannot be read or split.
        ConfigError: the folder holds another run, or one on other data.
        AlreadyRunningError: another driver holds the folder, or has taken it meanwhile.
        ClusterError: the cluster went away.
        StorageError: a disk is full, or a store stayed away.
        NoTrialFinishedError: every trial failed.
    """
    _refuse_foreign(folder, space, extend=extend)
    _refuse_unusable(data, space, folder)
    chosen, began_s = choose_address(address), time.monotonic()
    with driving(folder) as held:
        _refuse_spent(space, folder)
        watchers.tell(events.connecting(chosen))
        with ray_session(address) as dashboard:
            if not folder.space.is_file():  # before the first long stage; an extended one is kept when it proved usable
                save_space(space, folder.space)
            watchers.tell(events.opened(space, folder, dashboard))
            if openings := read_openings(folder):
                watchers.tell(events.test_fold(openings, is_opening=False))
            shards = shards_location(data, folder, space.phantom, address, watchers.progress)
            standing = _search(space, shards, folder, held, began_s, watchers)
            _require_a_result(folder, standing)
            if space.confirm:
                confirm(space, folder, shards, space.confirm, held=held, command=command, watchers=watchers)
        return Outcome(folder, local_shards(shards), standing)


def _search(
    space: Space, location: str | Path, folder: RunFolder, held: Held, began_s: float, watchers: Watchers
) -> Standing:
    whole = trial_request(space.resources, resources_of_nodes())
    shards = local_shards(location)
    slices = open_slices(shards, space.sizes()[0], decode=False)
    split = open_split(folder.split, slices.table, slices.fingerprint, space.split_seed, space.split)
    watchers.tell(events.data(slices, split))
    weights = start_weights(space, folder, space.backbones())
    origins = {name: start.origin for name, start in weights.items()}
    watchers.tell(events.weights(origins))
    assignment = assignment_of(space, folder, location, whole, weights)
    memory_mb = warm_nodes(space.sizes(), location, whole)
    held.check()
    save_space(space, folder.space)
    _keep_preprocessing(space, shards, folder)
    folder.push(folder.root)  # workers need the split and the weights
    curves = lr_stage(space, assignment, whole, watchers)
    requests = trial_requests(space.resources, resources_of_nodes(), seen_mb(curves), memory_mb)
    book = _open_book(space, folder, held, began_s, curves, origins, requests, _train_slices(slices, split))
    _run_trials(space, book, assignment, requests, watchers)
    return book.standing()


def _keep_preprocessing(space: Space, shards: Path, folder: RunFolder) -> None:
    """Note how slices were made; what trials of an earlier space saw stays known."""
    made = preprocessing_of(shards, space.sizes() if "hist" in space.channels() else ()).model_dump()
    known = read_json(folder.preprocessing)["hist_breaks"] if folder.preprocessing.is_file() else {}
    breaks = {int(size): values for size, values in known.items()} | made["hist_breaks"]
    write_json(folder.preprocessing, made | {"hist_breaks": breaks})


def _refuse_foreign(folder: RunFolder, space: Space, *, extend: bool) -> None:
    """Stop before anything is written when the folder is another run's, or nobody's we know."""
    if folder.root.exists() and not folder.root.is_dir():
        raise ConfigError(f"--out must be a folder, but {folder} is a file; give another --out")
    if not folder.space.is_file():
        if folder.holds_other_files():
            raise ConfigError(f"--out must be a new folder or a run, but {folder} holds other files")
        return
    found = differences(load_space(folder.space), space)
    fixed = any(difference.keys[0] in FIXED for difference in found)
    if fixed or (found and not extend and folder.journal.is_file()):
        found = [difference for difference in found if not fixed or difference.keys[0] in FIXED]
        hint = (
            "these cannot change, give another --out"
            if fixed
            else "add --extend to go on with the change, or give another --out"
        )
        raise ConfigError("\n  ".join([f"{folder} holds another run; {hint}:", *map(str, found)]))


def _refuse_spent(space: Space, folder: RunFolder) -> None:
    """Stop before any stage when the budget of time was changed to what the run has spent already."""
    if space.time_s is None or not folder.journal.is_file() or load_space(folder.space).time_s == space.time_s:
        return
    spent_s = Journal(open_storage(folder.journal), space.name, "minimize").driven_s()
    if spent_s >= space.time_s:
        raise ConfigError(
            f"time counts over all starts of a run, and {duration_text(spent_s)} of {duration_text(space.time_s)} are "
            "spent; give more with --time"
        )


def _refuse_unusable(data: str | Path | None, space: Space, folder: RunFolder) -> None:
    """Stop before anything is written when the data cannot be read or split, or are not the run's."""
    known = folder.split.is_file()
    if data is None:
        if known and folder.phantom_shards is None:
            raise ConfigError(f"{folder} is a run on data of your own; name them again with --data")
        return
    slices = open_slices(local_shards(data), max(space.sizes()), decode=False)
    if "neighbours" in space.channels():
        slices.require_registered()
    if known:
        open_split(folder.split, slices.table, slices.fingerprint, space.split_seed, space.split)
    else:
        make_split(slices.table, slices.fingerprint, space.split_seed, space.split)


def _train_slices(slices: SliceSet, split: Split) -> int:
    return int((split.fold_of(slices.table) > VALIDATION_FOLD).sum())


def _open_book(
    space: Space,
    folder: RunFolder,
    held: Held,
    began_s: float,
    curves: Curves,
    origins: dict[str, str],
    requests: Requests,
    train_slices: int,
) -> Book:
    held.check()  # the journal is repaired when it is opened, which only its owner may do

    def images_per_s(config: TrialConfig) -> float | None:
        curve = curves.get(space.input_config(config.model_dump()))
        return curve.images_per_s if curve else None

    return Book(
        space,
        folder,
        open_storage(folder.journal),
        suggest_lr=lambda config: curves[config].lr,
        weights_of=origins,
        images_per_s=images_per_s,
        train_slices=train_slices,
        devices_of=lambda config: requests.of(config.backbone)["GPU"] or 1.0,
        check_lease=held.check,
        began_s=began_s,
    )


def _run_trials(space: Space, book: Book, assignment: Assignment, requests: Requests, watchers: Watchers) -> None:
    folder, before = assignment.folder, book.standing()
    if before.finished + before.failed:
        watchers.tell(events.resumed(before))
    execution = Execution(
        name=space.name,
        metric=space.told_metric,
        folder=folder,
        requests=requests,
        max_retries=space.max_retries,
        trial=trainable(assignment),
        tell=watchers.tell,
        write_leaderboard=watchers.write_leaderboard,
    )
    if full := run_trials(book, execution):
        raise full_disk(space, full)


def _require_a_result(folder: RunFolder, standing: Standing) -> None:
    if standing.finished:
        return
    if not standing.failed:
        raise NoTrialFinishedError(
            f"at least one trial must finish, but none has ended: {standing.why_done}; go on with --extend and more"
        )
    reasons = ", ".join(sorted({record.reason for record in folder.records() if record.reason}))
    raise NoTrialFinishedError(
        f"at least one trial must finish, but all {standing.failed} failed ({reasons}); see trials/*/error.txt in "
        f"{folder}, mend the space, and run it with another --out"
    )

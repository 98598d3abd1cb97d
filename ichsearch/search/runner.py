"""A run from its first stage to its last trial.

In: a space, data, a run folder, and what to call when something happens. Out: the run folder, filled.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ichsearch.data.cache import open_slices
from ichsearch.data.split import make_split, open_split
from ichsearch.errors import ClusterError, ConfigError, NoTrialFinishedError, StorageError
from ichsearch.files import read_json
from ichsearch.model.weights import obtain_weights
from ichsearch.search import console
from ichsearch.search.book import Book, Started
from ichsearch.search.default_data import phantom_shards
from ichsearch.search.journal import open_journal
from ichsearch.search.resolved import differences, save_space
from ichsearch.search.resources import as_ray_options, has_free_slot, live_nodes, slots, trial_request
from ichsearch.search.run_folder import RunFolder, lease
from ichsearch.search.searcher import BookSearcher
from ichsearch.search.space import Space
from ichsearch.search.space_file import load_space
from ichsearch.search.worker import Assignment, find_curve, trainable, warm_cache
from ichsearch.shards.preprocess import Progress
from ichsearch.shards.ray_session import fan_out, ray_session
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_finder import LrCurve
from ichsearch.train.trial import TrialResult, read_result

RAY_TUNE_SETTINGS: Final = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would end the run with exit code 0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trial's folder holds its metrics
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the searcher hands out no more than can start
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's pickled state is never read
    "RAY_AIR_NEW_OUTPUT": "0",
}


FIXED: Final = ("name", "task", "metric", "split_seed", "seed", "pretrained", "weights_folder", "lr_finder", "phantom")
"""What stays as it was for the whole life of a run: what is there depends on it, or would not be comparable."""


@dataclass(frozen=True)
class Watchers:
    """What a run calls: lines for the console, progress of long stages, and writers of the room to the right."""

    say: Callable[[str], None]
    progress: Progress
    write_leaderboard: Callable[[RunFolder], None]
    draw_curve: Callable[[LrCurve, Path], None]


def run_search(
    space: Space, data: Path | None, out: Path, *, address: str | None, extend: bool, watchers: Watchers
) -> RunFolder:
    """Run, or go on with, the search of `space` in `out`, until it has its trials.

    Raises:
        DataError: the data cannot be read or split.
        ConfigError: the folder holds another run, or one on other data.
        AlreadyRunningError: another driver holds the folder.
        ClusterError: the cluster went away.
        NoTrialFinishedError: every trial failed.
    """
    folder = RunFolder(out.resolve())
    _refuse_foreign(folder, space, extend=extend)
    _refuse_unusable(data, space, folder)
    with lease(folder), ray_session(address) as dashboard:
        if not folder.space.is_file():  # before the first long stage; an extended one is kept when it has proved usable
            save_space(space, folder.space)
        watchers.say(console.opening(space, folder.root, dashboard))
        shards = data or phantom_shards(folder.phantom, space.phantom, address, watchers.progress)
        slices = open_slices(shards.resolve(), space.sizes()[0])
        split = open_split(folder.split, slices.table, slices.fingerprint, space.split_seed)
        watchers.say(console.data_summary(slices, split))
        request = trial_request(space.resources, live_nodes())
        origins, assignment = _prepare(space, folder, shards.resolve(), request, watchers)
        save_space(space, folder.space)
        curves = _lr_stage(space, assignment, request, watchers)
        _run_trials(space, assignment, curves, origins, request, watchers)
    _require_a_result(folder)
    return folder


def _refuse_foreign(folder: RunFolder, space: Space, *, extend: bool) -> None:
    """Stop before anything is written when the folder is another run's, or nobody's we know."""
    if folder.root.exists() and not folder.root.is_dir():
        raise ConfigError(f"--out must be a folder, but {folder.root} is a file; give another --out")
    if not folder.space.is_file():
        if folder.root.is_dir() and {path.name for path in folder.root.iterdir()} - {"run.lock"}:
            raise ConfigError(f"--out must be a new folder or a run, but {folder.root} holds other files")
        return
    found = differences(load_space(folder.space), space)
    fixed = [line for line in found if line.startswith(FIXED)]
    if fixed or (found and not extend and folder.journal.is_file()):
        hint = "give another --out" if fixed else "add --extend to go on with the change, or give another --out"
        raise ConfigError("\n  ".join([f"{folder.root} holds another run; {hint}:", *found]))


def _refuse_unusable(data: Path | None, space: Space, folder: RunFolder) -> None:
    """Stop before anything is written when the data cannot be read or split, or are not the run's."""
    known = folder.split.is_file()
    if data is None:
        if known and not folder.phantom.is_dir():
            raise ConfigError(f"{folder.root} is a run on data of your own; name them again with --data")
        return
    slices = open_slices(data.resolve(), max(space.sizes()))
    if "neighbours" in space.channels():
        slices.require_registered()
    if known:
        open_split(folder.split, slices.table, slices.fingerprint, space.split_seed)
    else:
        make_split(slices.table, slices.fingerprint, space.split_seed)


def _prepare(
    space: Space, folder: RunFolder, shards: Path, request: dict[str, float], watchers: Watchers
) -> tuple[dict[str, str], Assignment]:
    """Fetch the start weights, and decode the slices on every node that can run a trial."""
    source = Path(space.weights_folder) if space.weights_folder else None
    weights = {
        name: obtain_weights(name, space.pretrained, folder.weights, source, space.sizes())
        for name in space.backbones()
    }
    origins = {name: start.origin for name, start in weights.items()}
    watchers.say(console.weights_summary(origins))
    for node in ray.nodes():
        if node["Alive"] and slots(node["Resources"], request):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            list(fan_out(warm_cache, space.sizes(), shards, scheduling_strategy=here))
    paths = {name: start.path for name, start in weights.items()}
    return origins, Assignment(shards, folder, paths, int(request["CPU"]), space.lr_finder.steps)


def _lr_stage(
    space: Space, assignment: Assignment, request: dict[str, float], watchers: Watchers
) -> dict[InputConfig, LrCurve]:
    """The LR finder's curve of every configuration that needs one; those of an earlier start are kept."""
    configs = space.input_configs()
    curves = {config: curve for config in configs if (curve := _known_curve(config, assignment))}
    missing = [config for config in configs if config not in curves]
    if missing:
        watchers.say(console.lr_opening(len(missing)))
    for curve in fan_out(find_curve, missing, assignment, **as_ray_options(request)):
        curves[curve.config] = curve
        watchers.draw_curve(curve, assignment.folder.curve(curve.config).with_suffix(".png"))
        watchers.say(console.lr_line(curve))
    return curves


def _known_curve(config: InputConfig, assignment: Assignment) -> LrCurve | None:
    """The curve of an earlier start, unless it failed, or the model starts from other weights now."""
    path = assignment.folder.curve(config)
    curve = LrCurve.model_validate(read_json(path)) if path.is_file() else None
    if curve is None or curve.failure or curve.config != config:
        return None
    return curve if curve.pretrained == (assignment.weights[config.backbone] is not None) else None


def _run_trials(
    space: Space,
    assignment: Assignment,
    curves: dict[InputConfig, LrCurve],
    origins: dict[str, str],
    request: dict[str, float],
    watchers: Watchers,
) -> None:
    folder = assignment.folder
    book = Book(space, folder, open_journal(folder.journal), lambda config: curves[config].lr, origins)
    watchers.write_leaderboard(folder)
    if done := sum(record.status != "running" for record in folder.records()):
        watchers.say(console.going_on(done, space))

    def on_start(started: Started) -> None:
        watchers.say(console.started_line(started))

    def on_end(started: Started, result: TrialResult | None, reason: str) -> None:
        watchers.write_leaderboard(folder)
        watchers.say(console.ended_line(started, result, reason, folder, space))

    searcher = BookSearcher(book, folder, partial(has_free_slot, request), on_start, on_end)
    os.environ.update(RAY_TUNE_SETTINGS)
    # Ray prints the traceback of every failed trial; ours stands in the trial's error.txt, its reason on the console.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ichsearch-tune-") as scratch:
        try:
            _tuner(space, assignment, searcher, request, scratch).fit()
        except (RayError, TuneError, ConnectionError) as error:
            raise ClusterError(f"the cluster was lost ({type(error).__name__}); run the same command again") from error
    if searcher.disk_full:
        free = shutil.disk_usage(folder.root).free
        raise StorageError(
            f"the disk of {folder.root} is full ({free:,} bytes free); make room and run the command again"
        )


def _tuner(
    space: Space, assignment: Assignment, searcher: BookSearcher, request: dict[str, float], scratch: str
) -> tune.Tuner:
    bundle = {kind: amount for kind, amount in request.items() if amount}
    return tune.Tuner(
        tune.with_resources(trainable(assignment), tune.PlacementGroupFactory([bundle])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['trial']}",
            trial_dirname_creator=lambda trial: trial.config["trial"],
        ),
        run_config=tune.RunConfig(
            name=space.name,
            storage_path=scratch,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=space.max_retries),
        ),
    )


def _require_a_result(folder: RunFolder) -> None:
    records = folder.records()
    if not any(read_result(folder.trial(record.trial)) for record in records):
        reasons = ", ".join(sorted({record.reason for record in records}))
        raise NoTrialFinishedError(
            f"at least one trial must finish, but all {len(records)} failed ({reasons}); see trials/*/error.txt in "
            f"{folder.root}, mend the space, and run it with another --out"
        )

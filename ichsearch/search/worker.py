"""What runs on the cluster's nodes: cache warming, the LR finder, and one trial, each a plain function in a Ray worker.

In: paths and configurations. Out: files in the run folder.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from ray import tune

from ichsearch.data.cache import SliceSet, local_shards, open_slices
from ichsearch.data.split import Split
from ichsearch.errors import AlreadyRunningError, IchsearchError, StorageError
from ichsearch.files import read_json, write_json, write_text
from ichsearch.search.node_folder import on_node
from ichsearch.search.notice import notices
from ichsearch.search.processes import TrialJob, place_of, train
from ichsearch.search.room import DISK_FULL, no_room
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.watchdog import LEAST_GRACE_S, ended_when_hung, hangs_after_s, has_hung
from ichsearch.train.config import InputConfig, TrialConfig, TrialFailedError, TrialStoppedError
from ichsearch.train.lr_finder import FALLBACK_LR, LrCurve, find_lr
from ichsearch.train.trainer import MustStop
from ichsearch.train.trial import TrialResult

CHECKPOINT_EVERY_S: Final = 300.0
"""Within epochs too: those of a large cohort take hours."""
BUSY: Final = "folder busy"
"""The reason of a trial that says nothing about its configuration, and is run again: the worker of a dead driver, or
one that Ray has given up, is still at work on it."""
LEAVING: Final = "node leaves"
"""Likewise: the node is about to go. The trial has written a checkpoint, and goes on elsewhere."""
AWAY: Final = "store away"
"""Likewise: the object store that the run folder or the shards are in did not answer."""
SAYS_NOTHING: Final[dict[type[Exception], str]] = {
    TrialStoppedError: LEAVING,
    AlreadyRunningError: BUSY,
    StorageError: AWAY,
}
"""The reasons of trials that are run again."""
TIMED_OUT: Final = "timed_out"
CRASHED: Final = "crashed"


class Assignment(NamedTuple):
    """What every worker of a run needs to know; `threads` and `processes` are those of a trial."""

    shards: str | Path
    folder: RunFolder
    weights: dict[str, Path | None]
    threads: int
    lr_steps: int
    limit_s: float = math.inf
    least_grace_s: float = LEAST_GRACE_S
    processes: int = 1

    def slices(self, size: int) -> SliceSet:
        """The data at this size, from this node's cache."""
        return open_slices(local_shards(self.shards), size)

    def start_weights(self, backbone: str, folder: RunFolder) -> Path | None:
        """What a backbone starts from, in the run folder as this node sees it."""
        path = self.weights[backbone]
        return folder.weights / path.name if path else None


def warm_cache(size: int, shards: str | Path) -> int:
    """Decode the slices into this node's cache; returns their number."""
    return len(open_slices(local_shards(shards), size).hu)


def gpu_memory_mb(gpu: int) -> float | None:
    """Memory of this node's GPU of that number in 1e6 bytes; None if torch does not see it."""
    return torch.cuda.get_device_properties(gpu).total_memory / 1e6 if gpu < torch.cuda.device_count() else None


def find_curve(config: InputConfig, assignment: Assignment) -> LrCurve:
    """Run the LR finder for one configuration and keep its curve.

    A backbone that cannot be trained must not end the run: its trials will fail, and be told to the sampler.
    """
    torch.set_num_threads(max(1, assignment.threads // assignment.processes))
    slices, run = assignment.slices(config.size), assignment.folder
    with on_node(run, run.lr_finder, assignment.weights[config.backbone], is_sole=False) as folder:
        split = Split.model_validate(read_json(folder.split))
        weights = assignment.start_weights(config.backbone, folder)
        try:
            curve = find_lr(config, slices, split, weights=weights, steps=assignment.lr_steps)
        except (OSError, IchsearchError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a backbone raises, see above
            _keep_error(folder.curve(config).with_suffix(".error.txt"), error)
            failure = type(error).__name__
            curve = LrCurve(
                config=config, lrs=[], losses=[], suggestions={}, lr=FALLBACK_LR, guarded=True, failure=failure
            )
        write_json(folder.curve(config), curve.model_dump())
    return curve


def trainable(assignment: Assignment) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune calls for each trial of a run; a worker calls it for one trial after the other."""

    def trial(job: dict[str, Any]) -> None:
        # `done` spares Ray Tune asking once more and hearing that the function has returned.
        tune.report({**_outcome(job, assignment), "done": True})

    return trial


def _outcome(job: dict[str, Any], assignment: Assignment) -> dict[str, Any]:
    """Run a trial of the search; its score, or the reason why it has none.

    Raises:
        Exception: what Ray Tune takes for a crash, and has tried again.
    """
    assignment = assignment._replace(limit_s=min(assignment.limit_s, job["limit_s"]))
    run, weights = assignment.folder, assignment.weights[job["config"]["backbone"]]
    parent = run.trial(job["parent"]) if job["parent"] else None

    def attempted(folder: RunFolder) -> dict[str, Any]:
        with notices() as must_stop:
            return attempt(folder.trial(job["trial"]), assignment, lambda: _run(job, assignment, folder, must_stop))

    return outcome_on_node(run, run.trial(job["trial"]), (parent, weights), attempted)


def outcome_on_node(
    run: RunFolder, work: Path, needed: Sequence[Path | None], attempted: Callable[[RunFolder], dict[str, Any]]
) -> dict[str, Any]:
    """What `attempted` says of the run folder as this node sees it; or why it could not be seen: see `on_node`."""
    try:
        with on_node(run, work, *needed) as folder:
            return attempted(folder)
    except (AlreadyRunningError, StorageError) as error:
        return {"reason": BUSY if isinstance(error, AlreadyRunningError) else AWAY}
    except OSError as error:
        if error.errno in DISK_FULL:
            return {"reason": no_room(run)}
        raise


def attempt(folder: Path, assignment: Assignment, run: Callable[[], TrialResult]) -> dict[str, Any]:
    """Run a trial in its folder under its watchdog; its score, or the reason why it has none.

    Raises:
        Exception: a crash, which `error.txt` tells.
    """
    if has_hung(folder):
        return {"reason": TIMED_OUT}
    hangs_s = hangs_after_s(assignment.limit_s, assignment.least_grace_s)
    try:
        with ended_when_hung(folder, hangs_s):
            result = run()
    except TrialFailedError as error:
        _keep_error(folder / "error.txt", error)
        return {"reason": error.reason}
    except tuple(SAYS_NOTHING) as error:
        return {"reason": next(reason for kind, reason in SAYS_NOTHING.items() if isinstance(error, kind))}
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return {"reason": no_room(assignment.folder)}
        _keep_error(folder / "error.txt", error)
        raise
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # another trial may share the GPU while this process waits for its next one
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    return {"score": result.score, "reason": ""}


def _run(job: dict[str, Any], assignment: Assignment, folder: RunFolder, must_stop: MustStop) -> TrialResult:
    config = TrialConfig.model_validate(job["config"])
    to_do = TrialJob(
        config,
        assignment.shards,
        Split.model_validate(read_json(folder.split)),
        folder.trial(job["trial"]),
        weights=assignment.start_weights(config.backbone, folder),
        parent=folder.trial(job["parent"]) if job["parent"] else None,
        threads=job["threads"],
        checkpoint_every_s=CHECKPOINT_EVERY_S,
        limit_s=assignment.limit_s,
    )
    return train(to_do, assignment.processes, lambda record: _report_epoch(record, folder), must_stop)


def _report_epoch(record: dict[str, Any], folder: RunFolder) -> None:
    folder.check()
    tune.report({name: record[name] for name in ("epoch", "seconds", "images_per_s")})


def _keep_error(path: Path, error: Exception) -> None:
    """What went wrong and where in the code, without any path of the machine."""
    what = error.strerror if isinstance(error, OSError) else error
    write_text(path, f"{type(error).__name__}: {what}\n{place_of(error)}\n")

"""What runs on the cluster's nodes: cache warming, the LR finder, and one trial, each a plain function in a Ray worker.

In: paths and configurations. Out: files in the run folder.
"""

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from ray import tune

from ichsearch.data.cache import open_slices
from ichsearch.data.split import Split
from ichsearch.errors import AlreadyRunningError, IchsearchError
from ichsearch.files import read_json, write_json, write_text
from ichsearch.search.notice import notices
from ichsearch.search.processes import TrialJob, place_of, train
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.watchdog import LEAST_GRACE_S, ended_when_hung, hangs_after_s, has_hung
from ichsearch.train.config import InputConfig, TrialConfig, TrialFailedError, TrialStoppedError
from ichsearch.train.lr_finder import FALLBACK_LR, LrCurve, find_lr
from ichsearch.train.trainer import MustStop
from ichsearch.train.trial import TrialResult

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
CHECKPOINT_EVERY_S: Final = 300.0
"""Within epochs too: those of a large cohort take hours."""
NO_ROOM: Final = "disk full"
"""The reason of a trial that says nothing about its configuration: it is run again when there is room."""
BUSY: Final = "folder busy"
"""Likewise: the worker of a dead driver, or one that Ray has given up, is still at work on the trial."""
LEAVING: Final = "node leaves"
"""Likewise: the node is about to go. The trial has written a checkpoint, and goes on elsewhere."""
TIMED_OUT: Final = "timed_out"
CRASHED: Final = "crashed"


class Assignment(NamedTuple):
    """What every worker of a run needs to know; `threads` and `processes` are those of a trial."""

    shards: Path
    folder: RunFolder
    weights: dict[str, Path | None]
    threads: int
    lr_steps: int
    limit_s: float = math.inf
    least_grace_s: float = LEAST_GRACE_S
    processes: int = 1


def warm_cache(size: int, shards: Path) -> int:
    """Decode the slices into this node's cache; returns their number."""
    return len(open_slices(shards, size).hu)


def gpu_memory_mb(gpu: int) -> float | None:
    """Memory of this node's GPU of that number in 1e6 bytes; None if torch does not see it."""
    return torch.cuda.get_device_properties(gpu).total_memory / 1e6 if gpu < torch.cuda.device_count() else None


def find_curve(config: InputConfig, assignment: Assignment) -> LrCurve:
    """Run the LR finder for one configuration and keep its curve.

    A backbone that cannot be trained must not end the run: its trials will fail, and be told to the sampler.
    """
    torch.set_num_threads(max(1, assignment.threads // assignment.processes))
    slices = open_slices(assignment.shards, config.size)
    split = Split.model_validate(read_json(assignment.folder.split))
    weights = assignment.weights[config.backbone]
    try:
        curve = find_lr(config, slices, split, weights=weights, steps=assignment.lr_steps)
    except (OSError, IchsearchError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a backbone raises, see above
        _keep_error(assignment.folder.curve(config).with_suffix(".error.txt"), error)
        curve = LrCurve(
            config=config, lrs=[], losses=[], suggestions={}, lr=FALLBACK_LR, guarded=True, failure=type(error).__name__
        )
    write_json(assignment.folder.curve(config), curve.model_dump())
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
    folder = assignment.folder.trial(job["trial"])
    with notices() as must_stop:
        return attempt(folder, assignment, lambda: _run(job, assignment, folder, must_stop))


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
    except TrialStoppedError:
        return {"reason": LEAVING}
    except AlreadyRunningError:
        return {"reason": BUSY}
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return {"reason": NO_ROOM}
        _keep_error(folder / "error.txt", error)
        raise
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # another trial may share the GPU while this process waits for its next one
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    return {"score": result.score, "reason": ""}


def _run(job: dict[str, Any], assignment: Assignment, folder: Path, must_stop: MustStop) -> TrialResult:
    config = TrialConfig.model_validate(job["config"])
    to_do = TrialJob(
        config,
        assignment.shards,
        Split.model_validate(read_json(assignment.folder.split)),
        folder,
        weights=assignment.weights[config.backbone],
        parent=assignment.folder.trial(job["parent"]) if job["parent"] else None,
        threads=job["threads"],
        checkpoint_every_s=CHECKPOINT_EVERY_S,
        limit_s=assignment.limit_s,
    )
    return train(to_do, assignment.processes, _report_epoch, must_stop)


def _report_epoch(record: dict[str, Any]) -> None:
    tune.report({name: record[name] for name in ("epoch", "seconds", "images_per_s")})


def _keep_error(path: Path, error: Exception) -> None:
    """What went wrong and where in the code, without any path of the machine."""
    what = error.strerror if isinstance(error, OSError) else error
    write_text(path, f"{type(error).__name__}: {what}\n{place_of(error)}\n")

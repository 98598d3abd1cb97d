"""What runs on the cluster's nodes: cache warming, the LR finder, and one trial, each a plain function in a Ray worker.

In: paths and configurations. Out: files in the run folder.
"""

import errno
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from ray import tune

from ichsearch.data.cache import open_slices
from ichsearch.data.split import Split
from ichsearch.errors import IchsearchError
from ichsearch.files import read_json, write_json, write_text
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.config import InputConfig, TrialConfig, TrialFailedError
from ichsearch.train.lr_finder import FALLBACK_LR, LrCurve, find_lr
from ichsearch.train.trial import run_trial

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
CHECKPOINT_EVERY_S: Final = 300.0
"""Within epochs too: those of a large cohort take hours."""
NO_ROOM: Final = "disk full"
"""The reason of a trial that says nothing about its configuration: it is run again when there is room."""


class Assignment(NamedTuple):
    """What every worker of a run needs to know."""

    shards: Path
    folder: RunFolder
    weights: dict[str, Path | None]
    threads: int
    lr_steps: int


def warm_cache(size: int, shards: Path) -> int:
    """Decode the slices into this node's cache; returns their number."""
    return len(open_slices(shards, size).hu)


def find_curve(config: InputConfig, assignment: Assignment) -> LrCurve:
    """Run the LR finder for one configuration and keep its curve.

    A backbone that cannot be trained must not end the run: its trials will fail, and be told to the sampler.
    """
    torch.set_num_threads(assignment.threads)
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
    """The function that Ray Tune calls for each trial of a run."""

    def train(job: dict[str, Any]) -> None:
        torch.set_num_threads(assignment.threads)
        folder = assignment.folder.trial(job["trial"])
        config = TrialConfig.model_validate(job["config"])
        try:
            slices = open_slices(assignment.shards, config.size)
            split = Split.model_validate(read_json(assignment.folder.split))
            weights = assignment.weights[config.backbone]
            result = run_trial(
                config,
                slices,
                split,
                folder,
                weights=weights,
                on_epoch=_report_epoch,
                checkpoint_every_s=CHECKPOINT_EVERY_S,
            )
            (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
            tune.report({"score": result.score, "reason": ""})
        except TrialFailedError as error:
            _keep_error(folder / "error.txt", error)
            tune.report({"reason": error.reason})
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                tune.report({"reason": NO_ROOM})
                return
            _keep_error(folder / "error.txt", error)
            raise

    return train


def _report_epoch(record: dict[str, Any]) -> None:
    tune.report({"epoch": record["epoch"], "seconds": record["seconds"]})


def _keep_error(path: Path, error: Exception) -> None:
    """What went wrong and where in the code, without any path of the machine."""
    frames = traceback.extract_tb(error.__traceback__)
    where = "\n".join(f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    what = error.strerror if isinstance(error, OSError) else error
    write_text(path, f"{type(error).__name__}: {what}\n{where}\n")

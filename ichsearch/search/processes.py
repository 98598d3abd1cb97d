"""One trial trained by this process, or by several of this node together: a GPU each, or on a CPU side by side.

In: a `TrialJob`, a number of processes. Out: the trial's result, its epochs on the way. Several are supervised: the
first one that fails or dies ends the others, and all end with the process that started them, however that ends.
"""

import math
import multiprocessing
import os
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from ichsearch.data.cache import local_shards, open_slices
from ichsearch.data.split import Split
from ichsearch.errors import AlreadyRunningError
from ichsearch.train.config import TrialConfig, TrialFailedError, TrialStoppedError
from ichsearch.train.parallel import ALONE, Ranks, joined
from ichsearch.train.trainer import EpochCallback, MustStop
from ichsearch.train.trial import TrialResult, run_trial


class TrialJob(NamedTuple):
    """All that a process needs to know of a trial; see `run_trial`. `threads` are those of all its processes."""

    config: TrialConfig
    shards: str | Path
    split: Split
    folder: Path
    weights: Path | None
    parent: Path | None
    threads: int
    checkpoint_every_s: float = math.inf
    limit_s: float = math.inf


LOOK_EVERY_S: Final = 1.0
"""Whether the trial must stop is asked so often while nobody says anything."""


class RankFailedError(Exception):
    """One of a trial's processes has crashed."""


class RankDiedError(RankFailedError):
    """One was killed; the others, which miss it, crash."""


CAUSES: Final = (TrialFailedError, TrialStoppedError, RankDiedError, Exception)
"""What some ranks say because of another one comes last."""


class _Rank(NamedTuple):
    process: BaseProcess
    heard: Connection


def train(
    job: TrialJob,
    processes: int,
    on_epoch: EpochCallback = lambda record: None,
    must_stop: MustStop = lambda: False,
) -> TrialResult:
    """Train a trial by one process, which is this one, or by several new ones.

    Raises:
        TrialFailedError: the trial can give no score.
        TrialStoppedError: `must_stop` said so; there is a checkpoint to go on from.
        AlreadyRunningError: another process is at work on its folder.
        OSError: a disk is full, or the like.
        RankFailedError: one of several processes died or crashed; the others were ended.
    """
    if processes == 1:
        return _train(job, ALONE, on_epoch, must_stop)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # it never touches a GPU, and so can be forked
    stop = context.Event()
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="ichsearch-ranks-", ignore_cleanup_errors=True) as meeting:
        try:
            for number in range(processes):
                ranks.append(_started(job, Path(meeting) / "ranks", number, processes, stop))
            return _supervised(ranks, on_epoch, must_stop, stop)
        finally:
            for rank in ranks:
                rank.process.kill()
            for rank in ranks:
                rank.process.join()
                rank.heard.close()


def _train(job: TrialJob, ranks: Ranks, on_epoch: EpochCallback, must_stop: MustStop) -> TrialResult:
    torch.set_num_threads(max(1, job.threads // ranks.size))
    return run_trial(
        job.config,
        open_slices(local_shards(job.shards), job.config.size),
        job.split,
        job.folder,
        weights=job.weights,
        parent=job.parent,
        on_epoch=on_epoch,
        checkpoint_every_s=job.checkpoint_every_s,
        limit_s=job.limit_s,
        ranks=ranks,
        must_stop=must_stop,
    )


def _started(job: TrialJob, meeting: Path, number: int, processes: int, stop: Event) -> _Rank:
    context = multiprocessing.get_context("forkserver")
    heard, tells = context.Pipe(duplex=False)
    process = context.Process(
        target=_work,
        args=(tells, job, meeting, number, processes, stop, dict(os.environ)),
        name=f"rank {number} of {processes}",
    )
    process.start()
    tells.close()
    return _Rank(process, heard)


def _supervised(ranks: list[_Rank], on_epoch: EpochCallback, must_stop: MustStop, stop: Event) -> TrialResult:
    """What the first rank says in the end; the others only say that they have ended, or why they cannot go on."""
    at_work = list(ranks)
    while True:
        ready = wait([rank.heard for rank in at_work], timeout=LOOK_EVERY_S)
        if must_stop():
            stop.set()  # the first rank writes a checkpoint, and says so
        for rank in [rank for rank in at_work if rank.heard in ready]:
            message = _message(rank)
            if isinstance(message, Exception):
                raise _cause([message, *(_message(other) for other in at_work if other.heard.poll())])
            if not isinstance(message, TrialResult):
                on_epoch(message)
            elif rank is ranks[0]:
                return message
            else:
                at_work.remove(rank)


def _message(rank: _Rank) -> Any:
    """What a rank has said; if it is dead, that."""
    try:
        return rank.heard.recv()
    except EOFError:
        rank.process.join()
        return RankDiedError(f"{rank.process.name} ended with exit code {rank.process.exitcode}")


def _cause(messages: list[Any]) -> Exception:
    """Of what was said at once: a trial's own failure, else a death, else the first error."""
    return next(message for kind in CAUSES for message in messages if isinstance(message, kind))


def _work(
    tells: Connection,
    job: TrialJob,
    meeting: Path,
    number: int,
    processes: int,
    stop: Event,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # of now: the server that forks is older
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with joined(meeting, number, processes) as ranks:
            tells.send(_train(job, ranks, tells.send, stop.is_set))
    except Exception as error:  # noqa: BLE001 - whoever started this process raises it there
        tells.send(_portable(error))
        threading.Event().wait()  # to be ended: the others shall not see this one go, and crash in turn


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a rank is started by another process"
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error in a form that survives pickling, with the place in the code as a note."""
    if isinstance(error, TrialFailedError | TrialStoppedError | AlreadyRunningError):
        told: Exception = error
    elif isinstance(error, OSError):
        told = OSError(error.errno, error.strerror)
    else:
        told = RankFailedError(f"{type(error).__name__}: {error}")
    told.add_note(place_of(error))
    return told


def place_of(error: Exception) -> str:
    """Where in the code an error was raised, a line a frame, without any path of the machine."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([*lines, *getattr(error, "__notes__", [])])

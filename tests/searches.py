"""Searches by the real command in processes of their own: started, watched, killed, gone on with, compared."""

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from ray._private.utils import get_num_cpus
from tensorboardX.proto.event_pb2 import Event

from ichsearch.phantom import write_cohort
from ichsearch.shards.preprocess import preprocess

CORES: Final = get_num_cpus()
"""A trial that takes them all runs alone."""
PROBE_S: Final = 0.05
TIMES: Final = ["seconds", "chain_seconds", "images_per_s"]
"""What of a leaderboard is measured with a clock."""
SPACE: Final = """\
name: tiny
metric: auroc_any
trials: 12
epochs: 4
pretrained: no
seed: 3
promotion: {eta: 2, first_epochs: 1}
resources: {cpus_per_trial: CORES}
lr_finder: {steps: 20}
parameters:
  backbone: {choice: [test_resnet, test_efficientnet]}
  batch_size: 8
  size: 32
  channels: hu
  augment: {float: [0.0, 1.0]}
  lr: {factor: [0.3, 3.0]}
"""


def one_by_one(content: str, cores: int = CORES) -> str:
    """A space of which one trial at a time runs on `cores` cores."""
    return content.replace("CORES", str(cores))


def write_tiny_shards(folder: Path, *, seed: int = 0) -> Path:
    """Shards of 20 phantom patients with 4 slices each, at 32 px."""
    write_cohort(folder / "cohort", 20, 4, seed, matrix=128, workers=1)
    preprocess(folder / "cohort" / "dicom", folder / "shards", labels=folder / "cohort" / "stage_2_train.csv", size=32)
    return folder / "shards"


class Driver:
    """One start of `ichsearch run --json`; what it prints goes to files."""

    def __init__(self, command: Sequence[str | Path], printed: Path) -> None:
        self._out, self._err = printed.with_suffix(".jsonl"), printed.with_suffix(".err")
        self.began_s = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from ichsearch.cli import main; main()", "run", "--json", *map(str, command)],
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What it has told so far, of these kinds or of all."""
        lines = self._out.read_text().splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in told if not kinds or event["event"] in kinds]

    @property
    def said(self) -> str:
        """What it has said to a person."""
        return self._err.read_text()

    def wait_for(self, due: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> bool:
        """Wait until something is due; False if the driver ended before."""
        while self.process.poll() is None:
            meanwhile()
            if due():
                return True
            time.sleep(PROBE_S)
        meanwhile()
        return False

    def end(self) -> int:
        """Wait until it ends by itself; its exit code."""
        return self.process.wait(timeout=600)

    def kill(self) -> list[int]:
        """Kill -9, the driver alone; the processes that it leaves behind."""
        below = list(descendants(self.process.pid))
        self.process.kill()
        self.process.wait()
        return below

    def interrupt(self) -> int:
        """Ctrl+C, as a terminal sends it to the whole foreground group; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()


@contextlib.contextmanager
def private_ray() -> Iterator[None]:
    """Ray's sockets and logs of all drivers in a folder that goes; they need a short path."""
    before, folder = os.environ.get("RAY_TMPDIR"), Path(tempfile.mkdtemp(prefix="ick"))
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            yield child


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outlive(pids: Sequence[int], seconds: float) -> list[int]:
    """Those of some processes that are still there after so many seconds; they are ended then."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s and any(is_running(pid) for pid in pids):
        time.sleep(PROBE_S)
    left = [pid for pid in pids if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


class Work:
    """Epochs that the trials of a run have trained, over all its starts.

    A trial that begins again replaces its event files: whoever counts must look now and then.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._epochs: dict[tuple[str, float], int] = {}

    def look(self) -> int:
        """Count; all epochs that were seen so far."""
        for path in self._root.glob("trials/*/events/*"):
            events = list(_events(path))
            if events:
                trained = sum(any(value.tag == "training/seconds" for value in event.summary.value) for event in events)
                key = (str(path), events[0].wall_time)
                self._epochs[key] = max(trained, self._epochs.get(key, 0))
        return sum(self._epochs.values())


def _events(path: Path) -> Iterator[Event]:
    """The whole records of a TensorBoard file: a length and its checksum, an event and its checksum."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    at = 0
    while at + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        if at + 16 + length > len(content):
            return
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def results(root: Path) -> pd.DataFrame:
    """The trials of the leaderboard without what is measured with a clock."""
    table = pd.read_csv(root / "leaderboard.csv", dtype={"trial": str, "parent": str}).drop(columns=TIMES)
    return table[table["status"] != "baseline"].reset_index(drop=True)

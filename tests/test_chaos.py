"""Random faults, one after the other, over a search on a cluster: no finished trial is lost, no trial counted twice.

A worker dies, or is given notice, or stands still for a while; a node is lost and another one joins, or stands still
until Ray has given it up; the driver dies and the command is given again.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import optuna
import pandas as pd
import pytest
from machines import Machines, Node, machines, signal_all
from searches import Driver, descendants, outlive, private_ray
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.search.journal import open_storage
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.trial import read_result

SPACE: Final = """\
name: chaos
trials: {trials}
epochs: 40
max_retries: 3
pretrained: no
promotion: {{eta: 2, first_epochs: 10}}
resources: {{cpus_per_trial: 1}}
parameters: {{backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: {{float: [0.001, 0.01]}}}}
"""
KINDS: Final = ("kill worker", "notice", "pause worker", "lose node", "kill driver")


class Chaos:
    """A search and what is done to it."""

    def __init__(self, folder: Path, cluster: Machines, trials: int, seed: int) -> None:
        write_shards(folder / "shards", make_rows(patients=15, slices=4), 32)
        space = write_space(folder, SPACE.format(trials=trials))
        self.out, self._cluster = folder / "run", cluster
        address = ["--address", cluster.address]
        self._command = ["--space", space, "--data", folder / "shards", "--out", self.out, *address]
        self._random = np.random.default_rng(seed)
        self.drivers = [Driver(self._command, folder / "driver0")]
        self.faults, self.scores = Counter[str](), dict[str, float]()
        self.starts_s, self._orphans = list[float](), list[int]()

    @property
    def driver(self) -> Driver:
        """The one that lives."""
        return self.drivers[-1]

    def strike(self, kind: str) -> None:
        """Do one thing to the search, some time after it runs; one that has ended meanwhile is left alone."""
        until_s = time.monotonic() + float(self._random.uniform(0.2, 2.0))
        while self.driver.wait_for(lambda: time.monotonic() > until_s and any(self._cluster.workers())):
            self.note_finished()
            found = list(self._cluster.workers())
            if found and self._lands(kind, *found[int(self._random.integers(len(found)))]):
                self.faults[kind] += 1
                return

    def _lands(self, kind: str, node: Node, pid: int, _: str) -> bool:
        """Do it; False if the process that it is done to has just ended by itself."""
        try:
            self._do(kind, node, pid)
        except ProcessLookupError:
            return False
        return True

    def _do(self, kind: str, node: Node, pid: int) -> None:
        match kind:
            case "kill worker":
                os.kill(pid, signal.SIGKILL)
            case "notice":
                os.kill(pid, signal.SIGTERM)
            case "pause worker":
                os.kill(pid, signal.SIGSTOP)
                time.sleep(1.5)
                os.kill(pid, signal.SIGCONT)
            case "lose node":
                self._cluster.add()
                self._cluster.lose(node)
            case "freeze node":  # long enough that Ray takes it for lost; what thaws finds that out
                stopped = [node.raylet, *descendants(node.raylet)]
                signal_all(stopped, signal.SIGSTOP)
                self._cluster.add()
                time.sleep(6)
                signal_all(stopped, signal.SIGCONT)
                self._cluster.lose(node)
            case "kill driver":
                self._orphans += self.driver.kill()
                self.drivers.append(Driver(self._command, self.out.parent / f"driver{len(self.drivers)}"))
                if self.driver.wait_for(lambda: bool(self.driver.events("started"))):
                    self.starts_s.append(time.monotonic() - self.driver.began_s)

    def note_finished(self) -> None:
        """What the last driver has told as finished must stay."""
        self.scores |= {event["trial"]: event["score"] for event in self.driver.events("finished")}

    def end(self) -> None:
        """Wait until the search is done."""
        code = self.driver.end()
        self.note_finished()
        assert code == 0, self.driver.said
        assert not outlive(self._orphans, 60)


@pytest.fixture
def cluster(ichsearch_home: Path) -> Iterator[Machines]:  # noqa: ARG001 - its environment is what Ray's workers inherit
    with private_ray(), machines(3) as made:
        yield made


def assert_nothing_lost(chaos: Chaos, trials: int) -> None:
    table = pd.read_csv(chaos.out / "leaderboard.csv", dtype={"trial": str, "parent": str})
    table = table[table["status"] != "baseline"]
    names = [f"{number:04d}" for number in range(trials)]
    assert sorted(table["trial"]) == names, "a row a trial"
    assert set(table["status"]) == {"finished"}, table[["trial", "status", "reason"]]
    shown = dict(zip(table["trial"], table["score"], strict=True))
    for trial, score in chaos.scores.items():
        assert shown[trial] == pytest.approx(score, abs=1e-9), "told as finished, and another one now"
    storage = open_storage(chaos.out / "journal.log")
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    known = [(trial.user_attrs["trial"], trial.value) for study in studies for trial in study.get_trials()]
    assert sorted(trial for trial, _ in known) == names, "a trial a trial in the journal"
    for trial, value in known:
        result = read_result(RunFolder(chaos.out).trial(trial))
        assert result is not None
        assert value == result.score


def test_a_search_outlives_one_fault_of_each_kind(cluster: Machines, tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, cluster, trials=10, seed=1)
    for kind in np.random.default_rng(1).permutation(KINDS):
        chaos.strike(str(kind))
    chaos.end()
    assert chaos.faults.total() == len(KINDS), "it ended too early"
    assert_nothing_lost(chaos, trials=10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_search_outlives_fifty_random_faults(cluster: Machines, tmp_path: Path) -> None:
    trials = 160
    chaos = Chaos(tmp_path, cluster, trials, seed=0)
    random = np.random.default_rng(0)
    while chaos.driver.process.poll() is None and chaos.faults.total() < 60:
        chaos.strike(str(random.choice([*KINDS, "freeze node"])))
    chaos.end()
    starts = f"a killed driver's run went on after {[round(seconds, 1) for seconds in chaos.starts_s]} s"
    print(dict(chaos.faults), f"{trials} trials", starts)  # noqa: T201 - what was done
    assert chaos.faults.total() >= 50
    assert_nothing_lost(chaos, trials)

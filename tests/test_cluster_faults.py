"""A trial goes from node to node as they leave, are lost and join, and keeps what it has trained."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from machines import Machines, machines
from searches import Driver, private_ray
from slice_sets import make_rows, write_shards
from spaces import write_space

SPACE = """\
name: moving
trials: 1
epochs: 60
max_retries: 0
pretrained: no
resources: {cpus_per_trial: 1}
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: {float: [0.001, 0.01]}}
"""


@pytest.fixture(scope="module")
def cluster(ichsearch_home: Path) -> Iterator[Machines]:  # noqa: ARG001 - its environment is what Ray's workers inherit
    with private_ray(), machines(2) as made:
        yield made


def epochs_of(out: Path) -> list[dict[str, Any]]:
    """What trial 0000 has trained; what took so many seconds to the last digit was trained once."""
    path = out / "trials" / "0000" / "metrics.json"
    epochs: list[dict[str, Any]] = json.loads(path.read_text())["epochs"] if path.is_file() else []
    return epochs


def checkpoint_of(out: Path) -> int:
    """The epoch after which the newest checkpoint of trial 0000 was written; 0 without one."""
    names = sorted(path.name for path in (out / "trials" / "0000" / "checkpoint").glob("epoch-*"))
    return int(names[-1].split("-")[1]) if names else 0


@pytest.mark.slow
def test_a_trial_outlives_notices_and_the_loss_of_its_node(cluster: Machines, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=60, slices=6), 32)
    out = tmp_path / "run"
    space = write_space(tmp_path, SPACE)
    command = ["--space", space, "--data", tmp_path / "shards", "--out", out, "--address", cluster.address]
    driver = Driver(command, out)

    first, pid = cluster.worker_of("0000")
    assert driver.wait_for(lambda: len(epochs_of(out)) >= 3), driver.said
    os.kill(pid, signal.SIGTERM)  # a cloud's notice
    assert driver.wait_for(lambda: len(driver.events("again")) == 1), driver.said
    told = epochs_of(out)
    second, pid = cluster.worker_of("0000", other_than=pid)
    assert second is not first

    third = cluster.add()  # a node that joins while the run goes on
    assert driver.wait_for(lambda: checkpoint_of(out) > len(told)), driver.said
    kept = epochs_of(out)[: checkpoint_of(out)]
    cluster.lose(second)
    node, pid = cluster.worker_of("0000", other_than=pid)
    assert node is third, "the first one may be gone any moment"

    assert driver.wait_for(lambda: len(epochs_of(out)) > len(kept) + 1), driver.said
    cluster.drain(third)  # Ray's notice
    assert driver.wait_for(lambda: len(driver.events("again")) == 3), driver.said
    drained = epochs_of(out)
    assert cluster.worker_of("0000", other_than=pid)[0] is first, "there is no other"

    assert driver.end() == 0, driver.said
    assert [event["reason"] for event in driver.events("again")] == ["node leaves", "node lost", "node leaves"]
    assert [event["trial"] for event in driver.events("started", "finished")] == ["0000", "0000"]
    epochs = epochs_of(out)
    assert len(epochs) == 60
    assert epochs[: len(told)] == told, "a notice costs no epoch"
    assert epochs[: len(kept)] == kept, "the loss of a node costs what came after the checkpoint"
    assert epochs[: len(drained)] == drained
    assert list(pd.read_csv(out / "leaderboard.csv")["status"]).count("finished") == 1
    cluster.lose(third)
    cluster.add()


CRASHING = """
import json, logging, os, sys, time
from pathlib import Path
import ray
from test_searcher import finishing, open_book, run
address, bad, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)

def crash(job):
    crashes = root / "crashes"
    if ray.get_runtime_context().get_node_id() == bad:
        with crashes.open("a") as file:
            file.write("x")
        os._exit(1)
    while not crashes.is_file() or len(crashes.read_text()) < 2:  # however long the other node's worker takes to start
        time.sleep(0.1)

told = run(root, open_book(root, 6), finishing(root, crash))
print(json.dumps([[event.kind, event.facts] for event in told]))
"""


@pytest.mark.slow
def test_a_node_where_trials_only_crash_is_avoided_and_named(cluster: Machines, tmp_path: Path) -> None:
    bad, good = cluster.nodes
    arguments = [cluster.address, bad.id, str(tmp_path / "run")]
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, *arguments],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    kinds = [kind for kind, _ in told]
    assert (kinds.count("finished"), kinds.count("failed"), kinds.count("again")) == (6, 0, 2)
    (avoided,) = [facts["node"] for kind, facts in told if kind == "avoided"]
    assert bad.id[:8] in avoided
    assert good.id[:8] not in avoided
    attempts = [path.read_text().count("\n") for path in (tmp_path / "run").glob("trials/*/attempts")]
    assert sum(attempts) == 6 + 2, "no further trial was sent there"

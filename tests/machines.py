"""Ray clusters of several nodes on this machine, whose nodes are added, lost, drained and frozen, workers signalled.

In: how many nodes. Out: `Machines`; all of it ends with the block. The cluster lives in a process of its own (this
file, run): Ray's services would outlive a test that failed, and leave sockets that pytest takes for ours.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from searches import PROBE_S, descendants

HEALTH: Final = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "health_check_initial_delay_ms": 0,
    "health_check_timeout_ms": 1000,
}
"""A node that does not answer for some seconds is lost."""
PATIENCE_S: Final = 120.0
ANSWER: Final = "answer: "


class Node(NamedTuple):
    """A node of the cluster: Ray's id, and the process that all its workers descend from."""

    id: str
    raylet: int


class Machines:
    """A cluster: a head that runs no trial, and nodes with one slot each unless said otherwise."""

    def __init__(self, folder: Path, nodes: int, cores: int = 1) -> None:
        self._said = folder / "said"
        (folder / "ray").mkdir()  # where Ray notes the address
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(folder), str(cores)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=os.environ | {"RAY_TMPDIR": str(folder)},
            )
        self.address = str(self._read())
        self.nodes = [self._ask("add") for _ in range(nodes)]

    def add(self) -> Node:
        """A node joins."""
        self.nodes.append(self._ask("add"))
        return self.nodes[-1]

    def lose(self, node: Node) -> None:
        """Ray's processes of a node are killed; without them its workers end."""
        self.nodes.remove(node)
        self._ask("lose", node.id)

    def drain(self, node: Node) -> None:
        """What an autoscaler tells Ray before it ends a spot machine."""
        self._ask("drain", node.id)

    def workers(self) -> Iterator[tuple[Node, int, str]]:
        """Node, process and trial of each worker that runs one, as its title says."""
        for node in self.nodes:
            for pid in descendants(node.raylet):
                if trial := trial_of(pid):
                    yield node, pid, trial

    def worker_of(self, trial: str, other_than: int = 0) -> tuple[Node, int]:
        """The node and process that run a trial, once there is one."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            for node, pid, found in self.workers():
                if found == trial and pid != other_than:
                    return node, pid
            time.sleep(PROBE_S)
        raise AssertionError(f"nobody runs trial {trial}")

    def shutdown(self) -> None:
        """End all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, *words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                answer = json.loads(line.removeprefix(ANSWER))
                return Node(*answer) if isinstance(answer, list) else answer
        raise AssertionError(f"the cluster has ended: {self._said.read_text()[-2000:]}")


def trial_of(pid: int) -> str:
    """The trial in the title of a process, `ray::resnet18-b32-4ep-0007`; "" for any other."""
    with suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ").split("\0")[0]
        name, _, trial = title.rpartition("-")
        if name.startswith("ray::") and name.endswith("ep"):
            return trial
    return ""


def signal_all(pids: list[int], number: int) -> None:
    """Those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def machines(nodes: int, cores: int = 1) -> Iterator[Machines]:
    """A cluster with a temporary folder of its own; sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="icc"))
    made = Machines(folder, nodes, cores)
    try:
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def serve(folder: str, cores: int) -> None:
    """Hold a cluster and do what stdin says, until it is closed."""
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    answer(cluster.address)
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        match line.split():
            case ["add"]:
                node = cluster.add_node(num_cpus=cores)
                nodes[node.node_id] = node
                answer([node.node_id, node.all_processes["raylet"][0].process.pid])
            case ["lose", name]:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
                answer(None)
            case ["drain", name]:
                until_ms = int(time.time() * 1000) + 60_000
                client = GcsClient(address=cluster.address)
                answer(client.drain_node(name, DRAIN_NODE_REASON_PREEMPTION, "spot", until_ms)[0])
    cluster.shutdown()


def answer(value: Any) -> None:
    """Beside what Ray prints."""
    sys.stdout.write(ANSWER + json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))

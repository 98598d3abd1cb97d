"""What runs where on the cluster's nodes, and whether they all run the same.

In: an open Ray session. Out: answers of every live node; `ClusterError` naming the node that does not fit.
"""

import importlib
import platform
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ichsearch import __version__
from ichsearch.errors import ClusterError

ANSWER_S: Final = 120.0
"""A node that is asked for the first time starts a worker."""
CONNECT_S: Final = 2.0


class Versions(NamedTuple):
    """What a process runs."""

    ray: str
    python: str
    ichsearch: str


def own_versions() -> Versions:
    """What this process runs."""
    return Versions(ray.__version__, python_version(platform.python_version()), __version__)


def python_version(text: str) -> str:
    """Major and minor version of Python: what pickled functions depend on."""
    return ".".join(text.split(".")[:2])


def name_of(node: Mapping[str, Any]) -> str:
    """A node's name in a message."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def live_nodes() -> list[Mapping[str, Any]]:
    """Ray's record of each node that is alive now and is not about to go."""
    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def draining_nodes() -> set[str]:
    """Nodes that Ray was told to empty, as an autoscaler does before it ends them: Ray starts nothing there."""
    return set(state.get_draining_nodes())


def is_lost(node: str) -> bool:
    """Whether a node, given by Ray's id, has gone or is about to; Ray takes a lost one for alive for some seconds more.

    Where Ray's process of the node has ended nothing listens; where the whole machine has, nothing answers.
    """
    known = next((record for record in live_nodes() if record["NodeID"] == node), None)
    if known is None:
        return True
    try:
        socket.create_connection((known["NodeManagerAddress"], known["NodeManagerPort"]), timeout=CONNECT_S).close()
    except OSError:
        return True
    return False


def ask_nodes(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The answers of `function(*arguments)` from each live node, by the node's name; of one that cannot, the error.

    A node that goes meanwhile is left out.
    """
    asked = [(node, send(node, function, *arguments)) for node in live_nodes()]
    found = [(node, answer(reference)) for node, reference in asked]
    return {
        name_of(node): value for node, value in found if not (isinstance(value, RayError) and is_lost(node["NodeID"]))
    }


def send(node: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Have `function(*arguments)` run on a node, which must be alive; a reference to what it returns."""
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
    return ray.remote(**options)(function).remote(*arguments)


def answer(reference: Any) -> Any:
    """What a node answered; the error if it did not, or could not."""
    try:
        return ray.get(reference, timeout=ANSWER_S)
    except RayError as error:
        return error


def node_versions() -> dict[str, Any]:
    """What each node runs, as `Versions`; of one that does not answer, the error."""
    answers = ask_nodes(_asker())
    return {name: Versions(*found) if isinstance(found, tuple) else found for name, found in answers.items()}


def _asker() -> Callable[[], tuple[str, str, str]]:
    """A function that Ray sends by value, not by name: a node that lacks ichsearch can say so."""

    def versions() -> tuple[str, str, str]:
        try:
            found = str(importlib.import_module("ichsearch").__version__)
        except ImportError:
            found = "missing"
        python = ".".join(platform.python_version().split(".")[:2])
        return str(importlib.import_module("ray").__version__), python, found

    return versions


def check_versions() -> None:
    """Refuse a cluster of which a node runs other versions than this driver.

    Raises:
        ClusterError: naming the nodes, what they run, and what to do.
    """
    if wrong := version_faults(node_versions()):
        raise ClusterError("\n  ".join(["every node must run what this driver runs, but:", *wrong]))


def version_faults(found: Mapping[str, Any]) -> list[str]:
    """A line for each node and each version that is not this driver's."""
    lines, own = [], own_versions()
    for node, versions in found.items():
        if not isinstance(versions, Versions):
            lines.append(f"node {node} did not answer ({type(versions).__name__}); look at it with `ray status`")
            continue
        for what, value, wanted in zip(Versions._fields, versions, own, strict=True):
            if value != wanted:
                lines.append(
                    f"node {node}: {what} is {value}, and {wanted} here; install {what} {wanted} there "
                    "(with the same python that `ray start` runs) and start the node anew"
                )
    return lines

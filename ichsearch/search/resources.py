"""What a trial takes of a node, and whether the live cluster has room for one more.

In: the space's resources, Ray's list of nodes, what backbones need of a GPU. Out: a request a backbone, at most three
different ones a run; and whether a slot is free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray._private.state import state

from ichsearch.errors import ConfigError
from ichsearch.search.sections import Resources
from ichsearch.shards.nodes import live_nodes

Request = dict[str, float]
Node = Mapping[str, float]

TRIALS_PER_CPU_NODE: Final = 4
"""`auto` on a machine without GPUs: more trials at once would each be slow, and the sampler would learn late."""
MAX_CPUS_PER_GPU: Final = 8
SHARES: Final = (0.25, 0.5, 1.0)
"""Of a GPU, that `auto` gives to a trial. Three, because a worker goes from trial to trial only among equal requests;
fractions of two, because shares of that kind leave no rest of a GPU that none fits into."""
MEMORY_FACTOR: Final = 1.3
"""Validation and fragments of freed memory come on top of what the LR finder's tensors took."""
CONTEXT_MB: Final = 1000.0
"""CUDA's own, in each process."""
TOLERANCE: Final = 1e-6
"""Ten trials of 0.1 GPUs fit onto one."""


@dataclass(frozen=True)
class Requests:
    """What the trials of a run ask for: `whole` is the most, and what a backbone gets of which nothing is known."""

    whole: Request
    by_backbone: dict[str, Request] = field(default_factory=dict)

    def of(self, backbone: str) -> Request:
        """The request of a trial with this backbone."""
        return self.by_backbone.get(backbone, self.whole)

    @property
    def least(self) -> Request:
        """The smallest of all requests."""
        return min([self.whole, *self.by_backbone.values()], key=_size)


def resources_of_nodes() -> list[Node]:
    """Of the nodes that trials can be sent to now."""
    return list(nodes_by_id().values())


def nodes_by_id() -> dict[str, Node]:
    """Likewise, by Ray's ids."""
    return {node["NodeID"]: node["Resources"] for node in live_nodes()}


def node_of(actor: Any) -> str | None:
    """The node that an actor runs on, if Ray knows."""
    return state.actor_table(actor._actor_id.hex()).get("Address", {}).get("NodeID") or None


def node_name(node: str) -> str:
    """A node's name for people: its host, and the beginning of Ray's id."""
    host = next((known["NodeManagerHostname"] for known in ray.nodes() if known["NodeID"] == node), "node")
    return f"{host} ({node[:8]})"


def trial_request(resources: Resources, nodes: Sequence[Node]) -> Request:
    """CPUs and GPUs of one trial, `auto` resolved for the cluster at hand: a GPU a trial where there are any.

    Raises:
        ConfigError: no node could ever run a trial.
    """
    gpus: float = resources.gpus_per_trial if resources.gpus_per_trial != "auto" else float(_most(nodes, "GPU") > 0)
    cpus: float = resources.cpus_per_trial if resources.cpus_per_trial != "auto" else _auto_cpus(nodes, gpus)
    request = {"CPU": float(cpus), "GPU": float(gpus)}
    if not _most(nodes, "CPU"):
        raise ConfigError(
            "a cluster must have a node for trials, but none of this one offers a CPU; start a worker node, or ask the "
            "autoscaler for some"
        )
    if not any(slots(node, request) for node in nodes):
        raise ConfigError(
            f"a node must have room for a trial of {cpus:g} CPUs and {gpus:g} GPUs, but the largest has "
            f"{_most(nodes, 'CPU'):g} and {_most(nodes, 'GPU'):g}; lower resources.cpus_per_trial or gpus_per_trial"
        )
    return request


def trial_requests(
    resources: Resources, nodes: Sequence[Node], memory_mb: Mapping[str, float], gpu_memory_mb: float | None
) -> Requests:
    """What each backbone's trials ask for: with `auto`, the smallest share of a GPU whose memory holds them.

    Args:
        resources: the space's.
        nodes: of the live cluster.
        memory_mb: the most that the LR finder saw each backbone take, in 1e6 bytes; others get a whole GPU.
        gpu_memory_mb: of the smallest GPU; None without one.

    Raises:
        ConfigError: no node could ever run a trial.
    """
    whole = trial_request(resources, nodes)
    if resources.gpus_per_trial != "auto" or not whole["GPU"] or not gpu_memory_mb:
        return Requests(whole)
    cores = _least_share(resources, nodes)
    shares = {name: gpu_share(taken, gpu_memory_mb, cores) for name, taken in memory_mb.items()}
    return Requests(
        whole,
        {
            name: trial_request(resources.model_copy(update={"gpus_per_trial": share}), nodes)
            for name, share in shares.items()
        },
    )


def gpu_share(memory_mb: float, gpu_memory_mb: float, least: float) -> float:
    """The smallest of `SHARES`, `least` or more, whose memory holds a trial of which the LR finder saw `memory_mb`."""
    needed = (MEMORY_FACTOR * memory_mb + CONTEXT_MB) / gpu_memory_mb
    return min((share for share in SHARES if share >= max(needed, least)), default=SHARES[-1])


def _least_share(resources: Resources, nodes: Sequence[Node]) -> float:
    """Of a GPU: with less, a node would run out of cores before it runs out of GPUs."""
    cpus = 1 if resources.cpus_per_trial == "auto" else resources.cpus_per_trial
    return max((cpus * node["GPU"] / node["CPU"] for node in nodes if node.get("GPU") and node.get("CPU")), default=1.0)


def _auto_cpus(nodes: Sequence[Node], gpus: float) -> float:
    if gpus:
        share = min((node.get("CPU", 0.0) / node["GPU"] * gpus for node in nodes if node.get("GPU")), default=1.0)
        return float(max(1, min(MAX_CPUS_PER_GPU * max(1, int(gpus)), int(share))))
    return float(max(1, int(_most(nodes, "CPU")) // TRIALS_PER_CPU_NODE))


def _most(nodes: Iterable[Node], kind: str) -> float:
    return max((node.get(kind, 0.0) for node in nodes), default=0.0)


def slots(node: Node, request: Request) -> int:
    """How many trials a node has room for."""
    return min(int(node.get(kind, 0.0) / amount + TOLERANCE) for kind, amount in request.items() if amount)


def has_room(nodes: Iterable[Node], running: Iterable[Request], request: Request) -> bool:
    """Whether nodes have room for `request` beside what runs; Ray is taken to fill them one after the other."""
    free = [dict(node) for node in nodes]
    for taken in [*sorted(running, key=_size, reverse=True), request]:
        place = next((node for node in free if slots(node, taken)), None)
        if place is None:
            return False
        place.update({kind: place.get(kind, 0.0) - amount for kind, amount in taken.items()})
    return True


def _size(request: Request) -> tuple[float, float]:
    return request["GPU"], request["CPU"]


def processes_of(request: Request) -> int:
    """How many processes train a trial: one a GPU."""
    return max(1, int(request["GPU"]))


def of_one_process(request: Request) -> Request:
    """What one process of a trial takes of it: a GPU at most, and its share of the cores."""
    processes = processes_of(request)
    return {"CPU": max(1.0, request["CPU"] // processes), "GPU": request["GPU"] / processes}


def as_ray_options(request: Request) -> dict[str, Any]:
    """The request in the words of `ray.remote`."""
    return {"num_cpus": request["CPU"], "num_gpus": request["GPU"]}

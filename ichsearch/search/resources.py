"""What a trial takes of a node, and how many trials the live cluster has room for.

In: the space's resources, Ray's list of nodes. Out: a resource request, and whether a slot is free.
"""

from typing import Any, Final

import ray

from ichsearch.errors import ConfigError
from ichsearch.search.sections import Resources

TRIALS_PER_CPU_NODE: Final = 4
"""`auto` on a machine without GPUs: more trials at once would each be slow, and the sampler would learn late."""

MAX_CPUS_PER_GPU: Final = 8


def live_nodes() -> list[dict[str, float]]:
    """Resources of the nodes that are alive now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def trial_request(resources: Resources, nodes: list[dict[str, float]]) -> dict[str, float]:
    """CPUs and GPUs of one trial, `auto` resolved for the cluster at hand: a GPU a trial where there are any.

    Raises:
        ConfigError: no node could ever run a trial.
    """
    gpus: float = resources.gpus_per_trial if resources.gpus_per_trial != "auto" else float(_most(nodes, "GPU") > 0)
    cpus: float = resources.cpus_per_trial if resources.cpus_per_trial != "auto" else _auto_cpus(nodes, gpus)
    request = {"CPU": float(cpus), "GPU": float(gpus)}
    if not any(slots(node, request) for node in nodes):
        raise ConfigError(
            f"a node must have room for a trial of {cpus:g} CPUs and {gpus:g} GPUs, but the largest has "
            f"{_most(nodes, 'CPU'):g} and {_most(nodes, 'GPU'):g}; lower resources.cpus_per_trial or gpus_per_trial"
        )
    return request


def _auto_cpus(nodes: list[dict[str, float]], gpus: float) -> float:
    if gpus:
        per_gpu = min((node.get("CPU", 0.0) / node["GPU"] * gpus for node in nodes if node.get("GPU")), default=1.0)
        return float(max(1, min(MAX_CPUS_PER_GPU, int(per_gpu))))
    return float(max(1, int(_most(nodes, "CPU")) // TRIALS_PER_CPU_NODE))


def _most(nodes: list[dict[str, float]], kind: str) -> float:
    return max((node.get(kind, 0.0) for node in nodes), default=0.0)


def slots(node: dict[str, float], request: dict[str, float]) -> int:
    """How many trials a node has room for."""
    return min(int(node.get(kind, 0.0) / amount) for kind, amount in request.items() if amount)


def has_free_slot(request: dict[str, float], running: int) -> bool:
    """Whether the cluster, as it is now, has room for one more trial beside those that run."""
    return running < sum(slots(node, request) for node in live_nodes())


def as_ray_options(request: dict[str, float]) -> dict[str, Any]:
    """The request in the words of `ray.remote`."""
    return {"num_cpus": request["CPU"], "num_gpus": request["GPU"]}

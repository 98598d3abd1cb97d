"""What comes before a run's first trial: start weights, decoded slices, learning rates.

In: a space, shards, a run folder, an open Ray session. Out: what workers must know, and files in the run folder.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ichsearch.errors import ClusterError
from ichsearch.files import read_json
from ichsearch.model.weights import StartWeights, obtain_weights
from ichsearch.search import events
from ichsearch.search.events import Event
from ichsearch.search.resources import Request, as_ray_options, of_one_process, processes_of, slots
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.search.worker import Assignment, find_curve, gpu_memory_mb, warm_cache
from ichsearch.shards.nodes import is_lost, live_nodes
from ichsearch.shards.preprocess import Progress
from ichsearch.shards.ray_session import fan_out
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_finder import LrCurve

Curves = dict[InputConfig, LrCurve]


@dataclass(frozen=True)
class Watchers:
    """What a run calls: events, progress of long stages, and writers of the room to the right."""

    tell: Callable[[Event], None]
    progress: Progress
    write_leaderboard: Callable[[RunFolder], None]
    draw_curve: Callable[[LrCurve, Path], None]


def start_weights(space: Space, folder: RunFolder, backbones: Iterable[str]) -> dict[str, StartWeights]:
    """What each backbone starts from; fetched once for the whole life of a run."""
    source = Path(space.weights_folder) if space.weights_folder else None
    return {name: obtain_weights(name, space.pretrained, folder.weights, source, space.sizes()) for name in backbones}


def assignment_of(
    space: Space, folder: RunFolder, shards: str | Path, whole: Request, weights: dict[str, StartWeights]
) -> Assignment:
    """What workers must know."""
    paths = {name: start.path for name, start in weights.items()}
    limit_s = inf if space.trial_limit_s is None else space.trial_limit_s
    threads, processes = int(whole["CPU"]), processes_of(whole)
    return Assignment(shards, folder, paths, threads, space.lr_finder.steps, limit_s, processes=processes)


def warm_nodes(sizes: Iterable[int], shards: str | Path, whole: Request) -> float | None:
    """Decode the slices at these sizes on every node that can run a trial; memory of the smallest GPU, in 1e6 bytes.

    A node that goes meanwhile is left out.
    """
    nodes = [node for node in live_nodes() if slots(node["Resources"], whole)]
    wanted = list(sizes)
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:  # all nodes at once: a large set takes each of them minutes
        found = pool.map(lambda node: _warm_node(node, wanted, shards), nodes)
        return min((size for of_node in found for size in of_node), default=None)


def _warm_node(node: Mapping[str, Any], sizes: Iterable[int], shards: str | Path) -> list[float]:
    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    gpus = range(int(node["Resources"].get("GPU", 0.0)))
    try:
        list(fan_out(warm_cache, sizes, shards, scheduling_strategy=here))
        return [size for size in fan_out(gpu_memory_mb, gpus, scheduling_strategy=here) if size]
    except ClusterError:
        if is_lost(node["NodeID"]):
            return []
        raise


def curves_of(folder: RunFolder, configs: Iterable[InputConfig]) -> Curves:
    """The LR finder's curves that a run has for these configurations."""
    paths = {config: folder.curve(config) for config in configs}
    return {config: LrCurve.model_validate(read_json(path)) for config, path in paths.items() if path.is_file()}


def seen_mb(curves: Curves) -> dict[str, float]:
    """The most GPU memory that the LR finder saw each backbone take; one that it failed with gets none."""
    seen: dict[str, float] = {}
    for config, curve in curves.items():
        seen[config.backbone] = max(seen.get(config.backbone, 0.0), inf if curve.memory_mb is None else curve.memory_mb)
    return seen


def lr_stage(space: Space, assignment: Assignment, whole: Request, watchers: Watchers) -> Curves:
    """The LR finder's curve of every configuration that needs one; those of an earlier start are kept.

    It has one GPU where a trial has several: a step's gradient is the same on one as on many.
    """
    configs = space.input_configs()
    curves = {config: curve for config in configs if (curve := _known_curve(config, assignment))}
    missing = [config for config in configs if config not in curves]
    if missing:
        watchers.tell(events.lr_stage(len(missing)))
    for curve in fan_out(find_curve, missing, assignment, **as_ray_options(of_one_process(whole))):
        curves[curve.config] = curve
        assignment.folder.refresh(assignment.folder.lr_finder)
        watchers.draw_curve(curve, assignment.folder.curve(curve.config).with_suffix(".png"))
        watchers.tell(events.lr(curve))
    return curves


def _known_curve(config: InputConfig, assignment: Assignment) -> LrCurve | None:
    """The curve of an earlier start, unless it failed, or the model starts from other weights now."""
    path = assignment.folder.curve(config)
    curve = LrCurve.model_validate(read_json(path)) if path.is_file() else None
    if curve is None or curve.failure or curve.config != config:
        return None
    return curve if curve.pretrained == (assignment.weights[config.backbone] is not None) else None

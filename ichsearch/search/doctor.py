"""What could keep a run from working on a cluster, found out before it starts: `ichsearch doctor`.

In: an address, where shards are, where a run folder is or shall be. Out: a table of checks, each ok, a warning, or
failed with a remedy.
"""

import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import RayTaskError

from ichsearch.errors import ClusterError, ConfigError, IchsearchError
from ichsearch.model.weights import whereabouts
from ichsearch.patience import giving_up_after
from ichsearch.search.doctor_probe import PATIENCE_S, Found, Probe, probe_clock, probe_node, reason
from ichsearch.search.run_folder import PROBE
from ichsearch.shards.address import choose_address, holds_token, is_loopback, is_open, token_path
from ichsearch.shards.manifest import read_manifest
from ichsearch.shards.nodes import answer, ask_nodes, live_nodes, name_of, node_versions, own_versions, send
from ichsearch.shards.nodes import version_faults as faults
from ichsearch.shards.ray_session import ray_session
from ichsearch.storage import Folder, open_folder

BACKBONES: Final = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
"""Those of `architectures.yaml`."""
MOST_SKEW_S: Final = 2.0
OTHER_OUT: Final = "give another --out"
GB: Final = 1e9
Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; a failed one ends the command with `exit_code`."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    exit_code: int = ClusterError.exit_code


def examine(address: str | None, data: str | None, out: str | None) -> Iterator[Check]:
    """All checks, each as soon as it is known; those of a cluster that cannot be reached are one that failed.

    Raises:
        ConfigError: a location is none that ichsearch takes.
    """
    shards, run_folder = (None if place is None else open_folder(place) for place in (data, out))
    yield _token_file()
    try:
        chosen = choose_address(address)
        with ray_session(address, checked=False) as dashboard:
            where = "this machine" if chosen.is_private else chosen.where
            yield Check("cluster", "ok", f"{where} ({chosen.why})")
            yield from _cluster(dashboard.removeprefix("http://"))
            with giving_up_after(PATIENCE_S):
                yield from _nodes(shards, run_folder)
    except ClusterError as error:
        yield Check("cluster", "failed", str(error))
    yield from _weights()


def exit_code(checks: list[Check]) -> int:
    """0 if nothing failed, else that of the worst: 6 for the cluster, 4 for the rest."""
    return max((check.exit_code for check in checks if check.status == "failed"), default=0)


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The checks for a program."""
    return {"exit_code": exit_code(checks), "checks": [asdict(check) for check in checks]}


def _token_file() -> Check:
    path = token_path()
    if not holds_token(path):
        return Check("token file", "ok", "none yet: a private cluster writes one")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check("token file", "failed", f"mode {mode:04o}: others can read it", f"chmod 600 {path}")
    return Check("token file", "ok", f"mode {mode:04o}")


def _cluster(dashboard: str) -> Iterator[Check]:
    token = is_token_auth_enabled()
    yield (
        Check("token authentication", "ok", "on")
        if token
        else Check(
            "token authentication",
            "warning",
            "off: whoever reaches a node can run code on it",
            "start all nodes with RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate`)",
        )
    )
    yield dashboard_check(dashboard, is_open=bool(dashboard) and is_open(dashboard))
    found = node_versions()
    wrong, own = faults(found), own_versions()
    text = ", ".join(f"{name} {version}" for name, version in own._asdict().items())
    yield Check("versions", "ok", f"{text} on all nodes") if not wrong else _versions(wrong)
    yield room_check([node["Resources"] for node in live_nodes()])


def room_check(nodes: Sequence[Mapping[str, float]]) -> Check:
    """Whether any of the nodes, by their resources, offers what a trial takes."""
    if not any(node.get("CPU", 0.0) >= 1 for node in nodes):
        remedy = "start a worker node (`ray start --address=HEAD:6379`), or ask the autoscaler for some"
        return Check("room for trials", "failed", "no node offers a CPU", remedy)
    totals = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    return Check("room for trials", "ok", "{:g} CPUs, {:g} GPUs in all".format(*totals))


def _versions(wrong: list[str]) -> Check:
    return Check(
        "versions", "failed", "; ".join(line.partition("; ")[0] for line in wrong), wrong[0].partition("; ")[2]
    )


def dashboard_check(dashboard: str, *, is_open: bool) -> Check:
    """Whether strangers can use the dashboard at host:port ("": none)."""
    if not dashboard:
        return Check("dashboard", "ok", "none")
    if is_loopback(dashboard):
        return Check(
            "dashboard", "ok", f"{dashboard}, of this machine alone" + ("" if is_open else ", asks for a token")
        )
    if is_open:
        remedy = "RAY_AUTH_MODE=token on all nodes, or --dashboard-host 127.0.0.1 on the head"
        return Check("dashboard", "failed", f"{dashboard} lets anybody run code on the cluster", remedy)
    return Check("dashboard", "ok", f"{dashboard}, asks for a token")


def _nodes(data: Folder | None, out: Folder | None) -> Iterator[Check]:
    n_bytes, readable = _bytes_of(data)
    probe, writable = _new_probe(out)
    answers: dict[str, Any] = {}
    try:
        yield from (check for check in (readable, writable) if check)
        answers = ask_nodes(probe_node, data, probe)
        for node in live_nodes():
            name = name_of(node)
            yield from _node(name, node["Resources"], answers.get(name), data, probe, n_bytes)
            yield clock_check(name, _skew_s(node))
    finally:
        _remove(probe, [found.node for found in answers.values() if isinstance(found, Found)])


def _bytes_of(data: Folder | None) -> tuple[int, Check | None]:
    """What the decoded slices take, and whether this machine can read the shards."""
    if data is None:
        return 0, None
    try:
        manifest = read_manifest(data.location)
    except (IchsearchError, OSError) as error:
        return 0, Check("data, this machine", "failed", str(error), "check --data", ConfigError.exit_code)
    slices = sum(shard.slices for shard in manifest.shards)
    found = f"{slices} slices at {manifest.settings.size} px"
    return slices * manifest.settings.size**2 * 2, Check("data, this machine", "ok", found)


def _new_probe(out: Folder | None) -> tuple[Probe | None, Check | None]:
    """A file in what there is of the run folder, beside which every node tries to write."""
    if out is None:
        return None, None
    probe = Probe(_what_there_is(out), f"{PROBE}{uuid.uuid4().hex}")
    if (place := probe.folder.local_path()) and not place.is_dir():
        return None, Check("out, this machine", "failed", f"{place} is a file", OTHER_OUT, ConfigError.exit_code)
    try:
        probe.folder.write_bytes(probe.name, b"driver", durable=False)
    except (IchsearchError, OSError) as error:
        fault = f"it cannot be written: {reason(error)}"
        return None, Check("out, this machine", "failed", fault, OTHER_OUT, ConfigError.exit_code)
    return probe, Check("out, this machine", "ok", "written and removed")


def _what_there_is(folder: Folder) -> Folder:
    """The folder; of one that is not on the disk yet, what it would be made in."""
    path = folder.local_path()
    return folder if path is None else open_folder(next(above for above in (path, *path.parents) if above.exists()))


def _remove(probe: Probe | None, nodes: list[str]) -> None:
    """Remove what was written; on a disk also by nodes whose answer did not come."""
    if probe is None:
        return
    path = probe.folder.local_path()
    names = map(probe.of, nodes) if path is None else (found.name for found in path.glob(f"{probe.name}-*"))
    for name in (probe.name, *names):
        with suppress(IchsearchError, OSError):
            probe.folder.remove(name)


def _node(
    name: str, resources: Mapping[str, float], found: Any, data: Folder | None, probe: Probe | None, n_bytes: int
) -> Iterator[Check]:
    have = (
        f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, {resources.get('memory', 0) / GB:.1f} GB "
        f"of memory, {resources.get('object_store_memory', 0) / GB:.1f} GB of object store"
    )
    if not isinstance(found, Found):
        cause = found.cause if isinstance(found, RayTaskError) else found
        why = f"{have}; it cannot work: {type(cause).__name__}: {_first_line(cause)}"
        yield Check(f"node {name}", "failed", why, "install ichsearch there as it is here; see `ray status`")
        return
    yield Check(f"node {name}", "ok", have)
    yield from node_checks(name, resources, found)
    yield cache_check(name, found, n_bytes)
    if data is not None:
        yield _storage("data", name, found.data_fault, "read", "--data")
    if probe is not None:
        yield _storage("out", name, found.out_fault or _unseen(probe, found.node), "write to", "--out")


def _unseen(probe: Probe, node: str) -> str:
    """Why what a node has written is not its run folder; "" if it is."""
    try:
        return "" if probe.folder.exists(probe.of(node)) else "what it writes is not seen here"
    except (IchsearchError, OSError) as error:
        return reason(error)


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]


def _storage(what: str, name: str, fault: str, do: str, option: str) -> Check:
    if not fault:
        return Check(f"{what}, node {name}", "ok", f"it can {do} it" if what == "data" else "written and removed")
    remedy = f"{option} must be on storage that all nodes share, at one path, or in a store to which they have access"
    return Check(f"{what}, node {name}", "failed", fault, remedy, ConfigError.exit_code)


def node_checks(name: str, resources: Mapping[str, float], found: Found) -> Iterator[Check]:
    """Whether a node's GPUs, shared memory and settings are in order."""
    offered = int(resources.get("GPU", 0))
    if found.gpus < offered:
        seen = f"torch sees {found.gpus} of {offered}"
        yield Check(f"GPUs, node {name}", "failed", seen, "install a torch with CUDA there, check nvidia-smi")
    elif found.gpus > offered:
        seen = f"torch sees {found.gpus}, Ray offers {offered}"
        yield Check(f"GPUs, node {name}", "warning", seen, "start the node with --num-gpus")
    else:
        yield Check(f"GPUs, node {name}", "ok", f"torch sees {found.gpus} of {offered}")
    store = resources.get("object_store_memory", 0)
    sizes = f"{found.shm_bytes / GB:.1f} GB in /dev/shm, {store / GB:.1f} GB of Ray's object store"
    remedy = "in Docker: --shm-size; or ray start --object-store-memory" if found.shm_bytes < store else ""
    yield Check(f"shared memory, node {name}", "warning" if remedy else "ok", sizes, remedy)
    if found.usage_stats:
        remedy = "start the nodes with RAY_USAGE_STATS_ENABLED=0"
        yield Check(f"usage statistics, node {name}", "warning", "on: Ray reports to its makers", remedy)
    else:
        yield Check(f"usage statistics, node {name}", "ok", "off")


def cache_check(name: str, found: Found, n_bytes: int) -> Check:
    """Whether a node's cache holds the decoded slices; 0: of no data in particular."""
    room = min(found.quota_bytes, found.used_bytes + found.free_bytes)
    text = (
        f"{found.used_bytes / GB:.1f} of {found.quota_bytes / GB:.1f} GB used, {found.free_bytes / GB:.1f} GB free on "
        "its disk" + (f", {n_bytes / GB:.1f} GB needed" if n_bytes else "")
    )
    if room >= n_bytes and room > 0:
        return Check(f"cache, node {name}", "ok", text)
    remedy = "slices will be read anew each epoch; ICHSEARCH_CACHE on a larger disk, or a higher ICHSEARCH_CACHE_BYTES"
    return Check(f"cache, node {name}", "warning", text, remedy)


def clock_check(name: str, skew_s: float | None) -> Check:
    """Whether a node's clock goes like this machine's; None: it could not be asked."""
    if skew_s is None:
        return Check(f"clock, node {name}", "failed", "it did not answer", "see `ray status`")
    text = f"{skew_s:+.1f} s from this machine's"
    if abs(skew_s) > MOST_SKEW_S:
        return Check(f"clock, node {name}", "warning", text, "set the clocks by NTP")
    return Check(f"clock, node {name}", "ok", text)


def _skew_s(node: Mapping[str, Any]) -> float | None:
    """How far a node's clock is ahead, by the quickest of a few answers."""
    tries: list[tuple[float, float]] = []
    for _ in range(3):
        before_s = time.time()
        there_s = answer(send(node, probe_clock))
        after_s = time.time()
        if isinstance(there_s, float):
            tries.append((after_s - before_s, there_s - (before_s + after_s) / 2))
    return min(tries)[1] if tries else None


def _weights() -> Iterator[Check]:
    for backbone in BACKBONES:
        place = whereabouts(backbone)
        if place == "nowhere":
            remedy = "give weights_folder, or let it train from scratch (pretrained: auto or no)"
            yield Check(f"weights, {backbone}", "warning", "neither cached nor does the hub answer", remedy)
        else:
            yield Check(f"weights, {backbone}", "ok", "cached" if place == "cached" else "the hub answers")

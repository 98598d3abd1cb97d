"""The runs of a paper file, one after the other, each in a run folder of its own below the paper's.

In: a `Paper`, shards, a folder. Out: `<run>/`, ordinary run folders; `paper.json`, which says what belongs to what.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ichsearch.errors import ConfigError, NoTrialFinishedError
from ichsearch.files import read_json, write_json
from ichsearch.labels import ANY
from ichsearch.search import events
from ichsearch.search.default_data import phantom_shards
from ichsearch.search.lease import lease
from ichsearch.search.paper import Length, Paper, PaperRun
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.runner import Outcome, run_search
from ichsearch.search.sections import Section
from ichsearch.search.stages import Watchers
from ichsearch.shards.address import choose_address
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.shards.ray_session import ray_session

PLAN: Final = "paper.json"
PHANTOM: Final = "phantom"
PAPERS_POSITIVES: Final = 97_102
"""Slices with haemorrhage that the paper's notebooks count in RSNA 2019's first training set."""


class PlannedRun(Section):
    """A run of a paper, as its page needs to know it."""

    name: str
    entry: str
    reported: float
    leaky: bool
    task: str
    paper: Length
    here: Length


class Plan(Section):
    """Which runs a paper's folder holds."""

    name: str
    scale: float
    fingerprint: str
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class PaperWatchers:
    """What is called while the runs of a paper go on: as for one run, and when one has ended."""

    of_run: Callable[[RunFolder], Watchers]
    tell: Callable[[events.Event], None]
    ended: Callable[[Outcome], None]


def run_paper(
    paper: Paper,
    data: Path | None,
    root: Path,
    *,
    address: str | None,
    command: Sequence[str],
    watchers: PaperWatchers,
) -> Path:
    """Run, or go on with, all runs of a paper below `root`; one that fails does not end the others.

    Returns:
        The shards that they were run on.

    Raises:
        ConfigError: the folder holds something else.
        NoTrialFinishedError: every run failed.
        IchsearchError: what `run_search` raises.
    """
    root = root.resolve()
    _refuse_foreign(root)
    if data is not None:
        read_manifest(data)  # before anything is written
    watchers.tell(events.connecting(choose_address(address)))
    with lease(root), ray_session(address):
        first = paper.runs[0].space
        progress = watchers.of_run(RunFolder(root)).progress
        shards = data or phantom_shards(root / PHANTOM, first.phantom, address, progress)
        manifest = read_manifest(shards)
        plan = plan_of(paper, manifest.fingerprint)
        _keep(root, plan)
        watchers.tell(events.paper(paper, root, not_reproduced(plan, manifest)))
        finished = [_run(paper, number, shards, root, command, watchers) for number in range(len(paper.runs))]
    if not any(finished):
        raise NoTrialFinishedError(
            f"at least one run must finish, but all {len(finished)} failed; see */trials/*/error.txt in {root}"
        )
    return shards


def _run(paper: Paper, number: int, shards: Path, root: Path, command: Sequence[str], watchers: PaperWatchers) -> bool:
    run = paper.runs[number]
    watchers.tell(events.paper_run(run, number + 1, len(paper.runs)))
    folder = RunFolder(root / run.name)
    own = watchers.of_run(folder)
    try:
        outcome = run_search(
            run.space,
            shards,
            folder,
            address=None,  # it joins the open session
            extend=False,
            command=command,
            watchers=replace(own, tell=lambda event: None if event.kind == "connecting" else own.tell(event)),
        )
    except NoTrialFinishedError:  # its trial and the page tell why
        return False
    watchers.ended(outcome)
    return True


def _refuse_foreign(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--out must be a folder, but {root} is a file; give another --out")
    ours = {"run.lock", "lease.json", PHANTOM}
    if root.is_dir() and not (root / PLAN).is_file() and {path.name for path in root.iterdir()} - ours:
        raise ConfigError(f"--out must be a new folder or that of a paper file, but {root} holds other files")


def _keep(root: Path, plan: Plan) -> None:
    """Write the plan, or hold it against the one that is there."""
    if (root / PLAN).is_file():
        known = read_plan(root)
        changed = [name for name in Plan.model_fields if getattr(known, name) != getattr(plan, name)]
        if changed:
            raise ConfigError(f"{root} holds other runs ({', '.join(changed)} differ); give another --out")
    write_json(root / PLAN, plan.model_dump())


def read_plan(root: Path) -> Plan:
    """What a paper's folder holds."""
    return Plan.model_validate(read_json(root / PLAN), strict=False)


def plan_of(paper: Paper, fingerprint: str) -> Plan:
    """What is kept of a paper file beside the spaces of its runs."""
    return Plan(name=paper.name, scale=paper.scale, fingerprint=fingerprint, runs=tuple(map(_planned, paper.runs)))


def _planned(run: PaperRun) -> PlannedRun:
    return PlannedRun(
        name=run.name, entry=run.entry, reported=run.reported, leaky=run.leaky, task=run.space.task,
        paper=run.paper, here=run.here,
    )  # fmt: skip


def not_reproduced(plan: Plan, manifest: Manifest) -> list[str]:
    """Why the runs cannot reproduce the paper's figures, in sentences; none if they may."""
    reasons = []
    if any(run.here != run.paper for run in plan.runs):
        how = f"scaled by {plan.scale:g}" if plan.scale < 1 else "changed by options"
        reasons.append(
            f"The runs are {how}: other epochs, batches or images than in the paper, none of whose figures they can "
            "confirm or refute."
        )
    counts = manifest.counts
    if counts.positives[ANY] < PAPERS_POSITIVES:
        reasons.append(
            f"The data are not RSNA 2019's full training set: {counts.positives[ANY]:,} slices with haemorrhage of "
            f"{counts.patients:,} patients, where the paper had {PAPERS_POSITIVES:,} slices."
        )
    return reasons

"""What happens in a run, for a person and for a program.

In: facts of a run. Out: an `Event`: a line of text, and the JSON object that `ichsearch run --json` prints for it.

Each object stands on a line of its own and says in `event` what it is; times are in seconds:

- `connecting`: `address` (null: a private cluster on this machine) and `why` that one; Ray takes some seconds;
- `opened`: `run`, `folder`, `trials` and `epochs` as asked for, `dashboard` (address of Ray's; "" without one);
- `resumed`: `done`, `trials` (an earlier start of this run left so many);
- `data`: `training`, `validation`, `test`, each with `slices`, `patients`, `positive` (slices with haemorrhage), and
  `leaky` (split by slice: the same patients on both sides);
- `weights`: `origins`, of each backbone what it starts from;
- `lr_stage`: `count` of learning rates that are about to be found;
- `lr`: `backbone`, `batch_size`, `size`, `channels`, `lr`, `fallback` (the curve suggested nothing), `failure`;
- `started`: `trial`, `parent` (null, or the trial that it was promoted from), `epochs` (its rung), `parameters`, `lr`;
- `waiting`: `cpus`, `gpus` (of a trial that no live node could hold: the run waits for one to join);
- `again`: `trial`, `reason` (`node leaves`: it was given notice, and the trial wrote a checkpoint; `node lost`; or
  `crashed`, `out_of_memory`, to be tried again), `node` (where that was; null: unknown): the trial goes on elsewhere;
- `avoided`: `node` (trials only crash there: none is sent to it any more);
- `finished`: `trial`, `metric`, `score`, `best_epoch`, `seconds`, `images_per_s`, and how the run stands;
- `failed`: `trial`, `reason`, and how the run stands;
- `confirming`: `trials` (the best, about to be replayed), `seeds`, `folds`, `due` (replays that are missing), `eta_s`;
- `replayed`: `replay`, `trial`, `seed`, `fold`, `status`, `reason`, `metric`, `score` (null of a failed one), `done`,
  `total`;
- `test_fold`: `opening` (it is opened now, and that was noted), `openings` (how many times so far), `first` and `last`
  (when), `trials` (of the last);
- `paper`: `name`, `folder`, `runs` (names, in order), `scale`, `reproduction` (whether it may be one), `why` not;
- `paper_run`: `run`, `number`, `runs`, `leaky`, `reported` (the paper's accuracy); the events of that run follow;
- `done`, the last: `exit_code`, `reason` (why the run ended), `leaderboard` (path or URI), `metric`, and how the run
  stands unless it ended before that was known (a confirmation never says it); `exit_code` is 130 for a run that Ctrl+C
  has ended, 143 for one that SIGTERM has, `reason` the message of a failure.

How the run stands: `best` (null, or `trial` and `score`), `counts` (`finished`, `failed`, `running`, `trials`: how many
there may be), `spent_s`, `time_s` (budget or null), `device_s`, `device_limit_s` (likewise), `eta_s`.
A key may be added; none is taken away.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ichsearch.data.cache import SliceSet
from ichsearch.data.split import Split
from ichsearch.search import console
from ichsearch.search.book import Standing, Started
from ichsearch.search.openings import Opening
from ichsearch.search.paper import Paper, PaperRun
from ichsearch.search.resources import Request
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.search.sections import Confirm
from ichsearch.search.space import Space
from ichsearch.shards.address import Address
from ichsearch.train.lr_finder import LrCurve
from ichsearch.train.trial import TrialResult

Kind = Literal[
    "connecting", "opened", "resumed", "data", "weights", "lr_stage", "lr", "started", "waiting", "again", "avoided",
    "finished", "failed", "confirming", "replayed", "test_fold", "paper", "paper_run", "done",
]  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    kind: Kind
    line: str
    facts: dict[str, Any]
    standing: Standing | None = None

    def as_json(self) -> str:
        """The event on one line."""
        standing = _facts_of(self.standing) if self.standing else {}
        return json.dumps({"event": self.kind, **self.facts, **standing}, allow_nan=False)


def connecting(address: Address) -> Event:
    """Ray is started, or connected to."""
    where = None if address.is_private else address.where
    return Event("connecting", console.connecting(address), {"address": where, "why": address.why})


def opened(space: Space, folder: RunFolder, dashboard: str) -> Event:
    """A run begins or goes on."""
    facts = {"run": space.name, "folder": str(folder), "trials": space.trials, "epochs": space.epochs}
    return Event("opened", console.opening(space, folder, dashboard), {**facts, "dashboard": dashboard})


def resumed(standing: Standing) -> Event:
    """An earlier start of this run left trials that have ended."""
    done = standing.finished + standing.failed
    return Event("resumed", console.going_on(standing), {"done": done, "trials": standing.trials})


def data(slices: SliceSet, split: Split) -> Event:
    """What the run trains and judges on."""
    parts = console.data_parts(slices, split)
    facts = {part.name: {"slices": part.slices, "patients": part.patients, "positive": part.positive} for part in parts}
    return Event("data", console.data_summary(parts, slices, split), {**facts, "leaky": split.leaks})


def weights(origins: dict[str, str]) -> Event:
    """What the backbones start from."""
    return Event("weights", console.weights_summary(origins), {"origins": origins})


def lr_stage(count: int) -> Event:
    """The LR finder begins."""
    return Event("lr_stage", console.lr_opening(count), {"count": count})


def lr(curve: LrCurve) -> Event:
    """A suggestion of the LR finder."""
    config = curve.config.model_dump(include={"backbone", "batch_size", "size", "channels"})
    facts = {**config, "lr": curve.lr, "fallback": curve.guarded, "failure": curve.failure}
    return Event("lr", console.lr_line(curve), facts)


def started(trial: Started) -> Event:
    """A trial begins or goes on."""
    record = trial.record
    facts = {"trial": record.trial, "parent": record.parent, "epochs": trial.config.epochs, "lr": trial.config.lr}
    return Event("started", console.started_line(trial), {**facts, "parameters": record.parameters})


def waiting(request: Request) -> Event:
    """No node of the cluster could hold even one trial, and that for long."""
    return Event("waiting", console.waiting_line(request), {"cpus": request["CPU"], "gpus": request["GPU"]})


def again(trial: Started, reason: str, node: str | None) -> Event:
    """A trial goes on from its checkpoint after its node or its worker was lost."""
    facts = {"trial": trial.record.trial, "reason": reason, "node": node}
    return Event("again", console.again_line(trial, reason, node), facts)


def avoided(node: str) -> Event:
    """Trials keep away from a node from now on."""
    return Event("avoided", console.avoided_line(node), {"node": node})


def ended(trial: Started, result: TrialResult | None, reason: str, standing: Standing, metric: str) -> Event:
    """A trial has finished, or failed for a reason."""
    line = console.ended_line(trial, result, reason, standing, metric)
    facts: dict[str, Any] = {"trial": trial.record.trial}
    if result is None:
        return Event("failed", line, {**facts, "reason": reason}, standing)
    facts |= {"metric": metric, "score": result.score, "best_epoch": result.best_epoch}
    facts |= {"seconds": result.seconds, "images_per_s": result.images_per_s}
    return Event("finished", line, facts, standing)


def confirming(trials: Sequence[str], plan: Confirm, due: int, eta_s: float) -> Event:
    """The best trials are about to be replayed."""
    facts = {"trials": list(trials), "seeds": plan.seeds, "folds": plan.folds, "due": due, "eta_s": eta_s}
    return Event("confirming", console.confirming(trials, plan, due, eta_s), facts)


def replayed(
    replay: ReplayRecord, result: TrialResult | None, searched: float, metric: str, done: int, total: int
) -> Event:
    """A replay has ended, of a trial that had the score `searched` in the search."""
    line = console.replayed_line(replay, result, searched, metric, f"{done} of {total}")
    facts = {"replay": replay.name, **replay.model_dump(), "metric": metric, "score": result.score if result else None}
    return Event("replayed", line, {**facts, "done": done, "total": total})


def test_fold(openings: Sequence[Opening], *, is_opening: bool) -> Event:
    """The test fold is opened now, or was before."""
    first, last = openings[0], openings[-1]
    facts = {"opening": is_opening, "openings": len(openings), "trials": last.trials}
    facts |= {"first": first.when.isoformat(), "last": last.when.isoformat()}
    return Event("test_fold", console.test_fold(openings, is_opening=is_opening), facts)


def paper(runs: Paper, folder: Path, why: Sequence[str]) -> Event:
    """The runs of a paper begin or go on; `why` they are no reproduction."""
    names = [run.name for run in runs.runs]
    facts = {"name": runs.name, "folder": str(folder), "runs": names, "scale": runs.scale}
    return Event("paper", console.paper_opening(runs, folder, why), {**facts, "reproduction": not why, "why": [*why]})


def paper_run(run: PaperRun, number: int, runs: int) -> Event:
    """The next run of a paper."""
    facts = {"run": run.name, "number": number, "runs": runs, "leaky": run.leaky, "reported": run.reported}
    return Event("paper_run", console.paper_run_line(run, number, runs), facts)


def finished(leaderboard: str | Path, metric: str, standing: Standing, more: str) -> Event:
    """The run has ended by itself; `more` is the command that goes on with it."""
    return done(leaderboard, metric, standing, console.closing(standing, leaderboard, more), 0, standing.why_done)


def confirmed(leaderboard: str | Path, metric: str) -> Event:
    """The best trials are confirmed."""
    return done(leaderboard, metric, None, f"leaderboard: {leaderboard}", 0, "confirmed")


def done(
    leaderboard: str | Path, metric: str, standing: Standing | None, line: str, exit_code: int, reason: str
) -> Event:
    """The run has ended; `standing` is the last that is known, None before the first trial."""
    facts = {"exit_code": exit_code, "reason": reason, "leaderboard": str(leaderboard), "metric": metric}
    return Event("done", line, facts, standing)


def _facts_of(standing: Standing) -> dict[str, Any]:
    counts = {"finished": standing.finished, "failed": standing.failed, "running": standing.running}
    return {
        "best": {"trial": standing.best[0], "score": standing.best[1]} if standing.best else None,
        "counts": counts | {"trials": standing.trials},
        "spent_s": standing.spent_s,
        "time_s": standing.time_s,
        "device_s": standing.device_s,
        "device_limit_s": standing.device_limit_s,
        "eta_s": standing.eta_s,
    }

"""What the search knows and decides: which trial comes next, and what is learnt from one that ended.

In: a space and a journal. Out: trials to run; told results. No Ray here: the same book serves any executor.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from ichsearch.search.budget import Budget, Costs, Left, Step
from ichsearch.search.combinations import MOST_LISTED, allowed
from ichsearch.search.drawing import Configuration, Drawn
from ichsearch.search.history import Entry, History, State
from ichsearch.search.journal import DRIVEN, OUTCOME, Journal, Place
from ichsearch.search.keeper import Keeper
from ichsearch.search.proposals import Proposal, Proposer
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space import Space
from ichsearch.search.strategy import Promotion, Strategy
from ichsearch.search.trial_configs import TrialConfigs, rounded
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.metrics import LOWER_IS_BETTER, better
from ichsearch.train.trial import TrialResult, read_result

FAILED: Final = "failed"
ABANDONED: Final = "abandoned"
"""How the reason of a trial begins that says nothing about its configuration."""
WAIT: Final = "wait"
"""Nothing to hand out until a running trial has ended."""
Done = Literal["", "trials", "time", "device_hours", "exhausted"]
REASONS: Final[dict[Done, str]] = {
    "": "",
    "trials": "all trials are done",
    "time": "the time budget has no room for another trial",
    "device_hours": "the budget of device hours has no room for another trial",
    "exhausted": "every configuration of the space has been tried",
}


@dataclass(frozen=True)
class Started:
    """A trial that was handed out: its record, and its place in the journal."""

    record: TrialRecord
    config: TrialConfig
    place: Place


@dataclass(frozen=True)
class Standing:
    """How a run stands; seconds are wall clock, device seconds are summed over trials. None: no limit, or unknown.

    Attributes:
        done: what has ended the run; "" while it goes on.
    """

    finished: int
    failed: int
    running: int
    trials: int
    best: tuple[str, float] | None
    spent_s: float
    time_s: float | None
    device_s: float
    device_limit_s: float | None
    eta_s: float | None
    done: Done

    @property
    def why_done(self) -> str:
        """What has ended the run, in words."""
        return REASONS[self.done]


LIMIT: Final = 20.0
"""Of what trials like it took, or the LR finder's speed promises: however busy a machine is, a longer trial hangs."""
LEAST_LIMIT_S: Final = 2 * 3600.0
"""A node may have to decode its slices first."""


class Book:
    """Decides, and tells the journal; every step is in the journal before it is acted on."""

    def __init__(
        self,
        space: Space,
        folder: RunFolder,
        storage: BaseStorage,
        *,
        suggest_lr: Callable[[InputConfig], float],
        weights_of: dict[str, str],
        images_per_s: Callable[[TrialConfig], float | None] = lambda config: None,
        train_slices: int = 1,
        devices_of: Callable[[TrialConfig], float] = lambda config: 1.0,
        check_lease: Callable[[], None] = lambda: None,
        began_s: float | None = None,
    ) -> None:
        self._space, self._folder, self._check_lease = space, folder, check_lease
        self._configs, self._weights_of = TrialConfigs(space, suggest_lr, weights_of), weights_of
        self._lower = space.metric in LOWER_IS_BETTER
        direction: Literal["minimize", "maximize"] = "minimize" if self._lower else "maximize"
        self._journal = Journal(storage, space.name, direction, folder.publish_journal)
        self._history, self._costs = History(space.rungs()), Costs(images_per_s, train_slices)
        self._budget = Budget(space.trials, space.time_s, _device_s(space), devices_of)
        eta = space.promotion.eta
        self._keeper = Keeper(folder, space.keep, space.rungs(), eta)
        self._strategy = Strategy(self._history, _proposer(space, self._history), space.rungs(), eta)
        self._trials: dict[str, Started] = {}
        self._since_s: dict[str, float] = {}
        self._device_s, self._driven_s = 0.0, self._journal.driven_s()
        self._done: Done = ""
        self._best: tuple[str, float] | None = None
        self._load()
        self._interrupted = [name for name, entry in self._history.entries.items() if entry.state == "running"]
        for name in self._history.entries.keys() - set(self._interrupted):
            folder.remove_checkpoint(name)
        self._start_s = time.monotonic() if began_s is None else began_s
        self._keeper.sweep(self._history, self._left().trials)

    def _load(self) -> None:
        """Learn what an earlier start of this run has left in the journal."""
        known = [(place, trial) for place, trial in self._journal.trials() if "trial" in trial.user_attrs]
        for place, trial in sorted(known, key=lambda item: int(item[1].user_attrs["trial"])):
            attributes = trial.user_attrs
            outcome = attributes.get(OUTCOME, attributes)
            config = TrialConfig.model_validate(attributes["config"])
            record = _record(attributes, config, trial.state)
            self._trials[record.trial] = Started(record, config, place)
            tells = not record.reason.startswith(ABANDONED)
            configuration = self._configs.replayed(config, record) if tells else None
            self._history.add(_entry(record, configuration, attributes.get("point")))
            if trial.state == TrialState.COMPLETE:
                self._learn(record.trial, trial.value, outcome["seconds"], outcome["epochs_trained"])
            elif trial.state.is_finished():
                self._history.end(record.trial, None)
                self._device_s += outcome["seconds"] * self._budget.devices_of(config)
            if not (self._folder.trial(record.trial) / "trial.json").is_file():
                self._folder.write_record(record)

    def next(self) -> Started | Literal["wait"] | None:
        """The next trial to run: interrupted ones first; None when the run is done."""
        self._check_lease()
        while self._interrupted:
            if (started := self._resumed(self._interrupted.pop(0))) is not None:
                return started
        left = self._left()
        decision = self._strategy.next(self._next_number(), left)
        if isinstance(decision, Promotion):
            return self._promoted(decision)
        if isinstance(decision, Proposal):
            return self._proposed(decision)
        if left.trials >= 1 and self._history.count("running"):
            return WAIT
        self._done = "trials" if left.trials < 1 else "exhausted" if decision == "exhausted" else left.lacking
        return None

    def _next_number(self) -> int:
        """Of a trial: the ids of a run rise, whatever was removed."""
        return 1 + max((int(name) for name in self._history.entries), default=-1)

    def _resumed(self, name: str) -> Started | None:
        """An interrupted trial as it was handed out; None for one that must not run again."""
        started = self._trials[name]
        known = self._folder.record(name)
        if known is not None and known.status == FAILED:  # a dead driver had nearly told it
            self.tell_failed(started, known.reason)
            return None
        if started.config.backbone not in self._weights_of:
            if (result := read_result(self._folder.trial(name))) is not None:
                self.tell_finished(started, result)
            else:
                self.tell_failed(started, f"{ABANDONED}: the extended space lacks its backbone")
            return None
        self._folder.write_record(started.record)
        self._since_s[name] = time.monotonic()
        return started

    def _proposed(self, proposal: Proposal) -> Started:
        drawn = proposal.configuration.drawn
        config = self._configs.config(drawn, self._space.rungs()[0])
        return self._start(config, self._configs.named(drawn), proposal.configuration, None, proposal.point)

    def _promoted(self, promotion: Promotion) -> Started:
        """A child of the parent's configuration; one that finds nothing to go on from restarts by itself."""
        parent = self._trials[promotion.parent.trial]
        before = parent.config.epochs if self._children_go_on() else 0
        config = parent.config.model_copy(update={"epochs": promotion.epochs, "epochs_before": before})
        assert promotion.parent.configuration is not None, "only trials of the space are promoted"
        return self._start(config, parent.record.parameters, promotion.parent.configuration, parent.record.trial, None)

    def _children_go_on(self) -> bool:
        """Whether a promoted trial is spared its parent's epochs: pieces of one cycle always are."""
        return self._configs.cycle_epochs is not None or self._space.promotion.child == "continue"

    def _start(
        self,
        config: TrialConfig,
        parameters: dict[str, Any],
        configuration: Configuration,
        parent: str | None,
        point: int | None,
    ) -> Started:
        factor = parameters.get("lr_factor")
        attributes = {
            "trial": f"{self._next_number():04d}",
            "config": config.model_dump(),
            "parameters": parameters,
            "epochs": config.epochs,
            "parent": parent,
            "weights": self._weights_of[config.backbone],
            "lr_suggestion": rounded(config.lr / factor) if factor else None,
            "point": point,
            **self._driven(),
        }
        place = self._journal.start(config.epochs, self._own_space(), configuration, attributes)
        record = _record(attributes, config, TrialState.RUNNING)
        started = self._trials[record.trial] = Started(record, config, place)
        self._history.add(_entry(record, configuration, point))
        self._folder.write_record(record)
        self._since_s[record.trial] = time.monotonic()
        return started

    def tell_finished(self, started: Started, result: TrialResult) -> None:
        """Learn a trial's score; the journal last, because what it knows as finished is never looked at again."""
        self._check_lease()
        name = started.record.trial
        self._ended(started, started.record.model_copy(update={"status": "finished"}))
        outcome = {"seconds": result.seconds, "epochs_trained": result.epochs_trained, "best_epoch": result.best_epoch}
        self._journal.finish(started.place, result.score, outcome | self._driven())
        self._learn(name, result.score, result.seconds, result.epochs_trained)
        self._keeper.sweep(self._history, self._left().trials)

    def tell_failed(self, started: Started, reason: str) -> None:
        """Learn that this configuration cannot be run: a violated constraint, which the sampler steers away from."""
        self._check_lease()
        seconds = time.monotonic() - self._since_s.get(started.record.trial, time.monotonic())
        self._ended(started, started.record.model_copy(update={"status": FAILED, "reason": reason}))
        self._journal.fail(started.place, {"reason": reason, "seconds": round(seconds, 3)} | self._driven())
        self._history.end(started.record.trial, None)
        self._device_s += seconds * self._budget.devices_of(started.config)
        self._keeper.sweep(self._history, self._left().trials)

    def limit_s(self, started: Started) -> float:
        """After how many seconds a trial is to end: the space's limit; else when it can only hang, inf if unknown."""
        if self._space.trial_limit_s is not None:
            return self._space.trial_limit_s
        expected_s = self._costs.seconds(started.config, [_own_step(started.config)])
        return float("inf") if expected_s is None else max(LEAST_LIMIT_S, LIMIT * expected_s)

    def hand_back(self, started: Started) -> None:
        """Take back a trial that could not run, and of which nothing was learnt: it is the next to be handed out."""
        self._since_s.pop(started.record.trial, None)
        self._interrupted.append(started.record.trial)
        self._done = ""

    def is_out_of_time(self) -> bool:
        """Whether the run's wall-clock budget is spent; the standing says so then."""
        if self._left().time_s > 0:
            return False
        self._done = "time"
        return True

    def _ended(self, started: Started, record: TrialRecord) -> None:
        self._folder.write_record(record)
        self._folder.remove_checkpoint(record.trial)
        self._trials[record.trial] = Started(record, started.config, started.place)

    def _learn(self, name: str, score: float | None, seconds: float, epochs: int) -> None:
        assert score is not None, "a finished trial has a score"
        self._history.end(name, score if self._lower else -score)
        config = self._trials[name].config
        self._costs.learn(config, seconds, epochs)
        self._device_s += seconds * self._budget.devices_of(config)
        self._since_s.pop(name, None)
        if better(self._space.metric, score, self._best[1] if self._best else None):
            self._best = (name, score)

    def _left(self) -> Left:
        """What is left of the budget now."""
        budget = self._budget
        running = [
            self._trials[name].config for name in self._since_s if self._history.entries[name].state == "running"
        ]
        promised_s = sum(
            (self._costs.seconds(config, [_own_step(config)]) or 0.0) * budget.devices_of(config) for config in running
        )
        return Left(
            trials=budget.trials - len(self._history.entries),
            time_s=(budget.time_s or float("inf")) - self._spent_s(),
            device_s=(budget.device_s or float("inf")) - self._device_s - promised_s,
            seconds=lambda made, steps: self._cost_s(made.drawn, steps),
            devices=lambda made: budget.devices_of(self._configs.config(made.drawn, self._space.epochs)),
        )

    def _cost_s(self, drawn: Drawn, steps: Sequence[Step]) -> float | None:
        if not self._children_go_on():
            steps = [(0, epochs) for _, epochs in steps]
        return self._costs.seconds(self._configs.config(drawn, self._space.epochs), steps)

    def keep_time(self) -> None:
        """Note how long the run has been driven; called about once a minute, since a driver may be killed."""
        self._check_lease()
        self._journal.note_driven(self._spent_s())

    def _driven(self) -> dict[str, float]:
        """How long the run has been driven, for the journal: the next start counts on from there."""
        return {DRIVEN: round(self._spent_s(), 3)}

    def _spent_s(self) -> float:
        return self._driven_s + time.monotonic() - self._start_s

    def standing(self) -> Standing:
        """How the run stands."""
        finished, failed = self._history.count("finished"), self._history.count("failed")
        spent_s = self._spent_s()
        missing = self._budget.trials - finished - failed
        eta_s = spent_s / (finished + failed) * missing if finished + failed else None
        if self._budget.time_s is not None:
            eta_s = min(eta_s if eta_s is not None else float("inf"), max(0.0, self._budget.time_s - spent_s))
        return Standing(
            finished=finished,
            failed=failed,
            running=self._history.count("running"),
            trials=self._space.trials,
            best=self._best,
            spent_s=spent_s,
            time_s=self._budget.time_s,
            device_s=self._device_s,
            device_limit_s=self._budget.device_s,
            eta_s=eta_s,
            done=self._done,
        )

    def _own_space(self) -> str:
        return self._space.model_dump_json(include={"parameters"})


def _proposer(space: Space, history: History) -> Proposer:
    return Proposer(
        space.draw,
        sorted(space.parameters),
        history,
        sampler=space.sampler,
        seed=space.seed,
        random_share=space.promotion.random_share,
        allowed=lambda made: space.allows(made.drawn) is None,
        first=space.first_trials,
        grid=space.grid() if space.strategy == "grid" else None,
        combinations=lambda: islice(
            allowed(space.parameters, space.constraints, space.task, space.parameters), MOST_LISTED
        ),
    )


def _device_s(space: Space) -> float | None:
    return None if space.device_hours is None else space.device_hours * 3600


def _own_step(config: TrialConfig) -> Step:
    return config.epochs_before, config.epochs


def _record(attributes: dict[str, Any], config: TrialConfig, state: TrialState) -> TrialRecord:
    """What the run's folder says of a trial, from what the journal says."""
    status: State = "running"
    if state.is_finished():
        status = "finished" if state == TrialState.COMPLETE else "failed"
    return TrialRecord(
        trial=attributes["trial"],
        status=status,
        reason=attributes.get(OUTCOME, {}).get("reason", ""),
        parameters=attributes["parameters"],
        config=config.model_dump(),
        lr_suggestion=attributes["lr_suggestion"],
        weights=attributes["weights"],
        epochs=attributes["epochs"],
        parent=attributes["parent"],
    )


def _entry(record: TrialRecord, configuration: Configuration | None, point: int | None) -> Entry:
    return Entry(record.trial, record.epochs, configuration, parent=record.parent, point=point)

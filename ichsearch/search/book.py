"""What the search knows and decides: which configuration comes next, and what is learnt from a finished trial.

In: a space and a journal. Out: trials to run; told results. No Ray here: the same book serves any executor.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ichsearch.search.domains import Scalar
from ichsearch.search.journal import make_sampler, open_study
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space import Space
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.metrics import LOWER_IS_BETTER
from ichsearch.train.trial import TrialResult, read_result

FAILED: Final = "failed"
WAIT: Final = "wait"
"""Nothing to hand out until a running trial ends."""


@dataclass(frozen=True)
class Started:
    """A trial that was handed out: its record, and its place in the journal."""

    record: TrialRecord
    config: TrialConfig
    study: str
    number: int


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    finished: int
    failed: int
    running: int
    trials: int | None
    best: tuple[str, float] | None
    spent_s: float
    time_s: float | None
    device_s: float
    device_limit_s: float | None
    eta_s: float | None
    why_done: str


class Book:
    """Asks the sampler and tells it; every step is in the journal before it is acted on."""

    def __init__(
        self,
        space: Space,
        folder: RunFolder,
        storage: optuna.storages.BaseStorage,
        suggest_lr: Callable[[InputConfig], float],
        weights_of: dict[str, str],
        images_per_s: Callable[[TrialConfig], float | None] = lambda config: None,
        train_slices: int = 0,
        devices_per_trial: float = 1.0,
    ) -> None:
        self._space, self._folder = space, folder
        self._suggest_lr, self._weights_of = suggest_lr, weights_of
        names = [study.study_name for study in storage.get_all_studies()]
        direction: Literal["minimize", "maximize"] = "minimize" if space.metric in LOWER_IS_BETTER else "maximize"
        self._studies = {name: open_study(storage, name, direction) for name in names}
        own = next((name for name in names if self._studies[name].user_attrs.get("space") == self._own_space), None)
        self._study = self._studies[own] if own else self._new_study(storage, direction)
        self._interrupted = [
            (study, trial)
            for study in self._studies.values()
            for trial in study.get_trials(states=[TrialState.RUNNING])
        ]
        self._adopt()

    @property
    def _own_space(self) -> str:
        return self._space.model_dump_json(include={"parameters", "epochs"})

    def _new_study(
        self, storage: optuna.storages.BaseStorage, direction: Literal["minimize", "maximize"]
    ) -> optuna.Study:
        """A study of its own for these parameters: the axes of a study cannot change."""
        plain = f"{self._space.name} · {self._space.epochs} epochs"
        name = plain if plain not in self._studies else f"{plain} · space {len(self._studies) + 1}"
        self._studies[name] = open_study(storage, name, direction)
        self._studies[name].set_user_attr("space", self._own_space)
        return self._studies[name]

    def _adopt(self) -> None:
        """Learn from the finished trials of the run's other spaces, as far as this space could have proposed them."""
        known = {trial.user_attrs.get("trial") for trial in self._study.get_trials()}
        for trial in (trial for study in self._studies.values() for trial in study.get_trials()):
            name = trial.user_attrs.get("trial")
            if name is None or name in known or not trial.state.is_finished():
                continue
            if trial.user_attrs["epochs"] != self._space.epochs:
                continue
            if (distributions := self._distributions(trial)) is not None:
                known.add(name)
                self._study.add_trial(
                    create_trial(
                        state=trial.state,
                        value=trial.value,
                        params=trial.params,
                        distributions=distributions,
                        user_attrs=trial.user_attrs,
                        system_attrs=trial.system_attrs,
                    )
                )

    def _distributions(self, trial: FrozenTrial) -> dict[str, BaseDistribution] | None:
        """This space's distributions if it could have drawn the trial, constants included; else None."""
        fixed = optuna.trial.FixedTrial(trial.params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of a value outside its range; that is what we ask here
            try:
                drawn = self._space.draw(fixed)  # type: ignore[arg-type]
            except ValueError:
                return None
        distributions = fixed.distributions
        contained = all(
            distribution._contains(distribution.to_internal_repr(trial.params[name]))
            for name, distribution in distributions.items()
        )
        same = self._named(drawn) == trial.user_attrs["parameters"] and set(distributions) == set(trial.params)
        return distributions if contained and same else None

    def standing(self) -> Standing:
        """Where the run stands; read anew from its files."""
        records = self._folder.records()
        scores = [
            (item.trial, known.score) for item in records if (known := read_result(self._folder.trial(item.trial)))
        ]
        sign = -1 if self._space.metric in LOWER_IS_BETTER else 1
        count = [sum(item.status == status for item in records) for status in ("finished", FAILED, "running")]
        done = count[0] + count[1] >= self._space.trials
        return Standing(
            finished=count[0],
            failed=count[1],
            running=count[2],
            trials=self._space.trials,
            best=max(scores, key=lambda item: sign * item[1], default=None),
            spent_s=0.0,
            time_s=self._space.time_s,
            device_s=0.0,
            device_limit_s=None,
            eta_s=None,
            why_done="all trials are done" if done else "",
        )

    def next(self) -> Started | Literal["wait"] | None:
        """The next trial to run: an interrupted one first, then a new proposal; None when there are enough."""
        while self._interrupted:
            study, trial = self._interrupted.pop(0)
            if (started := self._resumed(study, trial)) is not None:
                return started
        records = self._folder.records()
        if len(records) >= self._space.trials:
            return None
        return self._proposed(1 + max((int(record.trial) for record in records), default=-1))

    def _resumed(self, study: optuna.Study, trial: FrozenTrial) -> Started | None:
        """An interrupted trial as it was handed out; None for one that a dead driver had nearly begun or ended."""
        name = trial.user_attrs.get("trial")
        if name is None:
            study.tell(trial.number, state=TrialState.FAIL)  # it had no configuration yet
            return None
        config = TrialConfig.model_validate(trial.user_attrs["config"])
        record = self._record(name, trial.user_attrs["parameters"], config, trial.user_attrs["weights"])
        started = Started(record, config, study.study_name, trial.number)
        known = next((item for item in self._folder.records() if item.trial == name), record)
        if known.status == FAILED:
            self.tell_failed(started, known.reason)
            return None
        if config.backbone not in self._weights_of:
            self.tell_failed(started, "abandoned: the extended space lacks its backbone")
            return None
        self._folder.write_record(record)
        return started

    def _proposed(self, trial_id: int) -> Started:
        space, name = self._space, f"{trial_id:04d}"
        self._study.sampler = make_sampler(space.sampler, space.seed, trial_id)
        trial = self._study.ask()
        config, parameters = self._configured(space.draw(trial))
        trial.set_user_attr("config", config.model_dump())
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("epochs", space.epochs)
        trial.set_user_attr("weights", self._weights_of[config.backbone])
        trial.set_user_attr("trial", name)  # last: a trial that has it has all
        record = self._record(name, parameters, config, self._weights_of[config.backbone])
        self._folder.write_record(record)
        return Started(record, config, self._study.study_name, trial.number)

    def _configured(self, drawn: dict[str, Scalar]) -> tuple[TrialConfig, dict[str, Any]]:
        """The configuration of what was drawn, and the drawn parameters with a factor under its own name."""
        space = self._space
        lr = float(drawn["lr"])
        if space.lr_is_factor(drawn):
            lr *= self._suggest_lr(space.input_config(drawn))
        run = {"task": space.task, "seed": space.seed, "epochs": space.epochs, "metric": space.metric}
        return TrialConfig.model_validate({**drawn, **run, "lr": lr}), self._named(drawn)

    def _named(self, drawn: dict[str, Scalar]) -> dict[str, Any]:
        """What was drawn, a factor of the learning rate under its own name."""
        name = "lr_factor" if self._space.lr_is_factor(drawn) else "lr"
        return {key: value for key, value in drawn.items() if key != "lr"} | {name: drawn["lr"]}

    @staticmethod
    def _record(name: str, parameters: dict[str, Any], config: TrialConfig, weights: str) -> TrialRecord:
        factor = parameters.get("lr_factor")
        return TrialRecord(
            trial=name,
            status="running",
            parameters=parameters,
            config=config.model_dump(),
            lr_suggestion=float(f"{config.lr / factor:.9g}") if factor else None,
            weights=weights,
            epochs=config.epochs,
        )

    def tell_finished(self, started: Started, result: TrialResult) -> None:
        """Learn a trial's score; the journal last, because what it knows as finished is never looked at again."""
        self._folder.write_record(started.record.model_copy(update={"status": "finished"}))
        self._studies[started.study].tell(started.number, result.score)
        self._adopt()

    def tell_failed(self, started: Started, reason: str) -> None:
        """Learn that this configuration cannot be run: a violated constraint, which the sampler steers away from.

        The state is PRUNED because a failed trial has no value, and FAIL would be ignored by the sampler.
        """
        self._folder.write_record(started.record.model_copy(update={"status": FAILED, "reason": reason}))
        study = self._studies[started.study]
        trial = optuna.Trial(study, study.trials[started.number]._trial_id)
        trial.set_user_attr("reason", reason)
        trial.set_constraint("runs", 1.0)
        study.tell(started.number, state=TrialState.PRUNED)
        self._adopt()

"""What the search knows and decides: which configuration comes next, and what is learnt from a finished trial.

In: a space and a journal. Out: trials to run; told results. No Ray here: the same book serves any executor.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ichsearch.search.domains import Scalar
from ichsearch.search.journal import make_sampler, open_study
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space import FINITE, Space
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.metrics import LOWER_IS_BETTER
from ichsearch.train.trial import TrialResult

FAILED: Final = "failed"


@dataclass(frozen=True)
class Started:
    """A trial that was handed out: its record, and its place in the journal."""

    record: TrialRecord
    config: TrialConfig
    study: str
    number: int


class Book:
    """Asks the sampler and tells it; every step is in the journal before it is acted on."""

    def __init__(
        self,
        space: Space,
        folder: RunFolder,
        storage: optuna.storages.BaseStorage,
        suggest_lr: Callable[[InputConfig], float],
        weights_of: dict[str, str],
    ) -> None:
        self._space, self._folder = space, folder
        self._suggest_lr, self._weights_of = suggest_lr, weights_of
        earlier = storage.get_all_studies()
        name = self._study_name(storage, [study.study_name for study in earlier])
        direction: Literal["minimize", "maximize"] = "minimize" if space.metric in LOWER_IS_BETTER else "maximize"
        self._study = open_study(storage, name, direction)
        self._studies = {study.study_name: open_study(storage, study.study_name, direction) for study in earlier}
        if name not in self._studies:
            self._adopt([trial for study in self._studies.values() for trial in study.get_trials()])
            # Last, so that a study of which a dead driver had adopted a part only is nobody's.
            self._study.set_user_attr("space", self._own_space)
        self._studies[name] = self._study
        self._interrupted = [
            (study, trial)
            for study in self._studies.values()
            for trial in study.get_trials(states=[TrialState.RUNNING])
        ]

    def _study_name(self, storage: optuna.storages.BaseStorage, names: Sequence[str]) -> str:
        """The study of these parameters: one of the journal's, or a new one (a study's axes cannot change)."""
        for name in names:
            study_id = storage.get_study_id_from_name(name)
            if storage.get_study_user_attrs(study_id).get("space") == self._own_space:
                return name
        plain = f"{self._space.name} · {self._space.epochs} epochs"
        return plain if plain not in names else f"{plain} · space {len(names) + 1}"

    @property
    def _own_space(self) -> str:
        return self._space.model_dump_json(include={"parameters", "epochs"})

    def _adopt(self, earlier: Sequence[FrozenTrial]) -> None:
        """Learn from the finished trials of earlier spaces, as far as this space could have proposed them."""
        for trial in {trial.user_attrs.get("trial"): trial for trial in earlier}.values():
            if trial.state.is_finished() and trial.user_attrs.get("epochs") == self._space.epochs:
                distributions = self._distributions(trial.params)
                if distributions is not None:
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

    def _distributions(self, params: dict[str, Any]) -> dict[str, BaseDistribution] | None:
        """This space's distributions if it could have drawn `params`, else None."""
        fixed = optuna.trial.FixedTrial(params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of a value outside its range; that is what we ask here
            try:
                self._space.draw(fixed)  # type: ignore[arg-type]
            except ValueError:
                return None
        distributions = fixed.distributions
        contained = all(
            distribution._contains(distribution.to_internal_repr(params[name]))
            for name, distribution in distributions.items()
        )
        return distributions if contained and set(distributions) == set(params) else None

    def next(self) -> Started | None:
        """The next trial to run: an interrupted one first, then a new proposal; None when there are enough."""
        while self._interrupted:
            study, trial = self._interrupted.pop(0)
            if "trial" in trial.user_attrs:
                return self._resumed(study, trial)
            study.tell(trial.number, state=TrialState.FAIL)  # died before it had a configuration
        known = len(self._folder.records())
        return self._proposed(known) if known < self._space.trials else None

    def _resumed(self, study: optuna.Study, trial: FrozenTrial) -> Started:
        config = TrialConfig.model_validate(trial.user_attrs["config"])
        record = self._record(trial.user_attrs["trial"], trial.user_attrs["parameters"], config)
        self._folder.write_record(record)
        return Started(record, config, study.study_name, trial.number)

    def _proposed(self, known: int) -> Started:
        space, name = self._space, f"{known:04d}"
        self._study.sampler = make_sampler(space.sampler, space.seed, known)
        trial = self._study.ask()
        config, parameters = self._configured(space.draw(trial))
        trial.set_user_attr("config", config.model_dump())
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("epochs", space.epochs)
        trial.set_user_attr("trial", name)  # last: a trial that has it has all
        record = self._record(name, parameters, config)
        self._folder.write_record(record)
        return Started(record, config, self._study.study_name, trial.number)

    def _configured(self, drawn: dict[str, Scalar]) -> tuple[TrialConfig, dict[str, Any]]:
        """The configuration of what was drawn, and the drawn parameters with a factor under its own name."""
        space = self._space
        inputs = {name: drawn[name] for name in FINITE if name in drawn} | {"seed": space.seed}
        parameters: dict[str, Any] = dict(drawn)
        lr = float(drawn["lr"])
        if space.lr_is_factor(drawn):
            parameters["lr_factor"] = parameters.pop("lr")
            lr *= self._suggest_lr(InputConfig.model_validate(inputs))
        config = {**drawn, **inputs, "lr": lr, "epochs": space.epochs, "metric": space.metric}
        return TrialConfig.model_validate(config), parameters

    def _record(self, name: str, parameters: dict[str, Any], config: TrialConfig) -> TrialRecord:
        factor = parameters.get("lr_factor")
        return TrialRecord(
            trial=name,
            status="running",
            parameters=parameters,
            config=config.model_dump(),
            lr_suggestion=config.lr / factor if factor else None,
            weights=self._weights_of[config.backbone],
        )

    def tell_finished(self, started: Started, result: TrialResult) -> None:
        """Learn a trial's score; the journal last, because what it knows as finished is never looked at again."""
        self._folder.write_record(started.record.model_copy(update={"status": "finished"}))
        self._studies[started.study].tell(started.number, result.score)

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

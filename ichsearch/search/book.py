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

from ichsearch.search.journal import make_sampler, open_study
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space import Space
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.metrics import LOWER_IS_BETTER
from ichsearch.train.trial import TrialResult

FAILED: Final = "failed"


@dataclass(frozen=True)
class Started:
    """A trial that was handed out: its record, and its place in the study."""

    record: TrialRecord
    config: TrialConfig
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
        if not any(study.study_name == name for study in earlier):
            self._study.set_user_attr("space", space.model_dump_json(include={"parameters", "epochs"}))
            self._adopt([trial for study in earlier for trial in storage.get_all_trials(study._study_id)])
        self._interrupted = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]

    def _study_name(self, storage: optuna.storages.BaseStorage, names: Sequence[str]) -> str:
        """The study of these parameters: one of the journal's, or a new one (a study's axes cannot change)."""
        mine = self._space.model_dump_json(include={"parameters", "epochs"})
        for name in names:
            study_id = storage.get_study_id_from_name(name)
            if storage.get_study_user_attrs(study_id).get("space") == mine:
                return name
        plain = f"{self._space.name} · {self._space.epochs} epochs"
        return plain if plain not in names else f"{plain} · space {len(names) + 1}"

    def _adopt(self, earlier: Sequence[FrozenTrial]) -> None:
        """Learn from the finished trials of earlier spaces, as far as this space could have proposed them."""
        for trial in earlier:
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

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def finished(self) -> int:
        """How many trials of the run have ended, well or badly."""
        return sum(record.status in ("finished", FAILED) for record in self._folder.records())

    def next(self) -> Started | None:
        """The next trial to run: an interrupted one first, then a new proposal; None when there are enough."""
        while self._interrupted:
            trial = self._interrupted.pop(0)
            if "trial" in trial.user_attrs:
                return self._resumed(trial)
            self._study.tell(trial.number, state=TrialState.FAIL)  # died before it had a configuration
        if len(self._folder.records()) >= self._space.trials:
            return None
        return self._proposed()

    def _resumed(self, trial: FrozenTrial) -> Started:
        config = TrialConfig.model_validate(trial.user_attrs["config"])
        record = self._record(trial.user_attrs["trial"], trial.user_attrs["parameters"], config)
        return self._started(record, config, trial.number)

    def _proposed(self) -> Started:
        space = self._space
        self._study.sampler = make_sampler(space.sampler, space.seed, len(self._trials()))
        trial = self._study.ask()
        drawn = space.draw(trial)
        known = {name: value for name, value in drawn.items() if name != "lr"}
        lr = float(drawn["lr"])
        parameters = dict(drawn)
        if space.lr_is_factor(drawn):
            parameters["lr_factor"] = parameters.pop("lr")
            asked = {name: known[name] for name in known if name in ("backbone", "batch_size", "size", "channels")}
            lr *= self._suggest_lr(InputConfig.model_validate({**asked, "seed": space.seed}))
        config = TrialConfig.model_validate(
            {**known, "lr": lr, "epochs": space.epochs, "metric": space.metric, "seed": space.seed}
        )
        name = f"{len(self._folder.records()):04d}"
        trial.set_user_attr("config", config.model_dump())
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("epochs", space.epochs)
        trial.set_user_attr("trial", name)
        return self._started(self._record(name, parameters, config), config, trial.number)

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

    def _started(self, record: TrialRecord, config: TrialConfig, number: int) -> Started:
        self._folder.write_record(record)
        return Started(record, config, number)

    def tell_finished(self, started: Started, result: TrialResult) -> None:
        """Learn a trial's score."""
        self._study.tell(started.number, result.score)
        self._folder.write_record(started.record.model_copy(update={"status": "finished"}))

    def tell_failed(self, started: Started, reason: str) -> None:
        """Learn that this configuration cannot be run: a violated constraint, which the sampler steers away from.

        The state is PRUNED because a failed trial has no value, and FAIL would be ignored by the sampler.
        """
        trial = optuna.Trial(self._study, self._study._storage.get_trial_id_from_study_id_trial_number(
            self._study._study_id, started.number))  # fmt: skip
        trial.set_user_attr("reason", reason)
        trial.set_constraint("runs", 1.0)
        self._study.tell(started.number, state=TrialState.PRUNED)
        self._folder.write_record(started.record.model_copy(update={"status": FAILED, "reason": reason}))

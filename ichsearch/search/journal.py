"""The Optuna journal of a run: a study a rung, every trial in it before it starts and as soon as it has ended.

In: a journal file, whose lease the caller holds. Out: Optuna studies, and what they say of each trial.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from ichsearch.files import sync
from ichsearch.search.drawing import Configuration

optuna.logging.set_verbosity(optuna.logging.ERROR)

RUNS: Final = "runs"
"""The constraint that a configuration violates if it cannot be run."""
SPACE: Final = "space"
DRIVEN: Final = "driven_s"
OUTCOME: Final = "outcome"
"""What is known of a trial that has ended, in one attribute: an append to the journal waits for the disk."""


class Place(NamedTuple):
    """Where a trial stands in the journal."""

    study: str
    number: int


class Journal:
    """The studies of one run; this driver is their only writer. What was appended is known when `publish` returns."""

    def __init__(
        self,
        storage: BaseStorage,
        run: str,
        direction: Literal["minimize", "maximize"],
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage, self._run, self._direction, self._publish = storage, run, direction, publish
        self._studies = {
            study.study_name: optuna.load_study(study_name=study.study_name, storage=storage)
            for study in storage.get_all_studies()
        }

    def trials(self) -> Iterator[tuple[Place, FrozenTrial]]:
        """Every trial of the run."""
        for name, study in self._studies.items():
            for trial in study.get_trials(deepcopy=False):
                yield Place(name, trial.number), trial

    def start(self, epochs: int, space: str, configuration: Configuration, attributes: dict[str, Any]) -> Place:
        """Append a running trial, whole in one line: a torn one never was."""
        study = self._study(epochs, space)
        running = create_trial(
            state=TrialState.RUNNING,
            params=configuration.params,
            distributions=configuration.distributions,
            user_attrs=attributes,
        )
        trial_id = self._storage.create_new_trial(study._study_id, template_trial=running)
        self._publish()
        return Place(study.study_name, self._storage.get_trial(trial_id).number)

    def finish(self, place: Place, score: float, outcome: dict[str, Any]) -> None:
        """Append what a trial gave."""
        self._storage.set_trial_user_attr(self._id(place), OUTCOME, outcome)
        self._studies[place.study].tell(place.number, score)
        self._publish()

    def fail(self, place: Place, outcome: dict[str, Any]) -> None:
        """Append that a configuration cannot be run: a violated constraint, which samplers steer away from.

        The state is PRUNED because a failed trial has no value, and FAIL would be ignored by the sampler.
        """
        self._storage.set_trial_user_attr(self._id(place), OUTCOME, outcome)
        study = self._studies[place.study]
        if RUNS not in self._storage.get_trial(self._id(place)).constraints:  # a dead driver came no further
            optuna.Trial(study, self._id(place)).set_constraint(RUNS, 1.0)
        study.tell(place.number, state=TrialState.PRUNED)
        self._publish()

    def note_driven(self, seconds: float) -> None:
        """Append how long the run has been driven in all."""
        if (first := next(iter(self._studies.values()), None)) is not None:
            first.set_user_attr(DRIVEN, round(seconds, 3))
            self._publish()

    def driven_s(self) -> float:
        """What was noted last, here or with a trial's start or end, in seconds."""
        noted = [study.user_attrs.get(DRIVEN, 0.0) for study in self._studies.values()]
        starts = [trial.user_attrs.get(DRIVEN, 0.0) for _, trial in self.trials()]
        ends = [trial.user_attrs.get(OUTCOME, {}).get(DRIVEN, 0.0) for _, trial in self.trials()]
        return float(max([*noted, *starts, *ends], default=0.0))

    def _id(self, place: Place) -> int:
        study_id = self._studies[place.study]._study_id
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, place.number)

    def _study(self, epochs: int, space: str) -> optuna.Study:
        """The study of a rung for these parameters: the axes of a study cannot change."""
        for study in self._studies.values():
            if study.user_attrs.get("epochs") == epochs and study.user_attrs.get(SPACE) == space:
                return study
        plain = f"{self._run} · {epochs} epoch{'s' * (epochs != 1)}"
        study = self._begun(plain) or self._created(plain)
        study.set_user_attr("epochs", epochs)
        study.set_user_attr(SPACE, space)
        self._studies[study.study_name] = study
        return study

    def _begun(self, name: str) -> optuna.Study | None:
        """The study of this name that a dead driver had begun, but not said for what."""
        found = self._studies.items()
        return next((study for known, study in found if known.startswith(name) and SPACE not in study.user_attrs), None)

    def _created(self, name: str) -> optuna.Study:
        free = name if name not in self._studies else f"{name} · space {len(self._studies) + 1}"
        return optuna.create_study(study_name=free, storage=self._storage, direction=self._direction)


def open_storage(path: Path) -> JournalStorage:
    """Open a journal for its only writer.

    A driver that died while it wrote leaves half a line, after which Optuna cannot go on, and a lock for which it
    waits 30 s. The lease says that the owner is dead: the line is cut off and the lock removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
            sync(path)
    return JournalStorage(JournalFileBackend(str(path)))

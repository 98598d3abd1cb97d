"""The Optuna journal of a run: repaired before the first append, and asked and told by one driver only.

In: a journal file, whose lease the caller holds. Out: Optuna studies.
"""

import warnings
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend

from ichsearch.files import sync

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_journal(path: Path) -> optuna.storages.JournalStorage:
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
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def open_study(
    storage: optuna.storages.BaseStorage, name: str, direction: Literal["minimize", "maximize"]
) -> optuna.Study:
    """The study of this name, made if the journal has none."""
    return optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)


def make_sampler(kind: Literal["tpe", "random", "qmc"], seed: int, trial_number: int) -> BaseSampler:
    """A sampler whose proposals depend on the seed, the trial's number, and what has been told: nothing else.

    A sampler that went on from one seed would, after a resume, propose its first configurations again.
    """
    own_seed = (seed * 1_000_003 + trial_number) % 2**32
    if kind == "random":
        return RandomSampler(seed=own_seed)
    with warnings.catch_warnings():
        # group=True models a conditional space branch by branch; Optuna calls the option experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "qmc":
            return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        return TPESampler(seed=own_seed, group=True)

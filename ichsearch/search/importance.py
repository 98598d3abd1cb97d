"""Which parameters mattered: what sets the best trials of one length apart from the others.

In: the journal of a run, which is only read. Out: an `Importance`: of each parameter its share, and how sure that is.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ichsearch.search.drawing import parameter_of
from ichsearch.search.run_folder import RunFolder

FEWEST_TRIALS: Final = 20
"""Finished trials of one length: with fewer the best quarter has fewer than five, the least that Optuna advises."""
FEW_TRIALS: Final = 40
"""With fewer the shares depend on a handful of good trials."""
TOP_SHARE: Final = 0.25
RESAMPLES: Final = 40
MOST_TRIALS: Final = 300
"""Of a larger study the last so many count, which the search had learnt to propose."""


class Share(NamedTuple):
    """A parameter's share of the importance, and between what it lies in 90 % of the resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """The parameters of one study, the most important first; `caveat` says what the shares are worth."""

    study: str
    trials: int
    shares: dict[str, Share]
    caveat: str


class _Study(NamedTuple):
    """What is needed of a study."""

    name: str
    direction: StudyDirection
    finished: list[FrozenTrial]


def read_importance(folder: RunFolder) -> Importance:
    """The importance of the parameters among the trials of that length of which most have finished."""
    study = max(_studies(folder.journal), key=lambda study: len(study.finished), default=None)
    number = len(study.finished) if study else 0
    if study is None or number < FEWEST_TRIALS:
        least = f"The importance of parameters needs {FEWEST_TRIALS} finished trials of one length"
        return Importance("", number, {}, f"{least}, but this run has {number} at most.")
    few = f"Importance from few trials, n = {number}: mind the lines." if number < FEW_TRIALS else ""
    return Importance(study.name, number, _shares(study.finished, study.direction), few)


def _studies(journal: Path) -> list[_Study]:
    """The studies as they stand, from a copy without a last line that is not whole yet: a driver may be at work."""
    content = journal.read_bytes() if journal.is_file() else b""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / journal.name
        copy.write_bytes(content[: content.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        names = [study.study_name for study in storage.get_all_studies()]
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        return [_Study(study.study_name, study.direction, _finished(study)) for study in studies]


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])[-MOST_TRIALS:]


def _shares(trials: Sequence[FrozenTrial], direction: StudyDirection) -> dict[str, Share]:
    values = _importances(trials, direction)
    resampled = defaultdict[str, list[float]](list)
    for drawn in _resamples(trials):
        found = _importances(drawn, direction)
        for name in values:
            resampled[name].append(found.get(name, 0.0))
    bounds = {name: np.percentile(shares, [5, 95]).tolist() for name, shares in resampled.items()}
    return {name: Share(value, *bounds[name]) for name, value in values.items()}


def _resamples(trials: Sequence[FrozenTrial]) -> Iterator[list[FrozenTrial]]:
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield [trials[place] for place in rng.integers(len(trials), size=len(trials))]


def _importances(trials: Sequence[FrozenTrial], direction: StudyDirection) -> dict[str, float]:
    """Shares that add up to 1, the largest first; the cases of a parameter under conditions count as one."""
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE))
    shares = defaultdict[str, float](float)
    for name, share in found.items():
        shares[parameter_of(name)] += share
    return dict(sorted(shares.items(), key=lambda item: -item[1]))

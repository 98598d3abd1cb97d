"""Trials that predict better together: greedy selection on the validation predictions, with replacement.

In: a run folder, and its shards for averaging with mirror images. Out: `ensemble.json`, `ensemble.parquet`.
Source: Caruana et al., ICML 2004.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from ichsearch.deploy.ensemble_record import Ensemble, Gain, Member, Step
from ichsearch.deploy.gains import gain_over, gain_text
from ichsearch.deploy.models import best_trial, predictor_of, validation_of, with_weights
from ichsearch.deploy.stored_slices import predict_rows, stored_slices
from ichsearch.errors import DataError, NoTrialFinishedError
from ichsearch.files import sha256_of, write_json, written_aside
from ichsearch.report.bootstrap import MIN_PATIENTS, Resampled
from ichsearch.report.statistics import Predictions, read_predictions, resampled_scores
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.config import TrialConfig
from ichsearch.train.metrics import LOWER_IS_BETTER, FloatArray, Metric, score

MOST_VOTES: Final = 20
"""Votes are added as long as the score rises; more than these would change nothing that can be seen."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Vote:
    """What can be chosen from: each trial's probabilities of the same validation slices."""

    metric: Metric
    reference: Predictions
    of_trial: dict[str, FloatArray]

    def mean(self, votes: Sequence[str]) -> FloatArray:
        mean: FloatArray = np.mean([self.of_trial[trial] for trial in votes], axis=0)
        return mean

    def worth(self, probabilities: FloatArray) -> float:
        """The metric, its sign turned where lower is better."""
        truth, patients = self.reference.positive.astype(np.float64), self.reference.of_patient.astype(np.object_)
        value = score(truth, probabilities, self.reference.labels, patients)[self.metric]
        assert value is not None, "the trials have scores on these slices"
        return -value if self.metric in LOWER_IS_BETTER else value

    def resampled(self, probabilities: FloatArray) -> Resampled:
        predictions = self.reference._replace(probabilities=probabilities)
        return resampled_scores(predictions, self.metric)[self.metric]

    def gain(self, new: FloatArray, old: FloatArray) -> Gain:
        """How much better `new` is than `old`, paired over patients."""
        better, worse = (self.reference._replace(probabilities=probabilities) for probabilities in (new, old))
        gain = gain_over(better, worse, self.metric)
        assert gain is not None, "both have scores"
        return gain


def choose_ensemble(folder: RunFolder, shards: Path | None, on_progress: Progress = lambda *_: None) -> Ensemble:
    """Choose from the trials whose weights were kept, and keep the choice in the run folder.

    The best trial begins; whichever trial raises the score of the mean most gets a vote, the same one again if need be,
    until none does. Averaging with mirror images is part of it where that raises the score, too.

    Args:
        folder: the run's.
        shards: its data; None leaves out mirror images.
        on_progress: called with a stage's name, what is done of it, and how much there is.

    Raises:
        NoTrialFinishedError: there is nothing to choose from.
        DataError: predictions or weights are damaged, or of other slices.
    """
    table, vote = _open_vote(folder)
    votes = _chosen(vote)
    plain = vote.mean(votes)
    mirrored = _mirrored(folder, shards, votes, vote, on_progress) if shards else None
    flip_gain = None if mirrored is None else vote.gain(mirrored, plain)
    flip = flip_gain is not None and flip_gain.value > 0
    final = mirrored if flip and mirrored is not None else plain
    for column, label in enumerate(vote.reference.labels):
        table[f"probability_{label}"] = final[:, column].astype(np.float32)
    with written_aside(folder.ensemble_predictions) as aside:
        table.to_parquet(aside, index=False)
    written = sha256_of(folder.ensemble_predictions)
    ensemble = _record(vote, votes, final, flip=flip, flip_gain=flip_gain)
    ensemble = ensemble.model_copy(update={"predictions_sha256": written})
    write_json(folder.ensemble, ensemble.model_dump())
    return ensemble


def _open_vote(folder: RunFolder) -> tuple[pd.DataFrame, _Vote]:
    best = best_trial(folder)
    names = with_weights(folder)
    if not names:
        raise NoTrialFinishedError(f"an ensemble needs trials whose weights were kept, but {folder} has none")
    paths = {trial: validation_of(folder, trial) for trial in names}
    of_trial = {trial: read_predictions(path) for trial, path in paths.items()}
    reference = of_trial[best if best in of_trial else names[0]]
    for trial, predictions in of_trial.items():
        if not np.array_equal(predictions.slices, reference.slices) or predictions.labels != reference.labels:
            raise DataError(
                f"all trials of a run predict the same slices, but trial {trial} does not; move its folder away"
            )
    record = folder.record(names[0])
    assert record is not None, "a trial with a result has a record"
    metric = TrialConfig.model_validate(record.config).metric
    table = pd.read_parquet(paths[names[0]])
    return table, _Vote(metric, reference, {trial: known.probabilities for trial, known in of_trial.items()})


def _chosen(vote: _Vote) -> list[str]:
    """The votes, in the order in which they were given."""
    total: FloatArray = np.zeros_like(next(iter(vote.of_trial.values())))
    votes: list[str] = []
    best = -np.inf
    while len(votes) < MOST_VOTES:
        worth = {trial: vote.worth((total + own) / (len(votes) + 1)) for trial, own in vote.of_trial.items()}
        trial = max(worth, key=lambda trial: worth[trial])
        if worth[trial] <= best:
            break
        best = worth[trial]
        votes.append(trial)
        total = total + vote.of_trial[trial]
    return votes


def _mirrored(folder: RunFolder, shards: Path, votes: Sequence[str], vote: _Vote, on_progress: Progress) -> FloatArray:
    """The mean of the chosen, each averaged over an image and its mirror image."""
    slices = stored_slices(shards)
    rows = pd.Index(slices.table["slice"]).get_indexer(vote.reference.slices)
    if (rows < 0).any():
        raise DataError(
            "the shards must hold the run's validation slices, but some are missing; name the run's with --data"
        )
    total: FloatArray = np.zeros_like(next(iter(vote.of_trial.values())))
    counts = Counter(votes)
    for number, (trial, count) in enumerate(counts.items()):
        on_progress("mirror images", number, len(counts))
        predictor = predictor_of(
            folder, [trial], [1.0], flip=True, validation=validation_of(folder, trial), shards=shards
        )
        total = total + count * predict_rows(predictor, slices, np.asarray(rows, np.int64))
    on_progress("mirror images", len(counts), len(counts))
    return total / len(votes)


def _record(vote: _Vote, votes: Sequence[str], final: FloatArray, *, flip: bool, flip_gain: Gain | None) -> Ensemble:
    interval = vote.resampled(final).interval
    assert interval is not None, "trials have scores, and so has their mean"
    alone = vote.of_trial[votes[0]]
    counts = Counter(votes)
    return Ensemble(
        metric=vote.metric,
        members=tuple(_member(vote, votes, trial, count) for trial, count in counts.items()),
        flip=flip,
        score=interval.value,
        low=interval.low,
        high=interval.high,
        gain=vote.gain(final, alone) if flip or len(counts) > 1 else None,
        flip_gain=flip_gain,
        steps=tuple(_step(vote, votes, number) for number in range(len(votes))),
        slices=len(vote.reference.slices),
        patients=len(vote.reference.patients),
        candidates=len(vote.of_trial),
    )


def _member(vote: _Vote, votes: Sequence[str], trial: str, count: int) -> Member:
    others = [other for other in votes if other != trial]
    gain = vote.gain(vote.mean(votes), vote.mean(others)) if others else None
    return Member(trial=trial, count=count, weight=count / len(votes), gain=gain)


def _step(vote: _Vote, votes: Sequence[str], number: int) -> Step:
    now = vote.mean(votes[: number + 1])
    gain = vote.gain(now, vote.mean(votes[:number])) if number else None
    return Step(trial=votes[number], score=vote.resampled(now).value, gain=gain)


def ensemble_text(ensemble: Ensemble) -> list[str]:
    """What a person should know of it, a line each."""

    def told(gain: Gain | None) -> str:
        return f"gain {gain_text(gain)}" if gain else ""

    lines = [
        f"{member.trial}: {member.count} vote{'s' * (member.count != 1)} · {told(member.gain) or 'alone'}"
        for member in ensemble.members
    ]
    mirror = "not tried: that needs the run's shards (--data)"
    if ensemble.flip_gain is not None:
        mirror = f"{told(ensemble.flip_gain)}: {'taken' if ensemble.flip else 'left out'}"
    whole = f"together {ensemble.metric} {ensemble.score:.4f} (95 % {ensemble.low:.4f} to {ensemble.high:.4f})"
    over = "; the best trial alone"
    if ensemble.gain:
        shown = "" if ensemble.gain.low > 0 else ": NOT shown to be one"
        over = f"; {told(ensemble.gain)} over the best trial alone{shown}"
    if ensemble.patients < MIN_PATIENTS:
        over += f"; fewer than {MIN_PATIENTS} patients, so no interval is to be believed"
    return [
        *lines,
        f"mirror images: {mirror}",
        f"{whole}{over}",
        f"chosen from {ensemble.candidates} trials on these {ensemble.slices} validation slices of "
        f"{ensemble.patients} patients: its score and gains are optimistic, and their intervals do not know of the "
        "choice; only other patients can show a gain (ichsearch evaluate --ensemble) · not for clinical use",
    ]

"""Which trials can be told from the best one, and which beat the rules that see no image.

In: the predictions of a run's trials and baselines. Out: a `Ranking`, kept in `ranking.json`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ichsearch.errors import DataError, NoTrialFinishedError
from ichsearch.files import read_json, sha256_of, to_json, write_json
from ichsearch.report.baseline_rules import RULES
from ichsearch.report.baselines import fit_baselines
from ichsearch.report.bootstrap import MIN_PATIENTS, Resampled
from ichsearch.report.comparisons import SIGNIFICANT, holm, is_above_zero, pairwise_p
from ichsearch.report.statistics import (
    Predictions,
    predictions_sha256,
    read_predictions,
    resampled_scores,
    settings,
    trial_statistics,
)
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import PREDICTIONS
from ichsearch.train.metrics import LOWER_IS_BETTER, Metric
from ichsearch.train.trial import read_result

VERSION: Final = 3
"""Raised when the same predictions would be ranked otherwise."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ranked(_Frozen):
    """A trial or a baseline on the patients that it is judged on, held against the best trial."""

    value: float
    low: float
    high: float
    difference: float = Field(description="its score minus the best trial's, on the same resamples; 0 for the best")
    difference_low: float
    difference_high: float
    p: float | None = Field(description="two-sided, of the difference; null for the best, baselines, too few patients")
    p_holm: float | None = Field(description="`p` after Holm's correction for all pairs of trials")
    tied: bool = Field(description="not distinguishable from the best")
    beats: tuple[str, ...] = Field(description="baselines it is shown to be better than, one-sided at 95 % for all")


class Ranking(_Frozen):
    """The trials of a run in the light of chance."""

    key: str = Field(description="of the predictions and rules that it was made of")
    metric: str
    best: str = Field(description="the trial with the best score")
    slices: int
    patients: int
    reliable: bool = Field(
        description="new patients, enough for intervals to mean something; else nobody beats anybody"
    )
    trials: dict[str, Ranked]
    baselines: dict[str, Ranked]
    unreadable: tuple[str, ...] = Field(description="finished trials that are not ranked: damaged predictions")

    @property
    def tied(self) -> list[str]:
        """The trials that share the first rank, the best first."""
        worse = 1 if self.metric in LOWER_IS_BETTER else -1
        names = [name for name, ranked in self.trials.items() if ranked.tied]
        return sorted(names, key=lambda name: (name != self.best, worse * self.trials[name].value))


class _Judged(NamedTuple):
    """What is ranked: the ranking metric of every trial and baseline over the same resamples."""

    metric: Metric
    best: str
    slices: int
    patients: int
    leaks: bool
    trials: dict[str, Resampled]
    baselines: dict[str, Resampled]


def rank_trials(folder: RunFolder, shards: Path | None) -> Ranking:
    """Hold every finished trial against the best and the baselines, and keep the result in `ranking.json`.

    What is missing of the statistics of trials and of the baselines is computed first, and kept.

    Args:
        folder: the run.
        shards: its data, which baselines are fitted on; None takes the baselines that the run folder has.

    Raises:
        NoTrialFinishedError: there is nothing to rank.
        DataError: no trial's predictions can be read, or the shards are not the run's.
    """
    finished = _finished(folder)
    if not finished:
        raise NoTrialFinishedError("a ranking needs a finished trial, but the run has none; go on with it")
    readable = _readable(folder, finished)
    best = _best(readable)
    config = TrialConfig.model_validate(readable[best].config)
    if shards is not None:
        fit_baselines(folder, shards, config.task, read_predictions(folder.trial(best) / PREDICTIONS))
    unreadable = tuple(trial for trial in finished if trial not in readable)
    if (known := known_ranking(folder)) is not None and known.unreadable == unreadable:
        return known
    ranking = _ranking(_key(folder, list(finished)), _judged(folder, list(readable), best, config.metric), unreadable)
    write_json(folder.ranking, ranking.model_dump())
    return ranking


def known_ranking(folder: RunFolder) -> Ranking | None:
    """The ranking in `ranking.json`; None if there is none, or trials or baselines are others now."""
    if not folder.ranking.is_file():
        return None
    saved = read_json(folder.ranking)
    if saved.get("key") != _key(folder, list(_finished(folder))):
        return None
    return Ranking.model_validate(saved)


class _Finished(NamedTuple):
    score: float
    config: dict[str, Any]


def _finished(folder: RunFolder) -> dict[str, _Finished]:
    """The trials that have a score, in the order of their ids."""
    results = {record.trial: (record.config, read_result(folder.trial(record.trial))) for record in folder.records()}
    return {trial: _Finished(result.score, config) for trial, (config, result) in results.items() if result}


def _readable(folder: RunFolder, finished: dict[str, _Finished]) -> dict[str, _Finished]:
    """Those whose predictions can be read, all their statistics computed.

    Raises:
        DataError: there is none.
    """
    problems: dict[str, DataError] = {}
    for trial in finished:
        try:
            trial_statistics(folder, trial)
        except DataError as problem:
            problems[trial] = problem
    if len(problems) == len(finished):
        raise next(iter(problems.values()))
    return {trial: known for trial, known in finished.items() if trial not in problems}


def _best(finished: dict[str, _Finished]) -> str:
    """The trial with the best score, the first of equal ones."""
    lower = next(iter(finished.values())).config["metric"] in LOWER_IS_BETTER
    return min(finished, key=lambda trial: finished[trial].score if lower else -finished[trial].score)


def _key(folder: RunFolder, trials: Sequence[str]) -> str:
    """What a ranking depends on, as a hash."""
    digests = {trial: predictions_sha256(folder, trial) for trial in trials}
    digests |= {name: sha256_of(path) for name in RULES if (path := folder.baseline(name)).is_file()}
    return hashlib.sha256(to_json({"version": VERSION, **settings(), "predictions": digests})).hexdigest()


def _judged(folder: RunFolder, trials: Sequence[str], best: str, metric: Metric) -> _Judged:
    reference = read_predictions(folder.trial(best) / PREDICTIONS)

    def judge(path: Path) -> Resampled:
        predictions = read_predictions(path)
        _require_same_slices(predictions, reference, path)
        return resampled_scores(predictions, metric)[metric]

    return _Judged(
        metric=metric,
        best=best,
        slices=len(reference.slices),
        patients=len(reference.patients),
        leaks=folder.leaks,
        trials={trial: judge(folder.trial(trial) / PREDICTIONS) for trial in trials},
        baselines={name: judge(folder.baseline(name)) for name in RULES if folder.baseline(name).is_file()},
    )


def _require_same_slices(predictions: Predictions, reference: Predictions, path: Path) -> None:
    if not np.array_equal(predictions.slices, reference.slices):
        raise DataError(
            f"all trials of a run are judged on the same slices, but {path.parent.name}/{path.name} holds others; "
            "it belongs to another run"
        )


def _ranking(key: str, judged: _Judged, unreadable: tuple[str, ...]) -> Ranking:
    names = list(judged.trials)
    reliable = judged.patients >= MIN_PATIENTS and not judged.leaks
    pairs = pairwise_p(list(judged.trials.values()), judged.patients)
    corrected = holm(pairs)
    at = names.index(judged.best)
    trials = {
        name: _ranked(
            judged,
            score,
            p=pairs[at, i] if reliable and name != judged.best else None,
            p_holm=corrected[at, i] if reliable and name != judged.best else None,
            tied=not reliable or name == judged.best or corrected[at, i] >= SIGNIFICANT,
            beats=_beaten(judged, score) if reliable else (),
        )
        for i, (name, score) in enumerate(judged.trials.items())
    }
    return Ranking(
        key=key,
        metric=judged.metric,
        best=judged.best,
        slices=judged.slices,
        patients=judged.patients,
        reliable=reliable,
        trials=trials,
        baselines={name: _ranked(judged, score) for name, score in judged.baselines.items()},
        unreadable=unreadable,
    )


def _ranked(
    judged: _Judged,
    score: Resampled,
    *,
    p: float | None = None,
    p_holm: float | None = None,
    tied: bool = False,
    beats: tuple[str, ...] = (),
) -> Ranked:
    interval, difference = score.interval, score.minus(judged.trials[judged.best]).interval
    assert interval is not None, "a finished trial has a score, and so has whatever is judged on its slices"
    assert difference is not None
    return Ranked(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        p=p,
        p_holm=p_holm,
        tied=tied,
        beats=beats,
    )


def _beaten(judged: _Judged, score: Resampled) -> tuple[str, ...]:
    """The baselines that a trial is shown to be better than."""

    def gain(rule: Resampled) -> Resampled:
        return rule.minus(score) if judged.metric in LOWER_IS_BETTER else score.minus(rule)

    return tuple(
        name
        for name, rule in judged.baselines.items()
        if is_above_zero(gain(rule), judged.patients, len(judged.trials))
    )

"""Other people's searchers on a table of learning curves: Optuna's samplers and pruners, Ray's scheduler and search.

In: a ledger and a seed. Out: what the ledger remembers. Each is the library's own class, with its defaults where no
comment says otherwise, driven through its own calls by one worker; an epoch is one report. Ray's scheduler never stops
a trial at NaN and Optuna refuses it as a result, so a diverged loss is reported as the largest float32; a trial that
has diverged trains on until its peer stops it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from search_table import Contestant, Ledger, Task

DIVERGED: Final = float(np.finfo(np.float32).max)
ETA: Final = 3

optuna.logging.set_verbosity(optuna.logging.WARNING)


def random_full(ledger: Ledger, seed: int) -> None:
    """Uniform points of the cube, each trained to the end."""
    random = np.random.default_rng(seed)
    while True:
        ledger.train(ledger.nearest(random.random(len(ledger.task.names))), 0, ledger.task.epochs)


def random_asha(ledger: Ledger, seed: int) -> None:
    """Uniform points, stopped by Ray's ASHA at the rungs 1, 3, 9, …"""
    random = np.random.default_rng(seed)
    stop = _asha(ledger.task)
    while True:
        _train(ledger, ledger.nearest(random.random(len(ledger.task.names))), stop(f"{ledger.paid}"))


def ray_search_asha(ledger: Ledger, seed: int) -> None:
    """Ray's search by Optuna's TPE under Ray's ASHA: a stopped trial is told as complete with the loss it had."""
    search: Any = OptunaSearch(_space(ledger.task), metric="loss", mode="min", seed=seed)
    stop = _asha(ledger.task)
    while True:
        name = f"{ledger.paid}"
        index = ledger.nearest(_point(ledger.task, search.suggest(name)))
        epochs, loss = _train(ledger, index, stop(name))
        search.on_trial_complete(name, {"training_iteration": epochs, "loss": loss})


Stop = Callable[[int, float], bool]
"""Whether a trial ends, having trained so many epochs to this loss."""


def _asha(task: Task) -> Callable[[str], Stop]:
    """Ray's scheduler, asked as its controller asks it; a trial is its name to it."""
    scheduler: Any = AsyncHyperBandScheduler(
        metric="loss", mode="min", max_t=task.epochs, grace_period=1, reduction_factor=ETA
    )

    def add(name: str) -> Stop:
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        return lambda epochs, loss: (
            scheduler.on_trial_result(None, trial, {"training_iteration": epochs, "loss": loss}) == TrialScheduler.STOP
        )

    return add


def _train(ledger: Ledger, index: int, stop: Stop) -> tuple[int, float]:
    """Epoch by epoch until the scheduler says stop: the epochs trained and the last loss."""
    for epoch in range(ledger.task.epochs):
        loss = _finite(ledger.train(index, epoch, epoch + 1)[0])
        if stop(epoch + 1, loss):
            break
    return epoch + 1, loss


def _by_optuna(
    sampler: Callable[[int], BaseSampler], pruner: Callable[[Task], BasePruner], ledger: Ledger, seed: int
) -> None:
    """A study that asks, reports every epoch, prunes, and is told."""
    # HyperbandPruner hashes the study's name to choose a bracket, and Optuna's own choice of a name is random.
    study = optuna.create_study(sampler=sampler(seed), pruner=pruner(ledger.task), study_name=f"study {seed}")
    space = _space(ledger.task)
    while True:
        trial = study.ask(space)
        index = ledger.nearest(_point(ledger.task, trial.params))
        for epoch in range(ledger.task.epochs):
            loss = _finite(ledger.train(index, epoch, epoch + 1)[0])
            trial.report(loss, epoch + 1)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, loss)


def _space(task: Task) -> dict[str, BaseDistribution]:
    return {name: FloatDistribution(0, 1) for name in task.names}


def _point(task: Task, parameters: Mapping[str, float]) -> list[float]:
    return [parameters[name] for name in task.names]


def _finite(loss: float) -> float:
    return DIVERGED if np.isnan(loss) else float(loss)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _no_pruner(_: Task) -> BasePruner:
    return NopPruner()


def _median(_: Task) -> BasePruner:
    return MedianPruner()


def _halving(_: Task) -> BasePruner:
    # Left to find its first rung, it finds this one, but only after a first trial of full length.
    return SuccessiveHalvingPruner(min_resource=1)


def _hyperband(task: Task) -> BasePruner:
    # Likewise: it would train the first trial to the end to learn how long trials are.
    return HyperbandPruner(min_resource=1, max_resource=task.epochs)


PEERS: Final[dict[str, Contestant]] = {
    "random": random_full,
    "random + ASHA": random_asha,
    "random + SuccessiveHalvingPruner": partial(_by_optuna, _random, _halving),
    "random + HyperbandPruner": partial(_by_optuna, _random, _hyperband),
    "TPE": partial(_by_optuna, _tpe, _no_pruner),
    "TPE + MedianPruner": partial(_by_optuna, _tpe, _median),
    "TPE + SuccessiveHalvingPruner": partial(_by_optuna, _tpe, _halving),
    "TPE + HyperbandPruner": partial(_by_optuna, _tpe, _hyperband),
    "OptunaSearch + ASHA": ray_search_asha,
}

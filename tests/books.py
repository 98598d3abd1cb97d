"""Books and searches for tests: real journals, trials that are told without any training."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from ichsearch.search.book import Book, Started
from ichsearch.search.drawing import Configuration, Drawn, Suggests
from ichsearch.search.history import Entry, History
from ichsearch.search.journal import open_storage
from ichsearch.search.promotion import rungs_of
from ichsearch.search.proposals import Proposer, Sampler
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.search.strategy import Promotion, Strategy
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.trial import TrialResult

BACKBONES = ("test_resnet", "test_efficientnet", "resnet10t")
PARAMETERS: dict[str, Any] = {
    "backbone": {"choice": ["test_resnet", "test_efficientnet"]},
    "batch_size": {"choice": [8, 16], "when": [{"if": {"backbone": "test_efficientnet"}, "choice": [8]}]},
    "size": 32,
    "channels": "hu",
    "augment": {"float": [0.0, 1.0]},
    "lr": {"factor": [0.3, 3.0]},
}
FINITE: dict[str, Any] = PARAMETERS | {
    "augment": {"choice": [0, 0.5, 1]},
    "lr": {"factor": {"choice": [0.5, 1, 2]}},
}
"""27 configurations: 18 of test_resnet, 9 of test_efficientnet."""


def make_space(parameters: Mapping[str, Any] = PARAMETERS, **settings: Any) -> Space:
    """Three rungs of 1, 3 and 9 epochs."""
    run = {"name": "small", "pretrained": "no", "epochs": 9, "promotion": {"eta": 3}, "trials": 12}
    return Space.model_validate({**run, "parameters": {**parameters}, **settings})


def plain_space(parameters: Mapping[str, Any] = PARAMETERS, **settings: Any) -> Space:
    """One rung."""
    return make_space(parameters, **{"strategy": "full", "epochs": 2, "trials": 3} | settings)


def suggested_lr(config: InputConfig) -> float:
    return {"test_resnet": 0.01, "test_efficientnet": 0.001, "resnet10t": 0.1 / 3}[config.backbone]


def open_book(root: Path, space: Space, **settings: Any) -> Book:
    folder = RunFolder(root)
    weights = dict.fromkeys(BACKBONES, "scratch")
    return Book(
        space, folder, open_storage(folder.journal), **{"suggest_lr": suggested_lr, "weights_of": weights} | settings
    )


def result(score: float, seconds: float = 1.0, epochs: int = 1) -> TrialResult:
    return TrialResult(score, epochs, {"auroc_any": score}, seconds, 1.0, 1.0, 8, epochs)


def next_of(book: Book) -> Started:
    started = book.next()
    assert isinstance(started, Started), started
    return started


def score_of(config: TrialConfig) -> float:
    """Better with little augmentation, a rate near 0.005 and more epochs."""
    return 0.9 - 0.2 * abs(config.augment - 0.2) - 0.05 * abs(np.log10(config.lr / 0.005)) - 0.1 / config.epochs


def tell(book: Book, started: Started, score: float | None = None) -> None:
    took = started.config.epochs - started.config.epochs_before
    book.tell_finished(started, result(score_of(started.config) if score is None else score, 1.0 * took, took))


def run_all(book: Book, scores: list[float] | None = None) -> list[Started]:
    """One worker, to the end or as long as there are scores."""
    started = []
    for score in scores if scores is not None else iter(lambda: None, 0):
        trial = book.next()
        if scores is None and trial is None:
            break
        assert isinstance(trial, Started)
        tell(book, trial, score)
        started.append(trial)
    return started


def studies(root: Path) -> dict[str, optuna.Study]:
    storage = open_storage(root / "journal.log")
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def cube(*names: str) -> Callable[[Suggests], Drawn]:
    """Draws a point of the unit cube."""
    return lambda trial: {name: trial.suggest_float(name, 0.0, 1.0, step=None, log=False) for name in names}


class Room:
    """A budget of trials alone."""

    def __init__(self, trials: float) -> None:
        self.trials = trials

    def has(self, configuration: Configuration, steps: object) -> bool:  # noqa: ARG002
        return True


class Search:
    """A history, a proposer of the unit cube and a strategy, without a journal."""

    def __init__(
        self,
        trials: int,
        *,
        epochs: int = 9,
        eta: int = 3,
        sampler: Sampler = "random",
        seed: int = 0,
        draw: Callable[[Suggests], Drawn] | None = None,
    ) -> None:
        self.trials, self.rungs, self.history = trials, rungs_of(epochs, eta, 1), History()
        draw = draw or cube("x", "y")
        proposer = Proposer(draw, ["x", "y"], self.history, sampler=sampler, seed=seed, random_share=1 / 3)
        self._strategy = Strategy(self.history, proposer, self.rungs, eta)

    def start(self) -> Entry | str:
        """The next trial as it starts to run, or why there is none."""
        number = len(self.history.entries)
        decision = self._strategy.next(number, Room(self.trials - number))
        if isinstance(decision, str):
            return decision
        if isinstance(decision, Promotion):
            parent = decision.parent
            entry = Entry(str(number), decision.epochs, parent.configuration, parent.trial)
        else:
            entry = Entry(str(number), self.rungs[0], decision.configuration, point=decision.point)
        self.history.add(entry)
        return entry

    def run(self, *losses: float | None) -> list[Entry]:
        """One worker whose trials end so; those that ended."""
        ended = []
        for loss in losses:
            entry = self.start()
            assert isinstance(entry, Entry), entry
            ended.append(self.history.end(entry.trial, loss))
        return ended

    def race(self, workers: int, random: np.random.Generator, failing: float = 0.0) -> Iterator[Entry]:
        """Workers that end in any order, until nothing is left; yields each trial that ended."""
        running: list[Entry] = []
        while True:
            while len(running) < workers and isinstance(entry := self.start(), Entry):
                running.append(entry)
            if not running:
                return
            ends = running.pop(int(random.integers(len(running))))
            yield self.history.end(ends.trial, None if random.random() < failing else float(random.integers(20)))

"""Which parameters mattered: found where it is known, not claimed where there is too little, from a living journal."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from books import make_space, open_book, plain_space

from ichsearch.search.book import Started
from ichsearch.search.importance import FEWEST_TRIALS, read_importance
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space import Space
from ichsearch.train.trial import TrialResult


def told(root: Path, space: Space) -> RunFolder:
    """A run whose score depends on the backbone, on chance, and on nothing else."""
    rng, book = np.random.default_rng(0), open_book(root, space)
    while isinstance(started := book.next(), Started):
        config = started.config
        value = 0.6 + 0.2 * (config.backbone == "test_resnet") + rng.uniform(0, 0.1)
        book.tell_finished(started, TrialResult(value, 1, {}, 1.0, 100.0, 1.0, 8, config.epochs))
    return RunFolder(root)


def test_what_mattered_comes_first_and_shares_add_up(tmp_path: Path) -> None:
    result = read_importance(told(tmp_path, plain_space(trials=60, sampler="random")))
    assert result.trials == 60
    assert next(iter(result.shares)) == "backbone"
    assert result.shares["backbone"].value > 2 * result.shares["augment"].value
    assert sum(share.value for share in result.shares.values()) == pytest.approx(1)
    assert set(result.shares) == {"backbone", "batch_size", "augment", "lr"}  # a case of `when` is the same parameter
    assert result.caveat == ""


def test_the_length_with_most_trials_is_looked_at(tmp_path: Path) -> None:
    result = read_importance(told(tmp_path, make_space(trials=60, sampler="random")))
    assert result.study == "small · 1 epoch"
    assert f"n = {result.trials}" in result.caveat


def test_few_trials_tell_nothing(tmp_path: Path) -> None:
    result = read_importance(told(tmp_path, plain_space(trials=FEWEST_TRIALS - 1)))
    assert not result.shares
    assert f"needs {FEWEST_TRIALS} finished trials of one length, but this run has 19" in result.caveat
    assert not read_importance(RunFolder(tmp_path / "nothing")).shares


def test_it_is_the_same_each_time_and_leaves_the_journal_alone(tmp_path: Path) -> None:
    folder = told(tmp_path, plain_space(trials=24, sampler="random"))
    before, verbosity = folder.journal.read_bytes(), optuna.logging.get_verbosity()
    first = read_importance(folder)
    folder.journal.write_bytes(before + b'{"op_code": 6, "worker')  # a driver is writing
    assert read_importance(folder) == first
    assert folder.journal.read_bytes().startswith(before)
    assert optuna.logging.get_verbosity() == verbosity

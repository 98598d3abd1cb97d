"""The benchmark of searchers: what its ledger counts, what its figures mean, and that every peer runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.append(str(BENCHMARKS))  # they import each other as scripts do

from search_peers import PEERS  # noqa: E402
from search_statistics import difference, mean_and_error  # noqa: E402
from search_table import Exhausted, Ledger, Task, load_tasks, normalised_regret  # noqa: E402

NAN = float("nan")
SMALL = Task(
    np.array([[9.0, 5.0, 7.0], [8.0, 2.0, 6.0], [1.5, NAN, NAN], [9.0, 9.0, 4.0]]),
    np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    ("lr", "decay"),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Power laws that cross, with noise; a few diverge. 2 tasks, 40 configurations, 20 epochs, 3 hyperparameters."""
    random = np.random.default_rng(0)
    unit = random.random((2, 40, 3), dtype=np.float32)
    speed, end = 0.2 + 2 * unit[..., :1], unit[..., :1] + ((unit[..., 1:] - 0.3) ** 2).sum(axis=-1, keepdims=True)
    epochs = np.arange(1, 21)
    losses = end + 2 * epochs**-speed + random.normal(0, 0.02, (2, 40, 20))
    losses[:, :4, 10:] = NAN
    losses[:, 4:6] = NAN
    path = tmp_path_factory.mktemp("table") / "curves.npz"
    np.savez(path, tasks=["a", "b"], valid_loss=losses.astype(np.float32), unit=unit, names=["x", "y", "z"])
    return path


def test_a_ledger_counts_every_epoch_and_remembers_the_best_loss_at_each() -> None:
    ledger = Ledger(SMALL, 8)
    assert ledger.train(0, 0, 3).tolist() == [9, 5, 7]
    assert ledger.train(1, 0, 1).tolist() == [8]
    assert ledger.train(1, 1, 3).tolist() == [2, 6]
    assert ledger.paid == 6
    with pytest.raises(Exhausted):
        ledger.train(3, 0, 3)
    assert ledger.paid == 8
    assert [ledger.best(points) for points in range(9)] == [np.inf, 9, 5, 5, 5, 2, 2, 2, 2]


def test_a_run_ends_with_the_budget_and_what_it_paid_for_counts() -> None:
    ledger = Ledger(SMALL, 2)
    with pytest.raises(Exhausted):
        ledger.train(1, 0, 3)
    assert ledger.best(2) == 2
    with pytest.raises(Exhausted):
        ledger.train(2, 0, 1)
    assert (ledger.paid, ledger.best(2)) == (2, 2)


def test_the_last_point_of_the_budget_ends_the_run() -> None:
    ledger = Ledger(SMALL, 3)
    with pytest.raises(Exhausted):
        ledger.train(1, 0, 3)


def test_a_restart_pays_all_its_epochs_again() -> None:
    ledger = Ledger(SMALL, 9)
    ledger.train(0, 0, 1)
    ledger.train(0, 0, 3)
    assert ledger.paid == 4


def test_diverged_losses_are_seen_but_never_best() -> None:
    ledger = Ledger(SMALL, 9)
    assert np.isnan(ledger.train(2, 1, 3)).all()
    assert ledger.best(2) == np.inf
    ledger.train(3, 0, 3)
    ledger.train(2, 0, 3)
    assert [ledger.best(points) for points in range(2, 9)] == [np.inf, 9, 9, 4, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("epochs", [(0, 4), (2, 2), (-1, 1), (3, 3)])
def test_epochs_that_the_table_lacks_are_refused(epochs: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="<= 3 must hold"):
        Ledger(SMALL, 9).train(0, *epochs)


def test_a_point_gets_the_nearest_configuration() -> None:
    assert [Ledger(SMALL, 1).nearest(point) for point in ([0.2, 0.4], [0.6, 0.1], [0.0, 0.9], [0.6, 0.7])] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("seen", "regret"), [(4.0, 0.0), (6.5, 1.0), (5.0, 0.4), (1.5, 0.0), (7.0, 1.0), (np.inf, 1.0)]
)
def test_regret_is_0_at_the_best_final_loss_and_1_at_the_median(seen: float, regret: float) -> None:
    # The final losses are 4, 6, 7 and a divergence, which counts as infinite.
    assert normalised_regret(SMALL, seen) == pytest.approx(regret)


def test_standard_errors_come_from_the_seeds_within_tasks() -> None:
    regrets = np.array([[0.1, 0.3], [0.7, 0.7]])
    mean, error = mean_and_error(regrets)
    assert mean == pytest.approx(0.45)
    assert error == pytest.approx(0.05)  # variance 0.02 of two seeds: 0.01, over two tasks squared: 0.0025
    assert mean_and_error(regrets[:, :1]) == (pytest.approx(0.4), None)


def test_differences_are_paired() -> None:
    others = np.random.default_rng(0).random((12, 20))
    shifted = difference(others - 0.1, others)
    assert shifted.mean == pytest.approx(-0.1)
    assert shifted.these_tasks == pytest.approx((-0.1, -0.1))
    assert shifted.such_tasks == pytest.approx((-0.1, -0.1))
    assert (shifted.tasks_won, shifted.tasks_lost) == (12, 0)


def test_the_interval_of_differences_holds_what_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        of_tasks = random.normal(0, 1, (6, 1))
        bounds = difference(of_tasks + random.normal(0.3, 1, (6, 10)), np.zeros((6, 10))).these_tasks
        assert bounds is not None
        held += bounds[0] <= of_tasks.mean() + 0.3 <= bounds[1]
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_spends_its_budget_and_repeats_itself_with_its_seed(name: str, table: Path) -> None:
    task = load_tasks(table)["b"]
    runs = [_search(name, task, seed) for seed in (1, 1, 2)]
    assert all(run[-1] < np.inf for run in runs)
    assert runs[0] == runs[1] != runs[2]


def _search(name: str, task: Task, seed: int) -> list[float]:
    ledger = Ledger(task, 4 * task.epochs)
    with pytest.raises(Exhausted):
        PEERS[name](ledger, seed)
    assert ledger.paid == ledger.points
    return [ledger.best(points) for points in range(ledger.points + 1)]


def test_the_command_compares_and_keeps_its_rows(table: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    _, figures = _command(table, "--rows", str(rows), "--only", "random", "TPE")
    assert figures["setting"]["epochs"] == 20
    assert set(figures["budgets"]) == {"1", "2"}
    assert len(pd.read_csv(rows)) == 2 * 2 * 2 * 2  # searchers, tasks, seeds, budgets

    text, again = _command(table, "--rows", str(rows), "--only", "random + ASHA", "--against", "random + ASHA")
    assert "random + ASHA less it" in text
    assert set(again["budgets"]["2"]) == {"random", "TPE", "random + ASHA"}
    assert again["budgets"]["2"]["TPE"]["regret"] == figures["budgets"]["2"]["TPE"]["regret"]


def _command(table: Path, *options: str) -> tuple[str, dict[str, dict[str, dict[str, dict[str, float]]]]]:
    command = [sys.executable, "-W", "error", str(BENCHMARKS / "search.py"), str(table), "--seeds", "2"]
    command += ["--budgets", "1", "2", "--processes", "1", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text, json.loads(text.splitlines()[-1])

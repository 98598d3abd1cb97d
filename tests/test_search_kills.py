"""A search whose driver is killed at any moment and started again ends with the results of an undisturbed one."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.random import Generator
from searches import SPACE, Driver, Work, one_by_one, outlive, private_ray, results, write_tiny_shards
from spaces import write_space

TORN = b'{"op_code": 4, "worker_id": "x", "study'
MOST_WORK = 1.5
ORPHANS_LIVE_S = 60.0


class Searched:
    """One space and its undisturbed run."""

    def __init__(self, folder: Path, shards: Path, schedule: str) -> None:
        space = write_space(folder, one_by_one(SPACE + f"schedule: {schedule}\n"), f"{schedule}.yaml")
        self.arguments = ["--space", space, "--data", shards, "--out"]
        self.folder, self.out = folder, folder / schedule
        driver = self.start(self.out)
        assert driver.end() == 0, driver.said
        self.expected, self.work = results(self.out), Work(self.out).look()

    def start(self, out: Path) -> Driver:
        return Driver([*self.arguments, out], out)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Iterator[Path]:  # noqa: ARG001
    with private_ray():
        yield write_tiny_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["per_rung", pytest.param("whole", marks=pytest.mark.slow)])
def searched(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("searched"), shards, request.param)


def disturb(root: Path, rng: Generator) -> None:
    """What a driver may leave that dies while it writes."""
    if (root / "journal.log").is_file():
        if rng.random() < 0.5:
            with (root / "journal.log").open("ab") as journal:
                journal.write(TORN)
        if rng.random() < 0.5 and not (root / "journal.log.lock").is_symlink():
            (root / "journal.log.lock").symlink_to(root / "journal.log")


def kill_at(driver: Driver, work: Work, events: int, after_s: float) -> tuple[list[int], float]:
    """Kill a driver some time after it has told so many starts and ends of trials.

    Returns:
        The processes that it leaves behind, and the seconds until it told of the first trial.
    """
    first_s, due_s = float("inf"), float("inf")

    def due() -> bool:
        nonlocal first_s, due_s
        told, now_s = len(driver.events("started", "finished")), time.monotonic()
        first_s = min(first_s, now_s - driver.began_s) if told else first_s
        due_s = min(due_s, now_s + after_s) if told >= events else due_s
        return now_s >= due_s

    driver.wait_for(due, work.look)
    return driver.kill(), first_s


def disturbed(searched: Searched, out: Path, kills: int, rng: Generator) -> tuple[int, list[float]]:
    """Run, kill and go on until the end; epochs that were trained, and seconds until each start told of a trial."""
    work, orphans, starts_s = Work(out), list[int](), list[float]()
    for _ in range(kills):
        driver = searched.start(out)
        left, start_s = kill_at(driver, work, int(rng.integers(0, 5)), float(rng.uniform(0, 1)))
        orphans, starts_s = orphans + left, [*starts_s, start_s]
        disturb(out, rng)
    driver = searched.start(out)
    driver.wait_for(lambda: False, work.look)
    assert driver.end() == 0, driver.said
    assert not outlive(orphans, ORPHANS_LIVE_S)
    return work.look(), starts_s


@pytest.mark.slow
def test_a_search_killed_ten_times_ends_as_if_nothing_had_happened(searched: Searched, tmp_path: Path) -> None:
    work, starts_s = disturbed(searched, tmp_path / "run", 10, np.random.default_rng(0))
    print(f"until a start told of a trial: {[round(start_s, 1) for start_s in starts_s]} s")  # noqa: T201
    pd.testing.assert_frame_equal(results(tmp_path / "run"), searched.expected, check_exact=True)
    assert work <= MOST_WORK * searched.work

"""Searches from a store into a store by the real command: killed, gone on with elsewhere, refused, cut off."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from machines import machines
from searches import Driver, one_by_one, outlive, private_ray, results, write_tiny_shards
from spaces import write_space
from stores import Store, new_folder

from ichsearch.search.run_folder import opened
from ichsearch.storage import open_folder

SPACE = """\
name: tiny
metric: auroc_any
trials: 5
epochs: 2
pretrained: no
seed: 3
promotion: {eta: 2, first_epochs: 1}
resources: {cpus_per_trial: CORES}
parameters:
  backbone: {choice: [test_resnet, test_efficientnet]}
  batch_size: 8
  size: 32
  channels: hu
  lr: {float: [0.001, 0.01]}
"""
TWO_NODES = """\
name: nodes
trials: 8
epochs: 40
max_retries: 0
pretrained: no
promotion: {eta: 2, first_epochs: 20}
resources: {cpus_per_trial: 1}
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: {float: [0.001, 0.01]}}
"""
ORPHANS_LIVE_S = 60.0


class Searched:
    """A space, its shards here and in the store, and its undisturbed run on a disk."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.shards, self.remote_shards = write_tiny_shards(folder), new_folder(store)
        copy_to_store(self.shards, self.remote_shards)
        self.space = write_space(folder, one_by_one(SPACE))
        driver = Driver(["--space", self.space, "--data", self.shards, "--out", folder / "run"], folder / "local")
        assert driver.end() == 0, driver.said
        self.expected = results(folder / "run")

    def start(self, out: str, name: str, *options: str) -> Driver:
        """A driver on the store, whatever else the home of this test knows."""
        command = ["--space", self.space, "--data", self.remote_shards, "--out", out, *options]
        return Driver(command, self.folder / name)

    def results(self, out: str) -> pd.DataFrame:
        with opened(out) as run:
            return results(run.root)


def copy_to_store(folder: Path, location: str) -> None:
    here, there = open_folder(folder), open_folder(location)
    for name in here.names():
        there.write_bytes(name, here.read_bytes(name))


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory,
    ray_local: Path,  # noqa: ARG001 - preprocessing joins it
    store: Store,
) -> Iterator[Searched]:
    with private_ray():
        yield Searched(tmp_path_factory.mktemp("searched"), store)


@pytest.fixture
def out(searched: Searched) -> str:
    return new_folder(searched.store)


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ICHSEARCH_HOME", str(tmp_path / "another home"))


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    ichsearch = [sys.executable, "-c", "from ichsearch.cli import main; main()"]
    return subprocess.run([*ichsearch, *map(str, arguments)], capture_output=True, text=True, check=False)


def finished(driver: Driver) -> list[str]:
    return [event["trial"] for event in driver.events("finished")]


def forget_claims(out: str) -> None:
    """As if the dead driver had been silent for long enough."""
    for name in open_folder(f"{out}/lease").names():
        open_folder(f"{out}/lease").remove(name)


@pytest.mark.slow
def test_a_killed_search_goes_on_from_another_machine_and_ends_like_a_local_one(
    searched: Searched, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = searched.start(out, "killed")
    assert driver.wait_for(lambda: len(finished(driver)) >= 2 and len(driver.events("started")) >= 3), driver.said
    before = finished(driver)
    outlive(driver.kill(), ORPHANS_LIVE_S)
    forget_claims(out)
    another_machine(monkeypatch, tmp_path)

    driver = searched.start(out, "gone on with")
    assert driver.end() == 0, driver.said
    assert driver.events("resumed")[0]["done"] >= len(before)
    assert not set(before) & set(finished(driver)), "a finished trial was trained again"
    pd.testing.assert_frame_equal(searched.results(out), searched.expected, check_exact=True)
    assert driver.events("done")[0]["leaderboard"] == f"{out}/leaderboard.csv"
    assert str(tmp_path) not in driver.said
    assert f"report: {out}/report.html" in driver.said
    assert not list((tmp_path / "another home" / "cache" / "mirrors").iterdir())
    names = open_folder(out).names()
    assert not [name for name in names if name.startswith("lease/") or "/checkpoint/" in name or ".lock" in name]


@pytest.mark.slow
def test_a_second_driver_is_refused_and_a_dead_one_is_not_waited_for_long(
    searched: Searched, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = searched.start(out, "first")
    assert driver.wait_for(lambda: bool(driver.events("started"))), driver.said
    another_machine(monkeypatch, tmp_path)
    second = searched.start(out, "second")
    assert second.end() == 8, second.said
    assert "is already running" in second.said
    outlive(driver.kill(), ORPHANS_LIVE_S)
    began_s = time.monotonic()
    third = searched.start(out, "third")
    assert third.wait_for(lambda: bool(third.events("opened"))), third.said
    assert time.monotonic() - began_s < 60
    assert third.end() == 0, third.said
    pd.testing.assert_frame_equal(searched.results(out), searched.expected, check_exact=True)


@pytest.mark.slow
def test_a_store_that_is_away_for_a_minute_costs_nothing(searched: Searched, out: str) -> None:
    driver = searched.start(out, "cut off")
    for trials, away_s in ((1, 8), (2, 60), (4, 8)):
        assert driver.wait_for(lambda trials=trials: len(driver.events("started")) >= trials), driver.said  # type: ignore[misc]
        with searched.store.away():
            time.sleep(away_s)
    assert driver.end() == 0, driver.said
    pd.testing.assert_frame_equal(searched.results(out), searched.expected, check_exact=True)


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_which_goes_on_later(
    searched: Searched, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ICHSEARCH_STORE_PATIENCE_S", "3")
        driver = searched.start(out, "given up")
    assert driver.wait_for(lambda: len(finished(driver)) >= 2), driver.said
    with searched.store.away():
        assert driver.end() == 7, driver.said
    assert "run the same command again" in driver.said
    driver = searched.start(out, "again")
    assert driver.end() == 0, driver.said
    pd.testing.assert_frame_equal(searched.results(out), searched.expected, check_exact=True)


@pytest.mark.slow
def test_the_other_commands_read_and_write_a_run_in_a_store(
    searched: Searched, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = searched.start(out, "whole")
    assert driver.end() == 0, driver.said
    another_machine(monkeypatch, tmp_path)
    shown = command("leaderboard", out, "--json")
    assert shown.returncode == 0, shown.stderr
    assert len(json.loads(shown.stdout)["rows"]) >= 5
    for arguments in (
        ("report", out, "--data", searched.remote_shards),
        ("confirm", out, "--data", searched.remote_shards, "--top", "1", "--seeds", "1"),
        ("ensemble", out, "--data", searched.remote_shards),
        ("evaluate", out, "--data", searched.remote_shards, "--split", "test"),
        ("predict", out, searched.folder / "cohort" / "dicom", "--out", tmp_path / "predictions.csv"),
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        assert os.environ["ICHSEARCH_HOME"] not in done.stdout + done.stderr
    names = open_folder(out).names()
    assert {"ensemble.json", "confirm/confirm.csv", "test_fold.json", "report.html"} <= set(names)
    with opened(out) as run:
        assert pd.read_csv(run.leaderboard)["confirmed"].max() == 1


@pytest.mark.slow
def test_a_run_without_data_has_its_phantom_in_the_store(
    searched: Searched, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = write_space(
        tmp_path, one_by_one(SPACE.replace("trials: 5", "trials: 2")) + "phantom: {patients: 20, slices: 4}\n"
    )
    done = command("run", "--space", space, "--out", out)
    assert done.returncode == 0, done.stderr
    assert open_folder(out).exists("phantom/shards/manifest.json")
    another_machine(monkeypatch, tmp_path)
    done = command("run", "--space", space, "--out", out, "--extend", "--trials", "3")
    assert done.returncode == 0, done.stderr
    assert (searched.results(out)["status"] == "finished").sum() == 3


@pytest.mark.slow
def test_a_search_on_two_nodes_outlives_the_loss_of_one(searched: Searched, out: str, tmp_path: Path) -> None:
    space = write_space(tmp_path, TWO_NODES)
    with machines(2) as cluster:
        command = ["--space", space, "--data", searched.remote_shards, "--out", out, "--address", cluster.address]
        driver = Driver(command, tmp_path / "driver")
        assert driver.wait_for(lambda: len({node.id for node, _, _ in cluster.workers()}) == 2), driver.said
        assert driver.wait_for(lambda: len(finished(driver)) >= 2 and len(driver.events("started")) >= 4), driver.said
        youngest = driver.events("started")[-1]["trial"]
        cluster.lose(cluster.worker_of(youngest)[0])
        assert driver.end() == 0, driver.said
    assert [(event["trial"], event["reason"]) for event in driver.events("again")] == [(youngest, "node lost")]
    assert sorted(finished(driver)) == [f"{number:04d}" for number in range(8)]
    table = searched.results(out)
    assert sorted(table["trial"]) == sorted(finished(driver))
    assert set(table["status"]) == {"finished"}

"""Run folders in a store: what a mirror brings and sends, what it takes away, and a store that is away."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from slice_sets import make_rows, write_shards
from stores import Store, new_folder

from ichsearch.data.cache import local_shards, open_slices
from ichsearch.errors import AlreadyRunningError, ConfigError, DataError, StorageError
from ichsearch.search.driving import driving
from ichsearch.search.mirror import Mirror, mirrors_folder, scratch
from ichsearch.search.node_folder import on_node
from ichsearch.search.run_folder import RunFolder, opened
from ichsearch.search.watchdog import explain_hang, has_hung
from ichsearch.shards import copies
from ichsearch.storage import Folder, open_folder

SIZE = 32


@pytest.fixture
def run(store: Store) -> Folder:
    """A run folder in the store, of which somebody has written a little."""
    folder = open_folder(new_folder(store))
    for name, content in CONTENT.items():
        folder.write_bytes(name, content)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of its own for each test."""
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CONTENT = {
    "space.yaml": b"name: a\n",
    "trials/0000/metrics.json": b"{}",
    "trials/0000/weights.safetensors": bytes(range(100)),
    "journal/00000001": b"one\ntwo\n",
}


def test_a_mirror_has_what_the_store_has_with_holes_for_weights(run: Folder) -> None:
    run.write_bytes("lease/token", b"{}")
    with opened(run.location) as folder:
        assert folder.space.read_bytes() == CONTENT["space.yaml"]
        assert folder.journal.read_bytes() == CONTENT["journal/00000001"]
        weights = folder.trial("0000") / "weights.safetensors"
        assert weights.read_bytes() == bytes(100)
        assert not (folder.root / "lease").exists()
        folder.bring(folder.trial("0000"))
        assert weights.read_bytes() == CONTENT["trials/0000/weights.safetensors"]
        assert str(folder) == run.location
        assert folder.shown(folder.space) == f"{run.location}/space.yaml"
    assert {name: run.read_bytes(name) for name in run.names()} == CONTENT | {"lease/token": b"{}"}, "nothing changed"
    assert not list(mirrors_folder().iterdir())


def test_what_changes_here_changes_there_and_what_goes_goes(run: Folder) -> None:
    with opened(run.location) as folder:
        folder.space.write_bytes(b"name: b\n")
        (folder.trial("0000") / "weights.safetensors").unlink()
        (folder.root / "leaderboard.csv").write_text("trial\n")
        (folder.root / ".half.aside").write_text("half")
        (folder.root / "run.lock").write_text("")
    expected = {**CONTENT, "space.yaml": b"name: b\n", "leaderboard.csv": b"trial\n"}
    del expected["trials/0000/weights.safetensors"]
    assert {name: run.read_bytes(name) for name in run.names()} == expected


def test_what_a_driver_has_written_meanwhile_stays(run: Folder) -> None:
    """A verb that only looks writes its table, too, but of what it found when it began."""
    run.write_bytes("leaderboard.csv", b"as found\n")
    with opened(run.location) as folder:
        assert folder.mirror
        folder.leaderboard.write_text("outdated\n")
        folder.report.write_text("outdated\n")
        folder.ensemble.write_text("{}")
        run.write_bytes("leaderboard.csv", b"final\n")
        run.write_bytes("report.html", b"final\n")
    assert run.read_bytes("leaderboard.csv") == run.read_bytes("report.html") == b"final\n"
    assert run.read_bytes("ensemble.json") == b"{}"


def test_what_is_written_again_after_a_push_is_pushed_again(run: Folder) -> None:
    with opened(run.location) as folder:
        with driving(folder):
            folder.leaderboard.write_text("first")
        folder.leaderboard.write_text("at the end")
    assert run.read_bytes("leaderboard.csv") == b"at the end"


def test_a_mirror_that_is_removed_takes_nothing_from_the_store(run: Folder) -> None:
    """As by somebody who clears the cache while a driver runs."""
    with pytest.raises(StorageError, match="same command"), opened(run.location) as folder, driving(folder):
        shutil.rmtree(mirrors_folder())
        (folder.root / "summary.json").parent.mkdir(parents=True)  # the driver knows nothing of it
        (folder.root / "summary.json").write_text("{}")
    left = {name: run.read_bytes(name) for name in run.names()}
    assert left == CONTENT | {"summary.json": b"{}"}
    with opened(run.location) as folder:
        assert folder.space.read_bytes() == CONTENT["space.yaml"]


def test_a_mirror_that_is_being_removed_takes_nothing_from_the_store(run: Folder) -> None:
    """Its lock may be the last file to go."""
    with pytest.raises(StorageError), opened(run.location) as folder:
        assert folder.mirror
        folder.space.unlink()
        folder.mirror.push(on_second_look=True)
        assert run.exists("space.yaml")
        shutil.rmtree(folder.root)
        folder.mirror.push(on_second_look=True)
    assert run.exists("space.yaml")


def test_metrics_are_never_there_before_what_they_vouch_for(run: Folder, tmp_path: Path) -> None:
    """A trial writes on while it is uploaded: whatever the moment, metrics that tell of a file find it in the store."""
    trial, ended = tmp_path / "trials" / "0001", threading.Event()
    trial.mkdir(parents=True)

    def train() -> None:
        for number in range(60):
            (trial / f"{number}.txt").write_text("x")
            aside = trial / ".metrics.aside"
            aside.write_text(str(number))
            aside.replace(trial / "metrics.json")
            time.sleep(0.02)
        ended.set()

    mirror = Mirror(run.location, tmp_path)
    threading.Thread(target=train).start()
    seen = set()
    while not ended.is_set():
        mirror.push("trials/0001")
        told = int(run.read_bytes("trials/0001/metrics.json")) if run.exists("trials/0001/metrics.json") else -1
        names = run.names()
        assert all(f"trials/0001/{number}.txt" in names for number in range(told + 1))
        seen.add(told)
    assert len(seen) > 3


def test_what_goes_there_goes_here(run: Folder) -> None:
    with opened(run.location) as folder:
        run.remove("trials/0000/weights.safetensors")
        folder.refresh(folder.trial("0000"))
        assert not (folder.trial("0000") / "weights.safetensors").exists()
        assert (folder.trial("0000") / "metrics.json").exists()
    assert "trials/0000/weights.safetensors" not in run.names()


def test_a_file_that_was_changed_here_is_not_brought(run: Folder) -> None:
    with opened(run.location) as folder:
        assert folder.mirror
        folder.space.write_bytes(b"name: mine\n")
        run.write_bytes("space.yaml", b"name: theirs\n")
        folder.mirror.pull()
        assert folder.space.read_bytes() == b"name: mine\n"


def test_a_worker_follows_its_trial_and_stops_when_another_one_has_begun(run: Folder) -> None:
    with opened(run.location) as driver:
        work = driver.trial("0000")
        with on_node(driver, work) as node:
            assert node.root != driver.root
            assert (node.trial("0000") / "weights.safetensors").read_bytes() == CONTENT[
                "trials/0000/weights.safetensors"
            ]
            assert not node.space.exists()
            (node.trial("0000") / "metrics.json").write_text("{1}")
        assert run.read_bytes("trials/0000/metrics.json") == b"{1}"
        with pytest.raises(AlreadyRunningError, match="another worker has begun"), on_node(driver, work) as node:
            (node.trial("0000") / "metrics.json").write_text("{old}")
            with on_node(driver, work) as successor:
                (successor.trial("0000") / "metrics.json").write_text("{new}")
        assert run.read_bytes("trials/0000/metrics.json") == b"{new}"
        driver.refresh(work)
        assert (work / "metrics.json").read_text() == "{new}"


@pytest.mark.slow
def test_a_driver_on_another_node_sees_that_a_worker_hung(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import sys, time
from ichsearch.search.node_folder import on_node
from ichsearch.search.run_folder import opened
from ichsearch.search.watchdog import ended_when_hung
with opened(sys.argv[1]) as run, on_node(run, run.trial("0000")) as node, ended_when_hung(node.trial("0000"), 20):
    time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", code, run.location], check=False).returncode == 1
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "another node"))
    with opened(run.location) as folder:
        assert has_hung(folder.trial("0000"))
        explain_hang(folder.trial("0000"))
        assert "most recent call first" in (folder.trial("0000") / "error.txt").read_text()


def hung_mirror(run: Folder) -> Path:
    """What a worker leaves on this node that hung and could not tell; the store knows that it was watched."""
    run.write_bytes(HUNG, b"")
    with scratch(run.location) as root:
        pass
    (root / HUNG).parent.mkdir(parents=True)
    (root / HUNG).write_text("most recent call first")
    (root / ".lock").touch()
    return root


HUNG = "trials/0000/hung.txt"


def test_the_stacks_of_a_worker_that_hung_reach_a_driver_on_its_node(run: Folder) -> None:
    hung_mirror(run)
    with opened(run.location) as folder:
        assert has_hung(folder.trial("0000"))
    assert not list(mirrors_folder().iterdir()), "those of dead processes go, too"


def test_the_stacks_of_a_worker_that_hung_reach_the_store_before_they_go(run: Folder) -> None:
    """Another trial ends on its node."""
    root = hung_mirror(run)
    with scratch(run.location):
        assert run.read_bytes(HUNG) == b""
    assert run.read_bytes(HUNG) == b"most recent call first"
    assert not root.exists()


def test_stacks_that_a_driver_has_explained_do_not_come_back(run: Folder) -> None:
    hung_mirror(run)
    run.remove(HUNG)
    with scratch(run.location):
        pass
    assert HUNG not in run.names()


def test_two_processes_that_rescue_the_same_stacks_do_not_mind(run: Folder) -> None:
    root, failures = hung_mirror(run), []

    def rescue() -> None:
        try:
            with opened(run.location):
                pass
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=rescue) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert run.read_bytes(HUNG) == b"most recent call first"
    assert not root.exists()


def test_a_store_that_comes_back_is_waited_for(store: Store, run: Folder) -> None:
    with store.away():
        back = threading.Timer(1.5, store.let_in)
        back.start()
        run.write_bytes("late", b"x")
    assert run.read_bytes("late") == b"x"
    assert not back.is_alive()


def test_a_store_that_stays_away_is_given_up(store: Store, run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_STORE_PATIENCE_S", "0.5")
    with store.away():
        for ask in (lambda: run.write_bytes("a", b"x"), lambda: run.read_bytes("space.yaml"), run.names):
            with pytest.raises(StorageError, match="must answer, but has not"):
                ask()


@pytest.fixture
def shards(store: Store, tmp_path: Path) -> str:
    """The location of a folder of shards in the store; one like it is in the test's folder."""
    location = new_folder(store)
    write_shards(tmp_path / "shards", make_rows(patients=9, slices=8, size=SIZE), SIZE)
    local = open_folder(tmp_path / "shards")
    for name in local.names():
        open_folder(location).write_bytes(name, local.read_bytes(name))
    return location


def test_shards_of_a_store_are_decoded_like_local_ones(shards: str, tmp_path: Path, cache: Path) -> None:
    found, expected = open_slices(local_shards(shards), SIZE), open_slices(tmp_path / "shards", SIZE, tmp_path / "own")
    assert (found.hu == expected.hu).all()
    assert found.table.equals(expected.table)
    assert not list(cache.glob("*-shards/shard-*")), "decoded, they need no room here"


def test_a_driver_needs_no_room_for_shards_of_a_store(
    shards: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_slices(tmp_path / "shards", SIZE, tmp_path / "own")
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "1000")
    found = open_slices(local_shards(shards), SIZE, decode=False)
    assert found.table.equals(expected.table)
    assert found.streams, "the trials of this node would have to"
    assert not list(cache.glob("*-shards/shard-*"))
    with pytest.raises(ConfigError, match="raise ICHSEARCH_CACHE_BYTES"):
        open_slices(local_shards(shards), SIZE)


def test_a_full_disk_of_the_cache_is_named_with_what_shards_need(
    shards: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    copy = local_shards(shards)
    monkeypatch.setattr(copies, "download", refuse)
    with pytest.raises(
        StorageError, match=rf"disk of the cache {cache} is full: [\d,]+ bytes free, up to [\d,]+ needed"
    ):
        open_slices(copy, SIZE)


def test_shards_of_a_store_that_do_not_fit_are_streamed_from_copies(
    shards: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "shards").glob("*"))
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(n_bytes + 20_000))
    copy = local_shards(shards)
    if n_bytes + 20_000 >= 9 * 8 * SIZE * SIZE * 2:
        pytest.skip("these compress so badly that they fit")
    found = open_slices(copy, SIZE)
    assert found.streams
    assert list(cache.glob("*-shards/shard-*"))
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "1000")
    with pytest.raises(ConfigError, match="raise ICHSEARCH_CACHE_BYTES"):
        open_slices(copy, SIZE // 2)


def test_a_copy_is_not_evicted_while_a_process_uses_it(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = local_shards(shards)
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(9 * 8 * SIZE * SIZE * 2 + 1))
    open_slices(tmp_path / "shards", SIZE)
    assert (copy / "manifest.json").is_file()
    copies._held.pop(copy).close()  # as when its process ends
    open_slices(tmp_path / "shards", SIZE // 2)
    assert not copy.exists()


def test_a_damaged_shard_of_a_store_is_refused_and_may_be_mended(shards: str) -> None:
    name = next(name for name in open_folder(shards).names() if name.startswith("shard-"))
    whole = open_folder(shards).read_bytes(name)
    open_folder(shards).write_bytes(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="SHA-256"):
        open_slices(local_shards(shards), SIZE)
    open_folder(shards).write_bytes(name, whole)
    assert len(open_slices(local_shards(shards), SIZE).hu)


def test_a_missing_shard_of_a_store_is_told(shards: str) -> None:
    name = next(name for name in open_folder(shards).names() if name.startswith("shard-"))
    open_folder(shards).remove(name)
    with pytest.raises(DataError, match=f"must exist, but {name} does not"):
        open_slices(local_shards(shards), SIZE)


def test_a_folder_that_is_no_run_is_left_alone(store: Store) -> None:
    folder = open_folder(new_folder(store))
    folder.write_bytes("notes.txt", b"mine")
    with opened(folder.location) as run:
        assert isinstance(run, RunFolder)
        assert run.holds_other_files()
        assert not (run.root / "notes.txt").exists()
    assert os.environ["AWS_ENDPOINT_URL"] == store.endpoint

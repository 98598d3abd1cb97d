"""The node cache: what it decodes, what it refuses, what it evicts, and what a dead builder leaves."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from slice_sets import Row, as_slice_set, make_rows, write_shards

from ichsearch.data import cache_build
from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.channels import hist_breaks
from ichsearch.data.decode import area_averaged
from ichsearch.errors import ConfigError, DataError, StorageError
from ichsearch.labels import LABELS
from ichsearch.shards.identity import cache_folder
from ichsearch.shards.schema import pack_hu

SIZE = 32
BYTES_A_SLICE = SIZE * SIZE * 2


@pytest.fixture
def rows() -> list[Row]:
    return make_rows(patients=9, slices=8, size=SIZE, unlabelled_patients=2)


@pytest.fixture
def shards(tmp_path: Path, rows: list[Row]) -> Path:
    write_shards(tmp_path / "shards", rows, SIZE)
    return tmp_path / "shards"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(cache: Path) -> list[str]:
    """Names in the cache but for its lock: finished entries, and whatever a builder left."""
    return sorted(path.name for path in cache.iterdir() if path.name != "lock")


def flip_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_slices_and_table_come_back_as_they_were_written(shards: Path, cache: Path, rows: list[Row]) -> None:
    opened, expected = open_slices(shards, SIZE, cache), as_slice_set(rows, SIZE)
    assert opened.hu.dtype == np.int16
    np.testing.assert_array_equal(opened.hu, expected.hu)
    assert opened.table.equals(expected.table)
    np.testing.assert_array_equal(opened.labels, expected.labels)


def test_labels_are_float32_with_nan_for_unlabelled_slices(rows: list[Row]) -> None:
    slices = as_slice_set(rows, SIZE)
    assert slices.labels.dtype == np.float32
    assert slices.labels.shape == (72, 6)
    assert np.isnan(slices.labels[-16:]).all()
    assert set(np.unique(slices.labels[:-16])) == {0, 1}
    assert [rows[0][label] for label in LABELS] == slices.labels[0].tolist()


def test_labels_of_a_fully_labelled_set_are_float32_too() -> None:
    slices = as_slice_set(make_rows(patients=2, size=SIZE), SIZE)
    assert slices.labels.dtype == np.float32
    assert not np.isnan(slices.labels).any()


def test_relative_position_runs_from_feet_to_head(rows: list[Row]) -> None:
    position = as_slice_set(rows, SIZE).relative_position
    assert position.dtype == np.float32
    np.testing.assert_allclose(position[:8], np.arange(8) / 7, rtol=1e-6)


def test_a_series_of_one_slice_is_in_the_middle() -> None:
    assert as_slice_set(make_rows(patients=2, slices=1, size=SIZE), SIZE).relative_position.tolist() == [0.5, 0.5]


def test_a_third_of_the_size_is_the_mean_of_three_by_three_blocks() -> None:
    hu = np.random.default_rng(1).integers(-1024, 3072, (5, 48, 48)).astype(np.int16)
    means = hu.reshape(5, 16, 3, 16, 3).mean(axis=(2, 4))
    averaged = area_averaged(hu, 16)
    assert averaged.dtype == np.int16
    np.testing.assert_array_equal(averaged, np.round(means))


def test_a_smaller_size_is_averaged_from_the_shards(shards: Path, cache: Path, rows: list[Row]) -> None:
    opened = open_slices(shards, SIZE // 2, cache)
    np.testing.assert_array_equal(opened.hu, area_averaged(as_slice_set(rows, SIZE).hu, SIZE // 2))


def test_a_size_that_divides_nothing_keeps_constants(cache: Path, tmp_path: Path, rows: list[Row]) -> None:
    for row in rows:
        row["hu"] = pack_hu(np.full((SIZE, SIZE), -77, np.int16))
    write_shards(tmp_path / "constant", rows, SIZE)
    assert (open_slices(tmp_path / "constant", 23, cache).hu == -77).all()


def test_the_array_is_a_read_only_map_of_the_cache_file(shards: Path, cache: Path) -> None:
    hu = open_slices(shards, SIZE, cache).hu
    assert isinstance(hu, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        hu[0, 0, 0] = 0


def test_a_second_opening_reads_no_shard(shards: Path, cache: Path) -> None:
    first = open_slices(shards, SIZE, cache)
    for shard in shards.glob("*.parquet"):
        shard.unlink()
    second = open_slices(shards, SIZE, cache)
    np.testing.assert_array_equal(first.hu, second.hu)
    assert first.fingerprint == second.fingerprint


def test_every_size_has_an_entry_of_its_own(shards: Path, cache: Path) -> None:
    assert open_slices(shards, SIZE, cache).hu.shape == (72, SIZE, SIZE)
    assert open_slices(shards, 16, cache).hu.shape == (72, 16, 16)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_in_a_shard_is_a_data_error_and_no_entry(shards: Path, cache: Path, place: float) -> None:
    damaged = shards / "shard-0001.parquet"
    flip_byte(damaged, int(damaged.stat().st_size * place))
    with pytest.raises(DataError, match=r"shard-0001\.parquet"):
        open_slices(shards, SIZE, cache)
    assert not [name for name in entries(cache) if not name.startswith(".")]


def test_a_mended_shard_opens_after_the_error(shards: Path, cache: Path, rows: list[Row]) -> None:
    flip_byte(shards / "shard-0001.parquet", 1000)
    with pytest.raises(DataError):
        open_slices(shards, SIZE, cache)
    flip_byte(shards / "shard-0001.parquet", 1000)
    np.testing.assert_array_equal(open_slices(shards, SIZE, cache).hu, as_slice_set(rows, SIZE).hu)


def test_a_missing_shard_is_a_data_error(shards: Path, cache: Path) -> None:
    (shards / "shard-0000.parquet").unlink()
    with pytest.raises(DataError, match=r"shard-0000\.parquet"):
        open_slices(shards, SIZE, cache)


def test_a_folder_without_manifest_is_a_data_error(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_slices(tmp_path, SIZE, cache)


def test_a_size_beyond_the_stored_one_is_a_config_error(shards: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="at most the shards' 32 px, but is 33"):
        open_slices(shards, SIZE + 1, cache)


def test_the_least_recently_used_entry_makes_room(
    tmp_path: Path, cache: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("first", "second", "third")]
    names = []
    for number, folder in enumerate(folders):
        manifest = write_shards(folder, rows[number : number + 48], SIZE)
        names.append(f"{manifest.fingerprint[:16]}-{SIZE}px")
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(int(2.8 * 48 * BYTES_A_SLICE)))
    for number in (0, 1):
        open_slices(folders[number], SIZE, cache)
        os.utime(cache / names[number], (1000 + number, 1000 + number))
    open_slices(folders[0], SIZE, cache)  # now the second is the least recently used
    open_slices(folders[2], SIZE, cache)
    assert entries(cache) == sorted([names[0], names[2]])


def test_an_evicted_map_stays_readable_where_it_is_open(
    tmp_path: Path, cache: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "first", rows[:40], SIZE)
    write_shards(tmp_path / "second", rows[32:], SIZE)
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(int(1.5 * 40 * BYTES_A_SLICE)))
    first = open_slices(tmp_path / "first", SIZE, cache)
    open_slices(tmp_path / "second", SIZE, cache)
    assert len(entries(cache)) == 1
    np.testing.assert_array_equal(first.hu, as_slice_set(rows[:40], SIZE).hu)


def test_slices_beyond_the_quota_are_streamed_and_evict_nobody(
    tmp_path: Path, cache: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "small", rows[:10], SIZE)
    write_shards(tmp_path / "large", rows, SIZE)
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(40 * BYTES_A_SLICE))
    small, large = (open_slices(tmp_path / name, SIZE, cache) for name in ("small", "large"))
    assert (small.streams, large.streams) == (False, True)
    assert large.table.equals(as_slice_set(rows, SIZE).table)
    assert len(entries(cache)) == 2
    assert not open_slices(tmp_path / "small", SIZE, cache).streams


def test_a_streamed_set_takes_no_room_for_pixels(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "100000")
    assert open_slices(shards, SIZE, cache).hu.shape == (72, SIZE, SIZE)
    assert sum(file.stat().st_size for file in cache.rglob("*")) < 72 * BYTES_A_SLICE


def test_what_nobody_reads_is_not_decoded_until_somebody_does(shards: Path, cache: Path, rows: list[Row]) -> None:
    described = open_slices(shards, SIZE, cache, decode=False)
    assert not list(cache.rglob("hu.npy"))
    whole = open_slices(shards, SIZE, cache)
    assert len(list(cache.rglob("hu.npy"))) == 1
    assert described.table.equals(whole.table)
    np.testing.assert_array_equal(described.hist_breaks, whole.hist_breaks)
    assert (described.fingerprint, described.registered) == (whole.fingerprint, whole.registered)
    assert (described.streams, whole.streams) == (False, False), "there is room for them"
    np.testing.assert_array_equal(open_slices(shards, SIZE, cache, decode=False).hu, as_slice_set(rows, SIZE).hu)


def test_a_quota_that_was_raised_ends_the_streaming(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "100000")
    assert open_slices(shards, SIZE, cache).streams
    monkeypatch.delenv("ICHSEARCH_CACHE_BYTES")
    assert not open_slices(shards, SIZE, cache).streams
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "100000")
    assert not open_slices(shards, SIZE, cache).streams, "what is decoded is used, whatever the quota is now"


@pytest.mark.parametrize("lost", ["hu.npy", "slices.parquet", "hist_breaks.npy"])
def test_an_entry_that_lost_a_file_is_built_again(shards: Path, cache: Path, rows: list[Row], lost: str) -> None:
    open_slices(shards, SIZE, cache)
    (cache / entries(cache)[0] / lost).unlink()
    opened = open_slices(shards, SIZE, cache)
    np.testing.assert_array_equal(opened.hu, as_slice_set(rows, SIZE).hu)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(("crop", "registered"), [("series", True), ("slice", False)])
def test_the_set_knows_whether_a_series_was_cropped_by_one_box(
    tmp_path: Path, cache: Path, rows: list[Row], crop: Literal["series", "slice"], registered: bool
) -> None:
    write_shards(tmp_path / "shards", rows, SIZE, crop=crop)
    assert open_slices(tmp_path / "shards", SIZE, cache).registered == registered


def test_breaks_are_those_of_the_slices_while_these_are_fewer_than_the_sample(
    shards: Path, cache: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = as_slice_set(rows, SIZE).hist_breaks
    np.testing.assert_array_equal(open_slices(shards, SIZE, cache).hist_breaks, expected)
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", "100000")
    streamed = open_slices(shards, SIZE, cache.with_name("other"))
    assert streamed.streams
    np.testing.assert_array_equal(streamed.hist_breaks, expected)


def test_breaks_are_of_a_sample_that_is_spread_evenly(
    shards: Path, cache: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_build, "SAMPLE_SLICES", 3)
    hu = np.asarray(as_slice_set(rows, SIZE).hu)
    np.testing.assert_array_equal(open_slices(shards, SIZE, cache).hist_breaks, hist_breaks(hu[[0, 36, 71]]))


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ICHSEARCH_CACHE", raising=False)
    assert cache_folder() == tmp_path / "home" / "cache"
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "fast disk"))
    assert cache_folder() == tmp_path / "fast disk"


BUILDER = """
import sys, time
from pathlib import Path
from ichsearch.data import cache, cache_build

mode, shards, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
read, build = cache_build.read_shard, cache._build

def stuck(*arguments):
    yield next(read(*arguments))
    print("half", flush=True)
    time.sleep(300)

def counted(*arguments):
    print("built", flush=True)
    build(*arguments)
    time.sleep(0.5)

if mode == "stuck":
    cache_build.read_shard = stuck
else:
    cache._build = counted
    print("ready", flush=True)
    sys.stdin.readline()
print(int(cache.open_slices(shards, 32, folder).hu.sum(dtype="int64")), flush=True)
"""


def start_builder(mode: str, shards: Path, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, mode, str(shards), str(cache)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_a_builder_killed_half_way_neither_blocks_nor_fools_the_next(
    tmp_path: Path, shards: Path, cache: Path, rows: list[Row]
) -> None:
    with start_builder("stuck", shards, cache) as builder:
        assert builder.stdout is not None
        try:
            assert builder.stdout.readline() == "half\n"
        finally:
            builder.kill()
    assert entries(cache)
    assert all(name.startswith(".") for name in entries(cache))

    write_shards(tmp_path / "other", rows[:8], SIZE, shards=1)
    open_slices(tmp_path / "other", SIZE, cache)
    assert len(entries(cache)) == 1, "what a dead builder left takes disk outside the quota until somebody removes it"

    np.testing.assert_array_equal(open_slices(shards, SIZE, cache).hu, as_slice_set(rows, SIZE).hu)
    assert len(entries(cache)) == 2


def say_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def waits_for_a_lock(process: "subprocess.Popen[str]") -> bool:
    """As the kernel tells of a process that sleeps in flock."""
    return any(
        f"-> FLOCK  ADVISORY  WRITE {process.pid} " in line for line in Path("/proc/locks").read_text().split("\n")
    )


def test_of_three_that_open_at_once_one_is_killed_and_one_of_the_others_builds(
    shards: Path, cache: Path, rows: list[Row]
) -> None:
    with ExitStack() as stack:
        dead, *living = (
            stack.enter_context(start_builder(mode, shards, cache)) for mode in ("stuck", "counted", "counted")
        )
        try:
            assert dead.stdout is not None
            assert dead.stdout.readline() == "half\n"
            for process in living:
                say_go(process)
            deadline = time.monotonic() + 120
            while not all(map(waits_for_a_lock, living)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            dead.kill()
        lines = [line for process in living for line in process.communicate(timeout=120)[0].split()]
    total = str(int(as_slice_set(rows, SIZE).hu.sum(dtype=np.int64)))
    assert sorted(lines) == sorted(["built", total, total])
    assert len(entries(cache)) == 1
    np.testing.assert_array_equal(open_slices(shards, SIZE, cache).hu, as_slice_set(rows, SIZE).hu)


def test_an_entry_is_complete_before_it_has_its_name(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_table(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cache_build.pq, "write_table", no_table)
    with pytest.raises(OSError, match="disk full"):
        open_slices(shards, SIZE, cache)
    monkeypatch.undo()
    slices: SliceSet = open_slices(shards, SIZE, cache)
    assert len(slices.table) == len(slices.hu)


def test_a_disk_without_room_for_an_entry_is_refused_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=2, slices=3), 32)
    monkeypatch.setenv("ICHSEARCH_CACHE_BYTES", str(1 << 40))
    usage = shutil.disk_usage(tmp_path)._replace(free=6 * 32 * 32 * 2 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"is full: 12,287 bytes free, 12,288 needed; make room"):
        open_slices(tmp_path / "shards", 32, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*px*"))

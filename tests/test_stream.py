"""Slices streamed from real shards: the same pixels, every slice once an epoch, within a window of memory."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from slice_sets import Row, as_slice_set, make_rows, write_shards

from ichsearch.data.augment import Augmentation
from ichsearch.data.batches import Batches, Recipe
from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import Channels
from ichsearch.data.decode import area_averaged
from ichsearch.data.sampling import Sampler
from ichsearch.data.stream import SliceStream
from ichsearch.errors import DataError
from ichsearch.shards import schema
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.shards.schema import ROW_GROUP_SLICES

CPU = torch.device("cpu")
SIZE = 16
SLICES = 400  # 7 row groups in each of two shards, the last with 8 slices; series of 10 lie across groups and shards
GROUP_BYTES = ROW_GROUP_SLICES * SIZE * SIZE * 2
WINDOW_GROUPS = 3


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows(patients=SLICES // 10, slices=10, size=SIZE)


@pytest.fixture(scope="module")
def mapped(rows: list[Row]) -> SliceSet:
    return as_slice_set(rows, SIZE)


@pytest.fixture
def folder(tmp_path: Path, rows: list[Row]) -> Path:
    write_shards(tmp_path, rows, SIZE)
    return tmp_path


def stream_of(folder: Path, *, run_groups: int = 1, size: int = SIZE) -> SliceStream:
    window = WINDOW_GROUPS * ROW_GROUP_SLICES * size * size * 2
    return SliceStream(folder, read_manifest(folder), size, window=window, run_groups=run_groups)


@pytest.fixture
def streamed(folder: Path, mapped: SliceSet) -> SliceSet:
    return replace(mapped, hu=stream_of(folder))


class Counting(SliceStream):
    """A stream that counts what it reads and the most that it holds."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest, SIZE, window=WINDOW_GROUPS * GROUP_BYTES, run_groups=1)
        self.read_from: Counter[int] = Counter()
        self.most_held_bytes = 0

    def read(self, start: int, stop: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
        self.read_from[start] += 1
        hu = super().read(start, stop)
        self.most_held_bytes = max(
            self.most_held_bytes, hu.nbytes + sum(held.nbytes for _, held in self._held.values())
        )
        return hu


def numbered(rows: list[Row], mapped: SliceSet) -> SliceSet:
    """A part of which a batch's labels say which slices it shows: label 0 is the row's number."""
    table = mapped.table.copy()
    table["epidural"] = np.arange(len(rows), dtype=np.float32)
    return replace(mapped, table=table)


def shown(batches: Batches, epoch: int) -> list[int]:
    return [int(value) for _, labels in batches.train(epoch) for value in labels[:, 0]]


def test_a_stream_is_as_long_as_its_shards(folder: Path) -> None:
    stream = stream_of(folder)
    assert stream.shape == (SLICES, SIZE, SIZE)
    assert len(stream) == SLICES
    assert stream.runs_held == WINDOW_GROUPS


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (31, 32), (31, 33), (0, SLICES), (190, 210), (199, 201), (399, 400)]
)
def test_any_range_of_rows_is_read(folder: Path, mapped: SliceSet, start: int, stop: int) -> None:
    np.testing.assert_array_equal(stream_of(folder).read(start, stop), mapped.hu[start:stop])


@pytest.mark.parametrize("run_groups", [1, 2, 5, 100])
def test_rows_and_their_neighbours_come_in_any_order(folder: Path, mapped: SliceSet, run_groups: int) -> None:
    sources = mapped.neighbours[np.random.default_rng(0).permutation(SLICES)]
    stream = stream_of(folder, run_groups=run_groups)
    for rows in (sources, sources[:, 1:2]):
        out = np.empty((*rows.shape, SIZE, SIZE), np.int16)
        stream.take(rows, out)
        np.testing.assert_array_equal(out, np.asarray(mapped.hu)[rows])


def test_a_smaller_size_is_averaged(folder: Path, mapped: SliceSet) -> None:
    np.testing.assert_array_equal(
        stream_of(folder, size=8).read(30, 50), area_averaged(np.asarray(mapped.hu)[30:50], 8)
    )


def test_the_table_is_that_of_the_shards(folder: Path, mapped: SliceSet) -> None:
    stream = stream_of(folder)
    assert pa.concat_tables([stream.metadata(part) for part in stream.parts]).to_pandas().equals(mapped.table)


@pytest.mark.parametrize("channels", ["hu", "windows", "neighbours", "hist"])
def test_evaluation_is_that_of_a_memory_map(mapped: SliceSet, streamed: SliceSet, channels: Channels) -> None:
    rows = np.flatnonzero(np.arange(SLICES) % 7)
    recipe = Recipe(16, channels)
    for one, other in zip(
        Batches(mapped, rows, recipe, CPU).evaluate(), Batches(streamed, rows, recipe, CPU).evaluate(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("channels", ["hu", "neighbours"])
def test_training_shows_the_pixels_of_the_slices_whose_labels_it_shows(
    rows: list[Row], mapped: SliceSet, folder: Path, channels: Channels
) -> None:
    slices = replace(numbered(rows, mapped), hu=stream_of(folder))
    reference = Batches(mapped, np.arange(SLICES), Recipe(SLICES, channels), CPU)
    images = next(reference.evaluate())
    for inputs, labels in Batches(slices, np.arange(SLICES), Recipe(16, channels), CPU).train(1):
        assert torch.equal(inputs, images[labels[:, 0].long()])


def test_every_slice_of_the_part_is_shown_once_an_epoch(rows: list[Row], mapped: SliceSet, folder: Path) -> None:
    slices = replace(numbered(rows, mapped), hu=stream_of(folder))
    part = np.flatnonzero(np.arange(SLICES) % 5)  # 320 slices
    orders = [
        shown(Batches(slices, part, Recipe(16, "hu", seed=seed), CPU), epoch)
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    for order in orders:
        assert sorted(order) == part.tolist()
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] == shown(Batches(slices, part, Recipe(16, "hu", seed=0), CPU), 0)


def test_a_last_batch_that_is_not_full_is_left_out_of_an_epoch_here_too(
    rows: list[Row], mapped: SliceSet, folder: Path
) -> None:
    slices = replace(numbered(rows, mapped), hu=stream_of(folder))
    batches = Batches(slices, np.arange(SLICES), Recipe(48, "hu"), CPU)
    first = shown(batches, 0)
    assert len(first) == len(set(first)) == 8 * 48
    assert set().union(*(shown(batches, epoch) for epoch in range(8))) == set(range(SLICES))


def test_an_epoch_entered_in_its_middle_goes_on_as_a_whole_one(streamed: SliceSet) -> None:
    recipe = Recipe(32, "neighbours", augmentation=Augmentation(strength=1.0), sampler="balanced", seed=2)
    batches = Batches(streamed, np.arange(SLICES), recipe, CPU)
    whole = [inputs.clone() for inputs, _ in batches.train(3)]
    for step, (inputs, _) in enumerate(batches.train(3, first_step=5), start=5):
        assert torch.equal(inputs, whole[step])


@pytest.mark.parametrize("channels", ["hu", "neighbours"])
@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
def test_an_epoch_reads_each_run_once_and_holds_a_window(
    folder: Path, mapped: SliceSet, channels: Channels, sampler: Sampler
) -> None:
    stream = Counting(folder, read_manifest(folder))
    batches = Batches(replace(mapped, hu=stream), np.arange(SLICES), Recipe(16, channels, sampler=sampler), CPU)
    list(batches.train(0))
    assert set(stream.read_from.values()) == {1}
    assert len(stream.read_from) == 14
    borders = 2 * WINDOW_GROUPS * SIZE * SIZE * 2
    assert GROUP_BYTES < stream.most_held_bytes <= WINDOW_GROUPS * GROUP_BYTES + borders


def test_runs_without_a_slice_of_the_part_are_not_read(folder: Path, mapped: SliceSet) -> None:
    stream = Counting(folder, read_manifest(folder))
    list(Batches(replace(mapped, hu=stream), np.arange(40, 60), Recipe(4, "hu"), CPU).train(0))
    assert stream.read_from == {32: 1}


def test_slices_that_lie_far_apart_come_into_one_batch(rows: list[Row], mapped: SliceSet, folder: Path) -> None:
    slices = replace(numbered(rows, mapped), hu=stream_of(folder))
    for _, labels in Batches(slices, np.arange(SLICES), Recipe(32, "hu"), CPU).train(0):
        groups = {int(row) // ROW_GROUP_SLICES for row in labels[:, 0]}
        assert len(groups) > 1


def test_a_shard_is_hashed_once_a_process(folder: Path, mapped: SliceSet, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256_of = schema.sha256_of
    monkeypatch.setattr(schema, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    batches = Batches(replace(mapped, hu=stream_of(folder)), np.arange(SLICES), Recipe(16, "hu"), CPU)
    for epoch in range(2):
        list(batches.train(epoch))
    assert sorted(hashed) == ["shard-0000.parquet", "shard-0001.parquet"]


def test_a_damaged_shard_is_a_data_error_before_its_first_slice(folder: Path) -> None:
    path = folder / "shard-0001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    stream = stream_of(folder)
    stream.read(0, 200)
    with pytest.raises(DataError, match=r"SHA-256 .* shard-0001\.parquet"):
        stream.read(200, 201)


def test_a_missing_shard_is_a_data_error(folder: Path) -> None:
    (folder / "shard-0001.parquet").unlink()
    with pytest.raises(DataError, match=r"shard-0001\.parquet"):
        stream_of(folder).read(300, 301)

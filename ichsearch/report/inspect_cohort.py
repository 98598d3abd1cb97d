"""What the inspection knows of a cohort: its tables in full, its pixels from a few shards.

In: a folder of shards. Out: a `Cohort`: manifest, one row a slice, the ledger, and a `Sample` of pixels whose choice
depends on nothing but the folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from ichsearch.dicom.pixels import MAX_HU, MIN_HU, Int16Image
from ichsearch.errors import DataError
from ichsearch.files import read_json
from ichsearch.labels import ANY, SUBTYPES
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.shards.metadata import LEDGER_JSON, METADATA
from ichsearch.shards.schema import FRAME_SIDE, read_shard, unpack_hu

SAMPLE_SHARDS: Final = 16
SAMPLE_SLICES: Final = 400
FRAMES_A_SHARD: Final = 3
EXAMPLES: Final = 3
"""Slices shown of each group, from different patients where there are so many."""

NONE: Final = "none"
UNLABELLED: Final = "unlabelled"

Frame = npt.NDArray[np.uint8]
Item = TypeVar("Item")


class FilterRow(BaseModel):
    """What a model would not train on if slices below `min_brain` were left out."""

    min_brain: float
    slices_lost: int
    positives_lost: dict[str, int]


class Population(BaseModel):
    """Slices stored alike (BitsStored, PixelRepresentation)."""

    bits_stored: int
    signed: bool
    slices: int
    labelled: int
    positive: int


class SharedImages(BaseModel):
    """Stored images that more than one patient has."""

    images: int
    slices: int
    patients: int
    conflicting_labels: int


class Ledger(BaseModel):
    """The part of `ledger.json` that the page shows; keys beyond it are left alone."""

    filter: list[FilterRow]
    populations: list[Population]
    transfer_syntaxes: dict[str, int]
    slice_thickness_mm: dict[str, int]
    tilt_degrees: dict[str, int]
    fixed_wrap: int
    clipped_slices: dict[str, int]
    shared_images: SharedImages


@dataclass(slots=True)
class Sample:
    """Pixels read from some shards; keys are row numbers of the metadata."""

    examples: dict[str, list[int]]  # group: rows to show; a label, `none` or `unlabelled`
    images: dict[int, Int16Image] = field(default_factory=dict)  # (size, size) HU, cropped
    frames: dict[int, Frame] = field(default_factory=dict)  # (128, 128) brain window, whole frame
    hu_counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(MAX_HU - MIN_HU + 1, np.int64))
    slices_counted: int = 0
    shards: int = 0


@dataclass(frozen=True, slots=True)
class Cohort:
    """A folder of shards, read for inspection; `table` has one row a slice in the order of the shards."""

    manifest: Manifest
    table: pd.DataFrame
    ledger: Ledger
    sample: Sample

    @property
    def labelled(self) -> pd.DataFrame:
        """The rows that have labels."""
        return self.table[self.table[ANY].notna()]


def read_cohort(shards: Path) -> Cohort:
    """Read a folder of shards.

    Raises:
        DataError: it is not complete, damaged, or its files contradict each other.
    """
    manifest = read_manifest(shards)
    table = read_metadata(shards, manifest)
    return Cohort(manifest, table, read_ledger(shards), read_sample(shards, manifest, table))


def read_metadata(shards: Path, manifest: Manifest) -> pd.DataFrame:
    """`metadata.parquet`, held against the manifest's number of slices."""
    path = _present(shards, METADATA)
    try:
        table: pd.DataFrame = pq.read_table(path, page_checksum_verification=True).to_pandas()
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{path} must be a Parquet file, but is damaged ({error}); preprocess again") from error
    slices = sum(shard.slices for shard in manifest.shards)
    if len(table) != slices:
        raise DataError(f"{path} must have the manifest's {slices} rows, but has {len(table)}; preprocess again")
    return table


def read_ledger(shards: Path) -> Ledger:
    """`ledger.json`, its form checked."""
    path = _present(shards, LEDGER_JSON)
    try:
        return Ledger.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path} must be a ledger, but {where} is wrong; preprocess again") from None


def _present(shards: Path, name: str) -> Path:
    path = shards / name
    if not path.is_file():
        raise DataError(f"a folder of shards has a {name}, but {shards} has none; preprocess again")
    return path


def read_sample(shards: Path, manifest: Manifest, table: pd.DataFrame) -> Sample:
    """Read the pixels of at most `SAMPLE_SHARDS` evenly spread shards, and of more for a subtype that those lack."""
    starts = [0, *accumulate(shard.slices for shard in manifest.shards)]
    shard_of = np.repeat(np.arange(len(manifest.shards)), np.diff(starts))
    chosen = choose_shards(table, shard_of)
    within = table[np.isin(shard_of, chosen)]
    sample = Sample(choose_examples(within), shards=len(chosen))
    counted = set(spread(list(map(int, within.index)), SAMPLE_SLICES))
    for number in chosen:
        entry = manifest.shards[number]
        batches = read_shard(shards / entry.file, entry.sha256, manifest.settings.size)
        _read_rows(sample, counted, _numbered(batches, starts[number]), manifest.settings.size)
    return sample


def choose_shards(table: pd.DataFrame, shard_of: npt.NDArray[np.int64]) -> list[int]:
    """Numbers of the shards to read, ascending: evenly spread, and more for a subtype that those hardly have."""
    chosen = spread(sorted(set(map(int, shard_of))), SAMPLE_SHARDS)
    for subtype in SUBTYPES:
        holders = set(map(int, shard_of[(table[subtype] == 1).to_numpy()]))
        chosen += spread(sorted(holders - set(chosen)), max(0, EXAMPLES - len(holders & set(chosen))))
    return sorted(chosen)


def choose_examples(rows: pd.DataFrame) -> dict[str, list[int]]:
    """Rows to show of every group that has any."""
    groups = {subtype: rows[rows[subtype] == 1] for subtype in SUBTYPES}
    groups[ANY] = rows[(rows[ANY] == 1) & (rows[list(SUBTYPES)] != 1).all(axis=1)]  # of no named subtype
    groups[NONE] = rows[rows[ANY] == 0]
    if not rows[ANY].notna().any():
        groups[UNLABELLED] = rows
    return {name: typical_rows(group) for name, group in groups.items() if len(group)}


def typical_rows(group: pd.DataFrame) -> list[int]:
    """`EXAMPLES` rows of a group: the middle one of each of some patients, then others where patients are too few."""
    middles = [int(rows.index[len(rows) // 2]) for _, rows in group.groupby("patient", sort=False)]
    chosen = spread(middles, EXAMPLES)
    others = [int(row) for row in group.index if row not in set(chosen)]
    return sorted(chosen + spread(others, EXAMPLES - len(chosen)))


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items, evenly spread, in their order."""
    if number >= len(items):
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * number)] for place in range(number)]


def _numbered(batches: Iterator[Any], start: int) -> Iterator[tuple[int, Any, Any]]:
    """Row number, `hu` and `frame` scalars of every row of a shard, read as far as they are asked for."""
    for batch in batches:
        yield from zip(range(start, start + len(batch)), batch.column("hu"), batch.column("frame"), strict=True)
        start += len(batch)


def _read_rows(sample: Sample, counted: set[int], rows: Iterator[tuple[int, Any, Any]], size: int) -> None:
    """Add to the sample what it wants of one shard's rows."""
    shown = {row for group in sample.examples.values() for row in group}
    frames = 0
    for row, hu, frame in rows:
        framed = frame.is_valid and frames < FRAMES_A_SHARD
        if not (framed or row in shown or row in counted):
            continue
        image = unpack_hu(np.frombuffer(hu.as_py(), np.uint8).reshape(2, size, size))
        if framed:
            frames += 1
            sample.frames[row] = np.frombuffer(frame.as_py(), np.uint8).reshape(FRAME_SIDE, FRAME_SIDE)
        if framed or row in shown:
            sample.images[row] = image
        if row in counted:
            sample.hu_counts += np.bincount(image.ravel().astype(np.int64) - MIN_HU, minlength=MAX_HU - MIN_HU + 1)
            sample.slices_counted += 1

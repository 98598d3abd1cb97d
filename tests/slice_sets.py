"""Seeded sets of small slices for tests: a brain disc in air, in which a bright blob means haemorrhage.

In: numbers of patients and slices, a size and a seed. Out: rows of a shard, a `SliceSet` of them in memory, or a folder
of real shards with a manifest.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import hist_breaks
from ichsearch.data.split import Split, make_split
from ichsearch.files import sha256_of
from ichsearch.labels import ANY, LABELS, SUBTYPES
from ichsearch.shards.manifest import Counts, Manifest, Settings, ShardEntry, make_manifest, write_manifest
from ichsearch.shards.metadata import write_metadata
from ichsearch.shards.schema import IMAGES, ShardWriter, pack_hu, shard_schema, unpack_hu
from ichsearch.storage import open_folder

AIR_HU, BRAIN_HU, BLOOD_HU, NOISE_HU = -1000, 32, 75, 4
LITTLE_BRAIN, MUCH_BRAIN = 0.01, 0.4

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OPTIONAL = (
    "padding_value", "window_level_hu", "window_width_hu", "slice_thickness_mm", "gantry_tilt_degrees",
    "reconstruction_diameter_mm", "tube_voltage_kv", "tube_current_ma", "exposure_mas",
)  # fmt: skip

Row = dict[str, Any]


def make_rows(
    *, patients: int = 20, slices: int = 6, size: int = 32, seed: int = 0, unlabelled_patients: int = 0
) -> list[Row]:
    """Rows of a shard with all its columns, patient after patient, from foot to head.

    Every second slice of a series bleeds, with one subtype drawn at random; which of the two is drawn per patient. The
    first slice of a series has little brain. The last `unlabelled_patients` have no labels.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for patient in range(patients):
        odd = int(rng.integers(2))
        for index in range(slices):
            subtype = str(rng.choice(SUBTYPES)) if index % 2 == odd else None
            place = {"series_index": index, "series_slices": slices, "position_mm": 5.0 * index}
            image = draw_image(rng, size, bleeds=subtype is not None)
            truth = _labels(subtype) if patient < patients - unlabelled_patients else dict.fromkeys(LABELS)
            rows.append(place | truth | _row(f"patient{patient:03d}", index, image))
    return rows


def _labels(subtype: str | None) -> dict[str, int]:
    return {label: int(label == subtype or (label == ANY and subtype is not None)) for label in LABELS}


def _row(patient: str, index: int, hu: npt.NDArray[np.int16]) -> Row:
    size = len(hu)
    return {
        "slice": f"{patient}-slice{index:02d}",
        "patient": patient,
        "patient_known": True,
        "study": f"{patient}-study",
        "series": f"{patient}-series",
        "spacing_row_mm": 200 / size,
        "spacing_column_mm": 200 / size,
        "brain_share": LITTLE_BRAIN if index == 0 else MUCH_BRAIN,
        "crop_top": 0,
        "crop_left": 0,
        "crop_side": size,
        "stored_hash": f"image-of-{patient}-{index:02d}",
        "hu": pack_hu(hu),
        **header_columns(size),
    }


def header_columns(size: int) -> Row:
    """What a row says of its file's header and stored values: an untilted scan, written as RSNA's 12-bit half."""
    axial = dict(zip([f"image_{edge}_{axis}" for edge in ("row", "column") for axis in "xyz"], AXIAL, strict=True))
    return {
        "transfer_syntax": "ExplicitVRLittleEndian",
        "rows": size,
        "columns": size,
        "bits_allocated": 16,
        "bits_stored": 12,
        "signed": False,
        "inverted": False,
        "rescale_slope": 1.0,
        "rescale_intercept": -1024.0,
        "pixel_spacing_row_mm": 0.5,
        "pixel_spacing_column_mm": 0.5,
        "tilt_degrees": 0.0,
        **axial,
        **{f"image_position_{axis}_mm": 0.0 for axis in "xyz"},
        **dict.fromkeys(OPTIONAL),
        "stored_min": 0,
        "stored_max": 4095,
        "stored_mean": 400.0,
        "stored_std": 500.0,
        "clipped_low": 0,
        "clipped_high": 0,
        "fixed_wrap": False,
        "frame": None,
    }


def draw_image(rng: np.random.Generator, size: int, *, bleeds: bool) -> npt.NDArray[np.int16]:
    """(size, size) int16 HU: noisy brain in air; a blob of blood at a random place of it if it bleeds."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    brain = x**2 + y**2 < 0.42**2
    hu = np.where(brain, BRAIN_HU + rng.normal(0, NOISE_HU, (size, size)), AIR_HU)
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    if bleeds:
        blob = (x - distance * np.cos(angle)) ** 2 + (y - distance * np.sin(angle)) ** 2 < 0.13**2
        hu[blob] += BLOOD_HU - BRAIN_HU
    return hu.round().astype(np.int16)


def as_slice_set(rows: Sequence[Row], size: int, fingerprint: str = "test data") -> SliceSet:
    """The `SliceSet` that the cache would give for shards of these rows."""
    schema = shard_schema(size)
    table = pa.Table.from_pylist(list(rows), schema=schema).drop_columns(list(IMAGES)).to_pandas()
    hu = unpack_hu(np.stack([np.frombuffer(row["hu"], np.uint8).reshape(2, size, size) for row in rows]))
    return SliceSet(hu, table, fingerprint, registered=True, hist_breaks=hist_breaks(hu))


def make_slices(
    *, patients: int = 20, slices: int = 6, size: int = 32, seed: int = 0, unlabelled_patients: int = 0
) -> SliceSet:
    """`make_rows` as a `SliceSet` in memory."""
    rows = make_rows(patients=patients, slices=slices, size=size, seed=seed, unlabelled_patients=unlabelled_patients)
    return as_slice_set(rows, size)


def split_of(slices: SliceSet, seed: int = 0) -> Split:
    """The slices' split into five folds."""
    return make_split(slices.table, slices.fingerprint, seed)


def write_shards(
    folder: Path,
    rows: Sequence[Row],
    size: int,
    shards: int = 2,
    crop: Literal["series", "slice"] = "series",
    key_id: str = "test key",
) -> Manifest:
    """Write the rows through ichsearch's own writer to `shards` Parquet files with their metadata and a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_write_shard(folder / f"shard-{number:04d}.parquet", part, size) for number, part in _cut(rows, shards)]
    write_metadata(open_folder(folder), [entry.file for entry in entries], size)
    labelled = [row for row in rows if row[ANY] is not None]
    counts = Counts(
        found=len(rows),
        ok=len(rows),
        duplicate=0,
        quarantined=0,
        labelled=len(labelled),
        labels_without_file=0,
        patients=len({row["patient"] for row in rows}),
        patients_unknown=0,
        studies=len({row["study"] for row in rows}),
        series=len({row["series"] for row in rows}),
        fixed_wrap=0,
        positives={label: sum(row[label] for row in labelled) for label in LABELS},
        reasons={},
    )
    settings = Settings(size=size, crop=crop, key_id=key_id, source_id="test source")
    manifest = make_manifest(settings, "slice", counts, entries)
    write_manifest(open_folder(folder), manifest)
    return manifest


def _cut(rows: Sequence[Row], shards: int) -> Iterator[tuple[int, Sequence[Row]]]:
    length = -(-len(rows) // shards)
    for number in range(shards):
        yield number, rows[number * length : (number + 1) * length]


def _write_shard(path: Path, rows: Sequence[Row], size: int) -> ShardEntry:
    with ShardWriter(path, shard_schema(size)) as writer:
        written = writer.write(rows)
    return ShardEntry(file=path.name, slices=written, sha256=sha256_of(path))

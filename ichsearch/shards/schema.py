"""The one place where the form of a shard stands; its writer and its reader are twins.

A shard is a Parquet file with one row a slice, the slices of a study together and, within a series, from foot to head.
All columns but the images are the metadata frame.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ichsearch.errors import DataError
from ichsearch.files import sha256_of
from ichsearch.labels import LABELS
from ichsearch.shards.copies import drop, fetch

SCHEMA_VERSION: Final = 3
ROW_GROUP_SLICES: Final = 32
"""A fixed chunk: the same slices give the same bytes, however they arrived at the writer."""
FRAME_SIDE: Final = 128
IMAGES: Final = ("hu", "frame")


def _needed(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in types.items()]


def _optional(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, kind) for name, kind in types.items()]


def metadata_schema(size: int) -> pa.Schema:
    """Columns of the metadata frame: identity, place, crop, header, stored values, labels; texts from fixed lists."""
    text, flag, small, number = pa.string(), pa.bool_(), pa.int16(), pa.float32()
    fields = [
        # Keyed hashes; `patient` is of the study where there is no PatientID.
        *_needed(slice=text, patient=text, patient_known=flag, study=text, series=text),
        # Index 0 is nearest the feet; position along the slice normal, growing towards the head.
        *_needed(series_index=pa.int32(), series_slices=pa.int32(), position_mm=number, tilt_degrees=number),
        # Of the stored image, after crop and resize; the box in pixels of the frame made square.
        *_needed(spacing_row_mm=number, spacing_column_mm=number, brain_share=number),
        *_needed(crop_top=small, crop_left=small, crop_side=small),
        # The header: how the file holds its pixels (PS3.3 C.7.6.3), windows (C.11.2), geometry (C.7.6.2).
        *_needed(transfer_syntax=text, rows=small, columns=small, bits_allocated=pa.int8(), bits_stored=pa.int8()),
        *_needed(signed=flag, inverted=flag, rescale_slope=number, rescale_intercept=number),
        *_optional(padding_value=pa.int32(), window_level_hu=number, window_width_hu=number),
        *_needed(pixel_spacing_row_mm=number, pixel_spacing_column_mm=number),
        *_needed(**{f"image_position_{axis}_mm": number for axis in "xyz"}),
        *_needed(**{f"image_{edge}_{axis}": number for edge in ("row", "column") for axis in "xyz"}),
        # Acquisition (C.8.2.1).
        *_optional(slice_thickness_mm=number, gantry_tilt_degrees=number, reconstruction_diameter_mm=number),
        *_optional(tube_voltage_kv=number, tube_current_ma=number, exposure_mas=number),
        # The stored values before rescaling; pixels outside [-1024, 3071] HU; whether fix_pxrepr was applied.
        *_needed(stored_min=pa.int32(), stored_max=pa.int32(), stored_mean=number, stored_std=number),
        *_needed(clipped_low=pa.int32(), clipped_high=pa.int32(), fixed_wrap=flag),
        *_needed(stored_hash=text),  # of the stored values: the same image, the same hash
        *_optional(**dict.fromkeys(LABELS, pa.int8())),  # 0, 1, or null for an unlabelled slice
    ]
    return pa.schema(fields, metadata={"ichsearch_schema_version": str(SCHEMA_VERSION), "size": str(size)})


def shard_schema(size: int) -> pa.Schema:
    """Columns of a shard whose slices are (size, size): the metadata frame and the images.

    `hu` is (2, size, size) bytes: the low bytes of int16 HU, then the high ones (`pack_hu`). `frame` is the whole frame
    before cropping, (128, 128) uint8 in the brain window, of the middle slice of each series.
    """
    images = [
        pa.field("hu", pa.binary(size * size * 2), nullable=False),
        pa.field("frame", pa.binary(FRAME_SIDE * FRAME_SIDE)),
    ]
    metadata = metadata_schema(size)
    return pa.schema([*metadata, *images], metadata=metadata.metadata)


def pack_hu(hu: npt.NDArray[np.int16]) -> bytes:
    """(size, size) HU as two planes of bytes: a sixth smaller in a shard than as int16."""
    planes = np.empty((2, *hu.shape), np.uint8)
    planes[0], planes[1] = hu, hu >> 8  # assignment keeps the low byte
    return planes.tobytes()


def unpack_hu(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """HU (..., size, size) of (..., 2, size, size) planes."""
    hu = packed[..., 1, :, :].astype(np.int16)
    hu <<= 8
    hu |= packed[..., 0, :, :]
    return hu


class ShardWriter:
    """Appends rows to one Parquet file in row groups of a fixed length; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        compressed = [name for name in schema.names if name not in IMAGES]
        self._schema = schema
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=compressed,
            write_statistics=False,
            write_page_checksum=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, rows: Iterable[dict[str, Any]]) -> int:
        """Write all rows, drawing from the iterable one row group at a time; returns their number."""
        count = 0
        source = iter(rows)
        while chunk := list(islice(source, ROW_GROUP_SLICES)):
            self.write_table(pa.Table.from_pylist(chunk, schema=self._schema))
            count += len(chunk)
        return count

    def write_table(self, table: pa.Table) -> None:
        """Write a table of the writer's schema as one row group."""
        self._writer.write_table(table)


def read_shard(path: Path, sha256: str, size: int) -> Iterator[pa.RecordBatch]:
    """Row groups of a shard, checked before they are parsed; errors of `open_shard`."""
    file = open_shard(path, sha256, size)
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group).to_batches()


def open_shard(path: Path, sha256: str | None, size: int) -> pq.ParquetFile:
    """A shard whose slices are (size, size), checked before it is parsed; `sha256` is None where it is known.

    Raises:
        DataError: the shard is missing, has other bytes than the manifest says, or another form.
        StorageError: it is in a store that stayed away.
    """
    fetch(path)
    remedy = "run the same `ichsearch preprocess` again: it rebuilds just this shard"
    if not path.is_file():
        raise DataError(f"every shard of the manifest must exist, but {path.name} does not; {remedy}")
    if sha256 is not None and sha256_of(path) != sha256:
        drop(path)
        raise DataError(f"a shard's SHA-256 must be the manifest's, but that of {path.name} is not; {remedy}")
    file = pq.ParquetFile(path, page_checksum_verification=True)
    if not file.schema_arrow.equals(shard_schema(size), check_metadata=True):
        raise DataError(f"a shard must have the columns of schema version {SCHEMA_VERSION}, but {path.name} has others")
    return file

"""The one place where the form of a shard stands; its writer and its reader are twins.

A shard is a Parquet file with one row a slice, the slices of a study together and, within a series, from foot to head.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ichsearch.errors import DataError
from ichsearch.files import sha256_of
from ichsearch.labels import LABELS

SCHEMA_VERSION: Final = 1
ROW_GROUP_SLICES: Final = 32
"""A fixed chunk: the same slices give the same bytes, however they arrived at the writer."""


def shard_schema(size: int) -> pa.Schema:
    """Columns of a shard whose slices are (size, size)."""
    return pa.schema(
        [
            pa.field("slice", pa.string(), nullable=False),  # keyed hash of SOPInstanceUID
            pa.field("patient", pa.string(), nullable=False),  # keyed hash of PatientID, or of the study without one
            pa.field("patient_known", pa.bool_(), nullable=False),
            pa.field("study", pa.string(), nullable=False),
            pa.field("series", pa.string(), nullable=False),
            pa.field("series_index", pa.int16(), nullable=False),  # 0 is nearest the feet
            pa.field("series_slices", pa.int16(), nullable=False),
            pa.field("position_mm", pa.float32(), nullable=False),  # along the slice normal, growing towards the head
            pa.field("spacing_row_mm", pa.float32(), nullable=False),  # of the stored image, after crop and resize
            pa.field("spacing_column_mm", pa.float32(), nullable=False),
            pa.field("brain_share", pa.float32(), nullable=False),  # of the uncropped frame
            pa.field("crop_top", pa.int16(), nullable=False),  # in pixels of the frame made square
            pa.field("crop_left", pa.int16(), nullable=False),
            pa.field("crop_side", pa.int16(), nullable=False),
            pa.field("bits_stored", pa.int8(), nullable=False),
            pa.field("signed", pa.bool_(), nullable=False),
            pa.field("fixed_wrap", pa.bool_(), nullable=False),  # fix_pxrepr was applied
            pa.field(
                "stored_sha256", pa.string(), nullable=False
            ),  # of the stored values: the same image, the same hash
            *(pa.field(label, pa.int8()) for label in LABELS),  # 0, 1, or null for an unlabelled slice
            pa.field("hu", pa.binary(size * size * 2), nullable=False),  # (size, size) little-endian int16
        ],
        metadata={"ichsearch_schema_version": str(SCHEMA_VERSION), "size": str(size)},
    )


class ShardWriter:
    """Appends rows to one Parquet file in row groups of a fixed length; a context manager."""

    def __init__(self, path: Path, size: int) -> None:
        schema = shard_schema(size)
        compressed = [name for name in schema.names if name != "hu"]
        self._schema = schema
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=compressed,
            write_statistics=compressed,
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
            self._writer.write_table(pa.Table.from_pylist(chunk, schema=self._schema))
            count += len(chunk)
        return count


def read_shard(path: Path, sha256: str, size: int) -> Iterator[pa.RecordBatch]:
    """Row groups of a shard, checked before they are parsed.

    Raises:
        DataError: the shard is missing, has other bytes than the manifest says, or another form.
    """
    remedy = "run the same `ichsearch preprocess` again: it rebuilds just this shard"
    if not path.is_file():
        raise DataError(f"every shard of the manifest must exist, but {path.name} does not; {remedy}")
    if sha256_of(path) != sha256:
        raise DataError(f"a shard's SHA-256 must be the manifest's, but that of {path.name} is not; {remedy}")
    file = pq.ParquetFile(path, page_checksum_verification=True)
    if not file.schema_arrow.equals(shard_schema(size), check_metadata=True):
        raise DataError(f"a shard must have the columns of schema version {SCHEMA_VERSION}, but {path.name} has others")
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group).to_batches()

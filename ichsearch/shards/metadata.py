"""The metadata frame, and the ledger of what a filter on brain would cost and who is in the cohort.

In: the finished shards. Out: `metadata.parquet`, the shards' rows without images; `ledger.json`, counts of them.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ichsearch.files import to_json
from ichsearch.labels import ANY, LABELS
from ichsearch.shards.schema import ShardWriter, metadata_schema
from ichsearch.storage import Folder

METADATA: Final = "metadata.parquet"
LEDGER_JSON: Final = "ledger.json"
TILT_STEP_DEGREES: Final = 5
THRESHOLDS: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
COUNTED: Final = [
    "patient", "brain_share", "transfer_syntax", "bits_stored", "signed", "slice_thickness_mm", "tilt_degrees",
    "clipped_low", "clipped_high", "fixed_wrap", "stored_hash", *LABELS,
]  # fmt: skip


def write_metadata(out: Folder, shards: Iterable[str], size: int) -> None:
    """Gather the rows of the named shards, in their order, one shard at a time."""
    schema = metadata_schema(size)
    with out.writing(METADATA) as aside, ShardWriter(aside, schema) as writer:
        for name in shards:
            with out.reading(name) as path:
                writer.write_table(pq.ParquetFile(path).read(schema.names).cast(schema))


def write_ledger(out: Folder) -> None:
    """Count the metadata frame of `out`."""
    with out.reading(METADATA) as path:
        table = pq.read_table(path, columns=COUNTED).to_pandas()
    out.write_bytes(LEDGER_JSON, to_json(make_ledger(table)))


def make_ledger(table: pd.DataFrame) -> dict[str, Any]:
    """Counts of a metadata frame: the filter, populations, syntaxes, thickness, tilt, clipping, shared images."""
    return {
        "filter": [lost_to_filter(table, threshold) for threshold in THRESHOLDS],
        "populations": _populations(table),
        "transfer_syntaxes": _counted(table["transfer_syntax"]),
        "slice_thickness_mm": _counted(table["slice_thickness_mm"]),
        "tilt_degrees": _counted((table["tilt_degrees"] / TILT_STEP_DEGREES).round() * TILT_STEP_DEGREES),
        "fixed_wrap": int(table["fixed_wrap"].sum()),
        "clipped_slices": {
            "low": int((table["clipped_low"] > 0).sum()),
            "high": int((table["clipped_high"] > 0).sum()),
        },
        "shared_images": _shared_images(table),
    }


def lost_to_filter(table: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """What `min_brain: threshold` would take from training."""
    lost = table[table["brain_share"] < np.float32(threshold)]
    positives = {label: int((lost[label] == 1).sum()) for label in LABELS}
    return {"min_brain": threshold, "slices_lost": len(lost), "positives_lost": positives}


def _populations(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Slices by BitsStored and PixelRepresentation: the scanners' two ways to write a CT."""
    kinds = sorted({*zip(table["bits_stored"].tolist(), table["signed"].tolist(), strict=True)})
    groups = [table[(table["bits_stored"] == bits) & (table["signed"] == signed)] for bits, signed in kinds]
    return [
        {
            "bits_stored": bits,
            "signed": signed,
            "slices": len(group),
            "labelled": int(group[ANY].notna().sum()),
            "positive": int((group[ANY] == 1).sum()),
        }
        for (bits, signed), group in zip(kinds, groups, strict=True)
    ]


def _counted(values: "pd.Series[Any]") -> dict[str, int]:
    """How often each value occurs, in their order."""
    counts: Counter[str] = Counter()
    for value, number in values.value_counts(dropna=False).sort_index().items():
        counts[_name(value)] += int(number)
    return dict(counts)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "unknown" if math.isnan(value) else f"{value:g}"


def _shared_images(table: pd.DataFrame) -> dict[str, int]:
    """Images that stand in the files of several patients; a split keeps those patients on one side."""
    patients = table.groupby("stored_hash")["patient"].nunique()
    shared = table[table["stored_hash"].isin(patients.index[patients > 1])]
    kinds = shared.dropna(subset=[ANY]).groupby("stored_hash")[list(LABELS)].nunique()
    return {
        "images": int((patients > 1).sum()),
        "slices": len(shared),
        "patients": int(shared["patient"].nunique()),
        "conflicting_labels": int((kinds > 1).any(axis=1).sum()),
    }

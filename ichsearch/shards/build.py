"""One shard, built from its files: the task that preprocessing fans out.

In: a `ShardJob`. Out: a Parquet file and a ledger entry that says what became of each file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError

from ichsearch.dicom.brain import CropBox, locate_brain, union_box
from ichsearch.dicom.elements import Elements
from ichsearch.dicom.header import slice_header
from ichsearch.dicom.memory import keep_freed_memory
from ichsearch.dicom.pixels import read_image
from ichsearch.dicom.reasons import TRANSIENT, RejectedError
from ichsearch.errors import DataError
from ichsearch.files import from_json, sha256_of, to_json
from ichsearch.labels import LABELS
from ichsearch.shards.identity import Key
from ichsearch.shards.manifest import Frozen, Settings
from ichsearch.shards.plan import LabelledFile, ShardJob, SourceFile
from ichsearch.shards.rows import DecodedSlice, Place, Row, make_row
from ichsearch.shards.schema import ShardWriter, shard_schema
from ichsearch.storage import Folder

LEDGER: Final = "ledger"


class QuarantinedFile(Frozen):
    """A file that became no row; `file` is the keyed hash of its path."""

    file: str
    reason: str
    n_bytes: int


class LedgerEntry(Frozen):
    """What became of a shard's files; it is written after the shard, so that it vouches for it."""

    inputs: str
    sha256: str
    slices: int
    labelled: int
    studies: int
    series: int
    fixed_wrap: int
    patients: list[str]
    patients_unknown: list[str]
    positives: dict[str, int]
    quarantined: list[QuarantinedFile]


def build_shard(out: Folder, job: ShardJob, settings: Settings, key: Key) -> LedgerEntry:
    """Decode the job's files study by study and write `<name>.parquet` and its ledger entry to `out`.

    Memory is bounded by the largest study. A shard of which no file is usable leaves no Parquet file. Nothing is
    synced: a shard is believed only while it has the hash of a readable entry, and is built again otherwise.
    """
    keep_freed_memory()
    quarantined: list[QuarantinedFile] = []
    tally = _Tally()
    with out.writing(f"{job.name}.parquet", durable=False) as aside:
        with ShardWriter(aside, shard_schema(settings.size)) as writer:
            rows = (row for study in job.studies for row in _study_rows(study, settings, key, quarantined))
            slices = writer.write(tally.counting(rows))
        sha256 = sha256_of(aside)
    if not slices:
        out.remove(f"{job.name}.parquet")
    entry = tally.entry(inputs=job.inputs, sha256=sha256, slices=slices, quarantined=quarantined)
    out.write_bytes(ledger_name(job.name), to_json(entry.model_dump()), durable=False)
    return entry


def ledger_name(name: str) -> str:
    """Where a shard's ledger entry stands in the folder."""
    return f"{LEDGER}/{name}.json"


def finished_entry(out: Folder, job: ShardJob) -> LedgerEntry | None:
    """The ledger entry of a shard that is there, whole, and made from the same inputs; None if it must be built."""
    try:
        entry = LedgerEntry.model_validate(from_json(out.read_bytes(ledger_name(job.name)), job.name))
        if entry.inputs != job.inputs or any(item.reason.startswith(TRANSIENT) for item in entry.quarantined):
            return None
        if entry.slices:
            with out.reading(f"{job.name}.parquet") as path:
                return entry if sha256_of(path) == entry.sha256 else None
    except (FileNotFoundError, DataError, ValidationError):
        return None
    return entry


def _study_rows(
    study: list[LabelledFile], settings: Settings, key: Key, quarantined: list[QuarantinedFile]
) -> Iterator[Row]:
    by_series: defaultdict[str, list[LabelledFile]] = defaultdict(list)
    for file in study:
        by_series[file.source.series].append(file)
    for series in sorted(by_series):
        ordered = sorted(by_series[series], key=lambda file: (file.source.position_mm, file.source.slice))
        decoded = list(_decoded(ordered, key, quarantined))
        for index, (item, box) in enumerate(zip(decoded, _boxes(decoded, settings), strict=True)):
            yield make_row(item, box, Place(index, len(decoded)), settings.size)


def _decoded(files: list[LabelledFile], key: Key, quarantined: list[QuarantinedFile]) -> Iterator[DecodedSlice]:
    for file in files:
        source = file.source
        try:
            image = read_image(source.location)
            _require_same(source, image.elements, key)
        except RejectedError as error:
            name = key.hash("path", source.location)
            quarantined.append(QuarantinedFile(file=name, reason=error.reason, n_bytes=source.n_bytes))
        else:
            yield DecodedSlice(file, image, *locate_brain(image.hu))


def _require_same(source: SourceFile, elements: Elements, key: Key) -> None:
    """Refuse a file that was replaced since its header was read: labels and place would be another slice's."""
    header = slice_header(elements)
    if key.hash("slice", header.sop_uid) != source.slice or header.position_mm != source.position_mm:
        raise RejectedError("unreadable")


def _boxes(decoded: list[DecodedSlice], settings: Settings) -> list[CropBox]:
    """One box a slice: the series' common one (per frame size, where a series mixes them), or with `slice` its own."""
    if settings.crop == "slice":
        return [union_box([item.box], item.image.hu.shape[0]) for item in decoded]
    sides = {item.image.hu.shape[0] for item in decoded}
    common = {side: union_box([item.box for item in decoded if item.image.hu.shape[0] == side], side) for side in sides}
    return [common[item.image.hu.shape[0]] for item in decoded]


class _Tally:
    """Counts rows as they pass to the writer."""

    def __init__(self) -> None:
        self._labelled = 0
        self._fixed_wrap = 0
        self._studies: set[str] = set()
        self._series: set[str] = set()
        self._patients: dict[str, bool] = {}
        self._positives: Counter[str] = Counter()

    def counting(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self._labelled += row[LABELS[0]] is not None
            self._fixed_wrap += row["fixed_wrap"]
            self._studies.add(row["study"])
            self._series.add(row["series"])
            self._patients[row["patient"]] = row["patient_known"]
            self._positives.update(label for label in LABELS if row[label])
            yield row

    def entry(self, *, inputs: str, sha256: str, slices: int, quarantined: list[QuarantinedFile]) -> LedgerEntry:
        return LedgerEntry(
            inputs=inputs,
            sha256=sha256,
            slices=slices,
            labelled=self._labelled,
            studies=len(self._studies),
            series=len(self._series),
            fixed_wrap=self._fixed_wrap,
            patients=sorted(self._patients),
            patients_unknown=sorted(patient for patient, known in self._patients.items() if not known),
            positives={label: self._positives[label] for label in LABELS},
            quarantined=quarantined,
        )

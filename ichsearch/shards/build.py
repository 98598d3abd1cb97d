"""One shard, built from its files: the task that preprocessing fans out.

In: a `ShardJob`. Out: a Parquet file and a ledger entry that says what became of each file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from ichsearch.dicom.brain import CropBox, bounding_square, brain_mask, brain_share, cropped, union_box
from ichsearch.dicom.header import RejectedError
from ichsearch.dicom.pixels import SliceImage, read_image
from ichsearch.errors import DataError
from ichsearch.files import read_json, sha256_of, write_json, written_aside
from ichsearch.labels import LABELS
from ichsearch.shards.identity import Key
from ichsearch.shards.manifest import Frozen, Settings
from ichsearch.shards.plan import LabelledFile, ShardJob
from ichsearch.shards.schema import ShardWriter

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


class _Decoded(NamedTuple):
    file: LabelledFile
    image: SliceImage
    box: CropBox | None


def build_shard(folder: Path, job: ShardJob, settings: Settings, key: Key) -> LedgerEntry:
    """Decode the job's files study by study and write `folder/<name>.parquet` and its ledger entry.

    Memory is bounded by the largest study. A shard of which no file is usable leaves no Parquet file.
    """
    path = folder / f"{job.name}.parquet"
    quarantined: list[QuarantinedFile] = []
    tally = _Tally()
    with written_aside(path) as aside:
        with ShardWriter(aside, settings.size) as writer:
            rows = (row for study in job.studies for row in _study_rows(study, settings, key, quarantined))
            slices = writer.write(tally.counting(rows))
        sha256 = sha256_of(aside)
    if not slices:
        path.unlink()
    entry = tally.entry(inputs=job.inputs, sha256=sha256, slices=slices, quarantined=quarantined)
    write_json(ledger_path(folder, job.name), entry.model_dump())
    return entry


def ledger_path(folder: Path, name: str) -> Path:
    """Where a shard's ledger entry stands."""
    return folder / LEDGER / f"{name}.json"


def finished_entry(folder: Path, job: ShardJob) -> LedgerEntry | None:
    """The ledger entry of a shard that is there, whole, and made from the same inputs; None if it must be built."""
    try:
        entry = LedgerEntry.model_validate(read_json(ledger_path(folder, job.name)))
    except (FileNotFoundError, DataError, ValidationError):
        return None
    path = folder / f"{job.name}.parquet"
    whole = entry.slices == 0 or (path.is_file() and sha256_of(path) == entry.sha256)
    return entry if entry.inputs == job.inputs and whole else None


def _study_rows(
    study: list[LabelledFile], settings: Settings, key: Key, quarantined: list[QuarantinedFile]
) -> Iterator[dict[str, Any]]:
    by_series: defaultdict[str, list[LabelledFile]] = defaultdict(list)
    for file in study:
        by_series[key.hash("series", file.source.header.series_uid)].append(file)
    for series in sorted(by_series):
        decoded = []
        for file in sorted(by_series[series], key=lambda file: (file.source.header.position_mm, file.source.path)):
            try:
                image = read_image(file.source.path)
            except RejectedError as error:
                name = key.hash("path", str(file.source.path))
                quarantined.append(QuarantinedFile(file=name, reason=error.reason, n_bytes=file.source.n_bytes))
            else:
                decoded.append(_Decoded(file, image, bounding_square(brain_mask(image.hu))))
        boxes = _boxes(decoded, settings)
        for index, (item, box) in enumerate(zip(decoded, boxes, strict=True)):
            place = {"series": series, "series_index": index, "series_slices": len(decoded)}
            yield place | _row(item, box, settings.size, key)


def _boxes(decoded: list[_Decoded], settings: Settings) -> list[CropBox]:
    """One box a slice: the series' common one (per frame size, where a series mixes them), or with `slice` its own."""
    if settings.crop == "slice":
        return [union_box([item.box], item.image.hu.shape[0]) for item in decoded]
    sides = {item.image.hu.shape[0] for item in decoded}
    common = {side: union_box([item.box for item in decoded if item.image.hu.shape[0] == side], side) for side in sides}
    return [common[item.image.hu.shape[0]] for item in decoded]


def _row(item: _Decoded, box: CropBox, size: int, key: Key) -> dict[str, Any]:
    header, image = item.file.source.header, item.image
    patient = ("patient", header.patient_id) if header.patient_id else ("study", header.study_uid)
    row_mm, column_mm = image.spacing_mm
    return {
        "slice": key.hash("slice", header.sop_uid),
        "patient": key.hash(*patient),
        "patient_known": bool(header.patient_id),
        "study": key.hash("study", header.study_uid),
        "position_mm": header.position_mm,
        "spacing_row_mm": row_mm * box.side / size,
        "spacing_column_mm": column_mm * box.side / size,
        "brain_share": brain_share(image.hu),
        "crop_top": box.top,
        "crop_left": box.left,
        "crop_side": box.side,
        "bits_stored": image.bits_stored,
        "signed": image.signed,
        "fixed_wrap": image.fixed_wrap,
        "stored_sha256": image.stored_sha256,
        **dict(zip(LABELS, item.file.labels or [None] * len(LABELS), strict=True)),
        "hu": cropped(image.hu, box, size).astype("<i2").tobytes(),
    }


class _Tally:
    """Counts rows as they pass to the writer."""

    def __init__(self) -> None:
        self._labelled = 0
        self._fixed_wrap = 0
        self._studies: set[str] = set()
        self._series: set[str] = set()
        self._patients: dict[str, bool] = {}
        self._positives: Counter[str] = Counter()

    def counting(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
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

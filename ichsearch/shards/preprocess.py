"""A folder of DICOM files becomes a folder of shards: the driver that fans the work out.

In: a DICOM folder, a labels CSV, settings. Out: shards, their ledger, `manifest.json` and `quarantine.csv`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from ichsearch.dicom.find import find_files
from ichsearch.dicom.header import RejectedError, read_header
from ichsearch.shards.accounting import count, nothing_readable, quarantine_rejected, write_quarantine
from ichsearch.shards.build import LEDGER, LedgerEntry, build_shard, finished_entry
from ichsearch.shards.identity import Key, home_folder, load_key
from ichsearch.shards.labels_csv import read_labels
from ichsearch.shards.manifest import (
    MANIFEST,
    SETTINGS,
    Manifest,
    Settings,
    ShardEntry,
    check_folder,
    claim_folder,
    make_manifest,
    write_manifest,
)
from ichsearch.shards.plan import LabelledFile, Rejection, ShardJob, SourceFile, drop_duplicates, plan_shards
from ichsearch.shards.ray_session import fan_out, ray_session

HEADERS_PER_TASK: Final = 256

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the files done, and their total."""


def preprocess(
    dicom: Path,
    out: Path,
    *,
    labels: Path | None = None,
    size: int = 256,
    crop: Literal["series", "slice"] = "series",
    address: str | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Write the shards of all readable slices below `dicom` to `out`; what is there and whole is kept.

    Raises:
        DataError: the folder, the labels or every single file is unusable.
        ConfigError: `out` holds something else.
    """
    paths = find_files(dicom.resolve(), ignore=labels)
    labels_of = read_labels(labels) if labels else {}
    key = load_key(home_folder())
    settings = Settings(size=size, crop=crop, key_id=key.id, source_id=key.hash("folder", str(dicom.resolve())))
    check_folder(out, settings)
    with ray_session(address):
        headed, unheaded = _read_headers(paths, on_progress)
        sources, duplicates, conflicting = drop_duplicates(headed)
        quarantined = quarantine_rejected(unheaded + conflicting, key)
        if not sources:
            raise nothing_readable(dicom, quarantined)
        claim_folder(out, settings)
        files = [LabelledFile(source, labels_of.get(source.header.sop_uid)) for source in sources]
        jobs = plan_shards(files, key, settings.model_dump_json())
        entries = _build(jobs, out, settings, key, on_progress)
    quarantined += [item for entry in entries.values() for item in entry.quarantined]
    if not any(entry.slices for entry in entries.values()):
        _abandon(out)
        raise nothing_readable(dicom, quarantined)
    counts = count(paths, files, len(duplicates), quarantined, labels_of.keys(), list(entries.values()))
    write_quarantine(out, quarantined, {key.hash("path", str(path)): path for path in paths}, settings)
    manifest = make_manifest(settings, counts, _shard_entries(entries))
    write_manifest(out, manifest)
    return manifest


def _read_headers(paths: list[Path], on_progress: Progress) -> tuple[list[SourceFile], list[Rejection]]:
    chunks = [paths[start : start + HEADERS_PER_TASK] for start in range(0, len(paths), HEADERS_PER_TASK)]
    sources: list[SourceFile] = []
    rejected: list[Rejection] = []
    for chunk in fan_out(_headers_of, chunks):
        sources += [item for item in chunk if isinstance(item, SourceFile)]
        rejected += [item for item in chunk if isinstance(item, Rejection)]
        on_progress("headers", len(sources) + len(rejected), len(paths))
    return sorted(sources), sorted(rejected)


def _headers_of(paths: list[Path]) -> list[SourceFile | Rejection]:
    return [_header_of(path) for path in paths]


def _header_of(path: Path) -> SourceFile | Rejection:
    n_bytes = 0
    try:
        info = path.stat()
        n_bytes = info.st_size
        return SourceFile(path, n_bytes, info.st_mtime_ns, read_header(path))
    except OSError:
        return Rejection(path, n_bytes, "unreadable")
    except RejectedError as error:
        return Rejection(path, n_bytes, error.reason)


def _build(
    jobs: list[ShardJob], out: Path, settings: Settings, key: Key, on_progress: Progress
) -> dict[str, LedgerEntry]:
    """The ledger of all jobs, in their order; only the missing ones are built."""
    entries = {job.name: entry for job in jobs if (entry := finished_entry(out, job))}
    missing = [job for job in jobs if job.name not in entries]
    if missing:
        (out / MANIFEST).unlink(missing_ok=True)
    _remove_others(out, {job.name for job in jobs})
    lengths = {job.name: sum(map(len, job.studies)) for job in jobs}
    on_progress("slices", sum(lengths[name] for name in entries), sum(lengths.values()))
    for name, entry in fan_out(_build_named, missing, out.resolve(), settings, key):
        entries[name] = entry
        on_progress("slices", sum(lengths[name] for name in entries), sum(lengths.values()))
    return dict(sorted(entries.items()))


def _build_named(job: ShardJob, out: Path, settings: Settings, key: Key) -> tuple[str, LedgerEntry]:
    return job.name, build_shard(out, job, settings, key)


def _remove_others(out: Path, names: set[str]) -> None:
    """Remove shards of an earlier state of the cohort, and what killed writers left half-written."""
    for path in [*out.glob("shard-*.parquet"), *out.glob(f"{LEDGER}/shard-*.json"), *out.rglob(".*.aside")]:
        if path.stem not in names:
            path.unlink()


def _abandon(out: Path) -> None:
    """Leave nothing of a folder in which no file became a row, but whatever a user put there."""
    shutil.rmtree(out / LEDGER)
    (out / SETTINGS).unlink()
    if not any(out.iterdir()):
        out.rmdir()


def _shard_entries(entries: dict[str, LedgerEntry]) -> list[ShardEntry]:
    return [
        ShardEntry(file=f"{name}.parquet", slices=entry.slices, sha256=entry.sha256)
        for name, entry in entries.items()
        if entry.slices
    ]

"""A folder of DICOM files becomes a folder of shards: the driver that fans the work out.

In: a DICOM folder, a labels CSV, settings. Out: shards, their ledger, the metadata frame, `manifest.json` and
`quarantine.csv`.
"""

import errno
import fcntl
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeVar

from ichsearch.dicom.find import find_files
from ichsearch.dicom.header import read_header
from ichsearch.dicom.pixels import hash_of, read_image
from ichsearch.dicom.reasons import RejectedError
from ichsearch.errors import AlreadyRunningError, DataError, StorageError
from ichsearch.shards.accounting import QUARANTINE, count, nothing_readable, quarantine_rejected, write_quarantine
from ichsearch.shards.build import LEDGER, LedgerEntry, build_shard, finished_entry, ledger_name
from ichsearch.shards.identity import Key, home_folder, load_key
from ichsearch.shards.labels_csv import Labels, read_labels
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
from ichsearch.shards.metadata import LEDGER_JSON, METADATA, write_ledger, write_metadata
from ichsearch.shards.plan import (
    LabelledFile,
    Rejection,
    ShardJob,
    SourceFile,
    drop_duplicates,
    plan_shards,
    same_slice,
    source_file,
)
from ichsearch.shards.ray_session import fan_out, ray_session
from ichsearch.storage import Folder, FoundFile, open_folder, with_state

Item = TypeVar("Item")

FILES_PER_TASK: Final = 256
HU_BYTES: Final = 2
"""Of a pixel, before compression."""
OURS: Final = re.compile(rf"({LEDGER}/)?(shard-\d{{5,}}\.(parquet|json)|\.[^/]+\.\d+\.aside)")
"""Shards, their ledger entries, and either half-written by a killed process: nothing that a user would name so."""

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the files done, and their total so far."""


def preprocess(
    dicom: str | Path,
    out: str | Path,
    *,
    labels: Path | None = None,
    size: int = 256,
    crop: Literal["series", "slice"] = "series",
    address: str | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Write the shards of all readable slices below `dicom` to `out`; what is there and whole is kept.

    `dicom` and `out` are folders of this machine or a shared disk, or URIs of an object store (s3, gs, abfss).

    Raises:
        AlreadyRunningError: another driver of this user writes to `out`.
        DataError: the folder, the labels or every single file is unusable.
        ConfigError: `out` holds something else, or a URI is not allowed.
        StorageError: the disk of `out` is full.
    """
    source = open_folder(dicom).location
    target = open_folder(out)
    found = find_files(source, labels=labels, out=target.location)
    given = read_labels(labels) if labels else None
    key = load_key(home_folder())
    settings = Settings(size=size, crop=crop, key_id=key.id, source_id=key.hash("folder", source))
    check_folder(target, settings)
    with _alone(target, key):
        with ray_session(address):
            headed, unheaded = _read_headers(found, key, on_progress)
            kept, duplicates, refused = _one_file_a_slice(headed)
            quarantined = quarantine_rejected(unheaded + refused, key)
            if not kept:
                raise nothing_readable(quarantined)
            files, missing = _labelled(kept, given, key)
            claim_folder(target, settings)
            jobs = plan_shards(files, settings.model_dump_json(), size)
            entries = _build(jobs, target, settings, key, on_progress)
        quarantined += [item for entry in entries.values() for item in entry.quarantined]
        if not any(entry.slices for entry in entries.values()):
            _abandon(target)
            raise nothing_readable(quarantined)
        counts = count(len(headed) + len(unheaded), duplicates, quarantined, missing, list(entries.values()))
        shards = _shard_entries(entries)
        write_metadata(target, [shard.file for shard in shards], size)
        write_ledger(target)
        locations = [item.location for item in headed] + [item.location for item in unheaded]
        write_quarantine(target, quarantined, locations, key, settings)
        manifest = make_manifest(settings, given.level if given else None, counts, shards)
        write_manifest(target, manifest)
    return manifest


@contextmanager
def _alone(out: Folder, key: Key) -> Iterator[None]:
    """Hold a lock on the output, which the kernel releases should this process die."""
    path = home_folder() / "locks" / key.hash("out", out.location)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                f"a folder takes one `ichsearch preprocess` at a time, but another is at work on {out.location}; "
                "wait for it, or give another --out"
            ) from None
        yield


def _labelled(sources: list[SourceFile], labels: Labels | None, key: Key) -> tuple[list[LabelledFile], int]:
    """The files with their labels, and the number of labels that belong to none of them."""
    if labels is None:
        return [LabelledFile(source, None) for source in sources], 0
    of_name = {key.hash(labels.level, name): bits for name, bits in labels.values.items()}
    missing = of_name.keys() - {getattr(source, labels.level) for source in sources}
    if len(missing) == len(of_name):
        raise DataError(
            f"labels must belong to files of DICOM_DIR, but none of {len(of_name):,} given per {labels.level} does; "
            "check --labels, or leave it out"
        )
    files = [LabelledFile(source, of_name.get(getattr(source, labels.level))) for source in sources]
    return files, len(missing)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    source = iter(items)
    while chunk := list(islice(source, FILES_PER_TASK)):
        yield chunk


def _read_headers(
    files: Iterable[FoundFile], key: Key, on_progress: Progress
) -> tuple[list[SourceFile], list[Rejection]]:
    """Headers of all files; work starts while the folder is still being listed."""
    found = 0

    def counted() -> Iterator[list[FoundFile]]:
        nonlocal found
        for chunk in _chunks(files):
            found += len(chunk)
            yield chunk

    sources: list[SourceFile] = []
    rejected: list[Rejection] = []
    shared: dict[str, str] = {}
    for chunk in fan_out(_headers_of, counted(), key):
        for item in chunk:
            if isinstance(item, SourceFile):
                sources.append(one_copy(item, shared))
            else:
                rejected.append(item)
        on_progress("headers", len(sources) + len(rejected), found)
    if not found:
        raise DataError("DICOM_DIR must hold files, but the one given is empty; check the path")
    return sorted(sources), sorted(rejected)


def one_copy(item: SourceFile, shared: dict[str, str]) -> SourceFile:
    """The same with one copy in memory of what the slices of a series have in common."""
    series, study, patient = (shared.setdefault(name, name) for name in (item.series, item.study, item.patient))
    return item._replace(series=series, study=study, patient=patient)


def _headers_of(files: list[FoundFile], key: Key) -> list[SourceFile | Rejection]:
    return [header_of(file, key) for file in files]


def header_of(file: FoundFile, key: Key) -> SourceFile | Rejection:
    """What the header of one file says, identifiers hashed."""
    found = with_state(file)
    try:
        return source_file(found, read_header(found.location), key)
    except RejectedError as error:
        return Rejection(found.location, found.n_bytes, error.reason)


def _one_file_a_slice(headed: list[SourceFile]) -> tuple[list[SourceFile], int, list[Rejection]]:
    groups = same_slice(headed)
    ambiguous = [item.location for group in groups if len(group) > 1 for item in group]
    image_of = dict(pair for pairs in fan_out(_image_hashes, _chunks(ambiguous)) for pair in pairs)
    return drop_duplicates(groups, image_of)


def _image_hashes(locations: list[str]) -> list[tuple[str, str | RejectedError]]:
    return [(location, image_hash(location)) for location in locations]


def image_hash(location: str) -> str | RejectedError:
    """Equal for files of equal HU; of one that cannot be read, why not."""
    try:
        image = read_image(location)
    except RejectedError as error:
        return error
    return f"{len(image.hu)} {hash_of(image.hu)}"


def _build(
    jobs: list[ShardJob], out: Folder, settings: Settings, key: Key, on_progress: Progress
) -> dict[str, LedgerEntry]:
    """The ledger of all jobs, in their order; only the missing ones are built."""
    entries = {name: entry for name, entry in fan_out(_finished, jobs, out) if entry}
    missing = [job for job in jobs if job.name not in entries]
    others = _others(out, {job.name for job in jobs})
    if missing or others:
        out.remove(MANIFEST)
    lengths = {job.name: sum(map(len, job.studies)) for job in jobs}
    on_progress("slices", sum(lengths[name] for name in entries), sum(lengths.values()))
    try:
        for name, entry in fan_out(_build_named, missing, out, settings, key):
            entries[name] = entry
            on_progress("slices", sum(lengths[name] for name in entries), sum(lengths.values()))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or (path := out.local_path()) is None:
            raise
        slices = sum(length for name, length in lengths.items() if name not in entries)
        raise _full_disk(path, slices * settings.size**2 * HU_BYTES) from error
    for name in _others(out, {job.name for job in jobs}):
        out.remove(name)
    return dict(sorted(entries.items()))


def _full_disk(out: Path, needed_bytes: int) -> StorageError:
    free = shutil.disk_usage(out).free
    return StorageError(
        f"the disk of {out} is full: {free:,} bytes free, at most {needed_bytes:,} needed for the slices that are "
        "missing; make room and run the same command again"
    )


def _finished(job: ShardJob, out: Folder) -> tuple[str, LedgerEntry | None]:
    return job.name, finished_entry(out, job)


def _build_named(job: ShardJob, out: Folder, settings: Settings, key: Key) -> tuple[str, LedgerEntry]:
    return job.name, build_shard(out, job, settings, key)


def _others(out: Folder, jobs: set[str]) -> list[str]:
    """Shards of an earlier state of the cohort, and what killed writers left half-written."""
    kept = {f"{name}.parquet" for name in jobs} | {ledger_name(name) for name in jobs}
    return [name for name in out.names() if OURS.fullmatch(name) and name not in kept]


def _abandon(out: Folder) -> None:
    """Leave nothing of a folder in which no file became a row, but whatever a user put there."""
    for name in out.names():
        if name in (SETTINGS, MANIFEST, METADATA, LEDGER_JSON, QUARANTINE) or name.startswith(f"{LEDGER}/"):
            out.remove(name)
    if (path := out.local_path()) is not None:
        for folder in (path / LEDGER, path):
            if not any(folder.iterdir()):
                folder.rmdir()


def _shard_entries(entries: dict[str, LedgerEntry]) -> list[ShardEntry]:
    return [
        ShardEntry(file=f"{name}.parquet", slices=entry.slices, sha256=entry.sha256)
        for name, entry in entries.items()
        if entry.slices
    ]

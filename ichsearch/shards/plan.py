"""Which files make which shard, decided from the headers alone.

In: files with their headers. Out: duplicates, rejections, and `ShardJob`s of whole studies in a fixed order.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ichsearch.dicom.header import SliceHeader
from ichsearch.dicom.reasons import RejectedError
from ichsearch.shards.identity import Key
from ichsearch.shards.labels_csv import SliceLabels
from ichsearch.storage import FoundFile

MAX_SHARD_BYTES: Final = 192 * 2**20
"""Of pixels before compression: a full shard is about 110 MB on the disk."""
SHARDS_OF_SMALL_COHORT: Final = 128
"""Four tasks a core for 32 cores."""


class SourceFile(NamedTuple):
    """A file of the DICOM folder: where it is, what identifies its state, and its header with hashed identifiers."""

    location: str
    n_bytes: int
    modified_ns: int
    slice: str
    series: str
    study: str
    patient: str
    patient_known: bool
    position_mm: float


class Rejection(NamedTuple):
    """A file that becomes no row, and why (a key of `REASONS`)."""

    location: str
    n_bytes: int
    reason: str


class LabelledFile(NamedTuple):
    """A source file with its labels, None when it has none."""

    source: SourceFile
    labels: SliceLabels | None


class ShardJob(NamedTuple):
    """The files of one shard, study by study, and a hash that changes when any of them does."""

    name: str
    studies: list[list[LabelledFile]]
    inputs: str


def source_file(found: FoundFile, header: SliceHeader, key: Key) -> SourceFile:
    """The file with its identifiers hashed; a patient without PatientID is its study."""
    patient = ("patient", header.patient_id) if header.patient_id else ("study", header.study_uid)
    return SourceFile(
        *found,
        slice=key.hash("slice", header.sop_uid),
        series=key.hash("series", header.series_uid),
        study=key.hash("study", header.study_uid),
        patient=key.hash(*patient),
        patient_known=bool(header.patient_id),
        position_mm=header.position_mm,
    )


def same_slice(sources: Iterable[SourceFile]) -> list[list[SourceFile]]:
    """The files grouped by SOPInstanceUID, each group and the groups in order."""
    groups: defaultdict[str, list[SourceFile]] = defaultdict(list)
    for source in sorted(sources):
        groups[source.slice].append(source)
    return list(groups.values())


def drop_duplicates(
    groups: Iterable[list[SourceFile]], image_of: Mapping[str, str | RejectedError]
) -> tuple[list[SourceFile], int, list[Rejection]]:
    """Of the readable files with one SOPInstanceUID keep the first; refuse them all if their images differ.

    `image_of` has a hash of the image of each location that is not alone, or why it has none. Returns what is kept, the
    number of its duplicates, and what is refused: unreadable copies, and those that are `conflicting_duplicate`. Where
    no copy is readable the first is kept: it is refused, and its labels are counted, as if it were alone.
    """
    kept: list[SourceFile] = []
    duplicates = 0
    refused: list[Rejection] = []
    for files in groups:
        images = [image_of[file.location] for file in files] if len(files) > 1 else [""]
        hashes = {image for image in images if isinstance(image, str)}
        if not hashes:
            images[0] = ""
        readable = [file for file, image in zip(files, images, strict=True) if isinstance(image, str)]
        if len(hashes) <= 1:
            kept.append(readable[0])
            duplicates += len(readable) - 1
        for file, image in zip(files, images, strict=True):
            if isinstance(image, RejectedError):
                refused.append(Rejection(file.location, file.n_bytes, image.reason))
            elif len(hashes) > 1:
                refused.append(Rejection(file.location, file.n_bytes, "conflicting_duplicate"))
    return sorted(kept), duplicates, refused


def plan_shards(files: Iterable[LabelledFile], settings: str, size: int) -> list[ShardJob]:
    """Cut the studies, ordered by their keyed hashes, into shards of about equal length.

    A small cohort makes up to 128 shards, a large one shards of 192 MiB of pixels: the cut depends on the cohort
    alone, never on the machine.
    """
    by_study: defaultdict[str, list[LabelledFile]] = defaultdict(list)
    for file in files:
        by_study[file.source.study].append(file)
    total = sum(map(len, by_study.values()))
    target = max(1, min(MAX_SHARD_BYTES // (2 * size * size), -(-total // SHARDS_OF_SMALL_COHORT)))
    cuts: list[list[list[LabelledFile]]] = [[]]
    for study in sorted(by_study):
        if sum(map(len, cuts[-1])) >= target:
            cuts.append([])
        cuts[-1].append(sorted(by_study[study]))
    return [
        ShardJob(f"shard-{number:05d}", studies, _inputs_hash(studies, settings))
        for number, studies in enumerate(cuts)
        if studies
    ]


def _inputs_hash(studies: Sequence[Sequence[LabelledFile]], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for study in studies:
        for file, labels in study:
            digest.update(repr((file.location, file.slice, file.n_bytes, file.modified_ns, labels)).encode())
    return digest.hexdigest()

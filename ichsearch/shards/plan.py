"""Which files make which shard, decided from the headers alone.

In: files with their headers. Out: duplicates, rejections, and `ShardJob`s of whole studies in a fixed order.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ichsearch.dicom.header import RejectedError, SliceHeader
from ichsearch.dicom.pixels import read_image
from ichsearch.shards.identity import Key
from ichsearch.shards.labels_csv import SliceLabels

MAX_SHARD_SLICES: Final = 1024
SHARDS_OF_SMALL_COHORT: Final = 16


class SourceFile(NamedTuple):
    """A file of the DICOM folder: its path, what identifies its state, and its header."""

    path: Path
    n_bytes: int
    modified_ns: int
    header: SliceHeader


class Rejection(NamedTuple):
    """A file that becomes no row, and why (a key of `REASONS`)."""

    path: Path
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


def drop_duplicates(sources: Iterable[SourceFile]) -> tuple[list[SourceFile], list[SourceFile], list[Rejection]]:
    """Of the files with one SOPInstanceUID keep a readable one; refuse them all if their images differ.

    Returns what is kept, the duplicates of it, and what is refused as `conflicting_duplicate`.
    """
    by_uid: defaultdict[str, list[SourceFile]] = defaultdict(list)
    for source in sources:
        by_uid[source.header.sop_uid].append(source)
    kept: list[SourceFile] = []
    duplicates: list[SourceFile] = []
    conflicting: list[Rejection] = []
    for files in by_uid.values():
        images = [_image_sha256(file.path) for file in files] if len(files) > 1 else [""]
        if len(set(images) - {""}) > 1:
            conflicting += [Rejection(file.path, file.n_bytes, "conflicting_duplicate") for file in files]
        else:
            first = files[images.index(max(images))]
            kept.append(first)
            duplicates += [file for file in files if file is not first]
    return sorted(kept), duplicates, conflicting


def _image_sha256(path: Path) -> str:
    try:
        return read_image(path).stored_sha256
    except RejectedError:
        return ""


def plan_shards(files: Iterable[LabelledFile], key: Key, settings: str) -> list[ShardJob]:
    """Cut the studies, ordered by their keyed hashes, into shards of about equal length.

    A small cohort makes about 16 shards, a large one shards of at most 1,024 slices (128 MB of pixels at 256²):
    the cut depends on the cohort alone, never on the machine.
    """
    by_study: defaultdict[str, list[LabelledFile]] = defaultdict(list)
    for file in files:
        by_study[key.hash("study", file.source.header.study_uid)].append(file)
    total = sum(map(len, by_study.values()))
    target = min(MAX_SHARD_SLICES, -(-total // SHARDS_OF_SMALL_COHORT))
    cuts: list[list[list[LabelledFile]]] = [[]]
    for study in sorted(by_study):
        if sum(map(len, cuts[-1])) >= target:
            cuts.append([])
        cuts[-1].append(sorted(by_study[study]))
    return [
        ShardJob(f"shard-{number:05d}", studies, _inputs_hash(studies, key, settings))
        for number, studies in enumerate(cuts)
        if studies
    ]


def _inputs_hash(studies: Sequence[Sequence[LabelledFile]], key: Key, settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for study in studies:
        for file, labels in study:
            state = (str(file.path), file.n_bytes, file.modified_ns, labels)
            digest.update(key.hash("input", repr(state)).encode())
    return digest.hexdigest()

"""What became of every file: ok + duplicate + quarantined = found.

In: rejected files and ledger entries. Out: counts, `quarantine.csv` without paths, and a private list with them.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from ichsearch.dicom.reasons import REASONS
from ichsearch.errors import DataError
from ichsearch.files import written_aside
from ichsearch.labels import LABELS
from ichsearch.shards.build import LedgerEntry, QuarantinedFile
from ichsearch.shards.identity import Key, home_folder
from ichsearch.shards.manifest import Counts, Settings
from ichsearch.shards.plan import Rejection
from ichsearch.storage import Folder

QUARANTINE: Final = "quarantine.csv"


def quarantine_rejected(rejected: Iterable[Rejection], key: Key) -> list[QuarantinedFile]:
    """Files refused before their pixels were read, under the keyed hash of their path."""
    return [
        QuarantinedFile(file=key.hash("path", item.location), reason=item.reason, n_bytes=item.n_bytes)
        for item in rejected
    ]


def nothing_readable(quarantined: Iterable[QuarantinedFile]) -> DataError:
    """The error for a folder of which no file is a slice, with the reasons counted."""
    reasons = Counter(item.reason for item in quarantined)
    found = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    return DataError(f"DICOM_DIR must hold readable CT slices, but the one given has none ({found}); check the path")


def count(
    found: int,
    duplicates: int,
    quarantined: Collection[QuarantinedFile],
    labels_without_file: int,
    entries: list[LedgerEntry],
) -> Counts:
    """All counts of the manifest, each from its own source, checked to add up."""
    counts = Counts(
        found=found,
        ok=sum(entry.slices for entry in entries),
        duplicate=duplicates,
        quarantined=len(quarantined),
        labelled=sum(entry.labelled for entry in entries),
        labels_without_file=labels_without_file,
        patients=len({patient for entry in entries for patient in entry.patients}),
        patients_unknown=len({patient for entry in entries for patient in entry.patients_unknown}),
        studies=sum(entry.studies for entry in entries),
        series=sum(entry.series for entry in entries),
        fixed_wrap=sum(entry.fixed_wrap for entry in entries),
        positives={label: sum(entry.positives[label] for entry in entries) for label in LABELS},
        reasons=dict(sorted(Counter(item.reason for item in quarantined).items())),
    )
    assert counts.ok + counts.duplicate + counts.quarantined == counts.found
    return counts


def quarantine_list_path(settings: Settings) -> Path:
    """The private list that says which path each name in `quarantine.csv` stands for."""
    return home_folder() / "quarantine" / f"{settings.source_id}.csv"


def write_quarantine(
    out: Folder,
    quarantined: Iterable[QuarantinedFile],
    locations: Iterable[str],
    key: Key,
    settings: Settings,
    *,
    name: str = QUARANTINE,
) -> None:
    """Write `quarantine.csv` beside the shards, and the list of its paths to a file of mode 0600 beside the key."""
    items = sorted(quarantined, key=lambda item: (item.reason, item.file))
    explained = [[item.file, item.reason, REASONS[item.reason.partition(":")[0]], item.n_bytes] for item in items]
    out.write_bytes(name, _csv_text(["file", "reason", "explanation", "bytes"], explained).encode())
    names = {item.file for item in items}
    path_of = {file: path for path in locations if names and (file := key.hash("path", path)) in names}
    private = _csv_text(["file", "reason", "path"], [[i.file, i.reason, path_of[i.file]] for i in items])
    with written_aside(quarantine_list_path(settings)) as aside:
        aside.touch(mode=0o600)
        aside.write_text(private, encoding="utf-8", errors="surrogateescape")


def _csv_text(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()

"""What `ichsearch preprocess` prints when it is done.

In: a manifest. Out: a table of all files, and lines.
"""

from rich.table import Table

from ichsearch.cli_console import out, say
from ichsearch.shards.accounting import quarantine_list_path
from ichsearch.shards.manifest import Manifest
from ichsearch.terminal import literal


def print_counts(manifest: Manifest) -> None:
    """Print what became of every file, and what the shards hold."""
    counts = manifest.counts
    table = Table("files", "count", title="every file accounted for")
    table.columns[1].justify = "right"
    for name in ("ok", "duplicate", "quarantined"):
        table.add_row(name, str(getattr(counts, name)))
    for reason, number in counts.reasons.items():
        table.add_row(f"  {literal(reason)}", str(number), style="dim")
    table.add_row("found", str(counts.found), style="bold")
    out.print(table)
    positives = ", ".join(f"{label} {number}" for label, number in counts.positives.items())
    say(
        f"{counts.patients} patients, {counts.studies} studies, {counts.series} series; "
        f"{counts.labelled} slices labelled, {counts.ok - counts.labelled} not; positive: {positives}"
    )
    if manifest.label_level not in (None, "slice"):
        say(f"labels are given per {manifest.label_level}: every slice of a positive one counts as positive")
    if counts.labels_without_file:
        say(f"labels without a file: {counts.labels_without_file}")
    if counts.patients_unknown:
        say(f"without PatientID, the study counting as patient: {counts.patients_unknown}")
    if counts.fixed_wrap:
        say(f"signed values written as unsigned, mended (fix_pxrepr): {counts.fixed_wrap}")
    if counts.quarantined:
        say(f"which file is which (private): {quarantine_list_path(manifest.settings)}")

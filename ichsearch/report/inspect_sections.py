"""The sections of the inspection page that show counts, and the order of all sections.

In: a `Cohort`. Out: a `Section` each; what to look for in it is its one plain sentence.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import pandas as pd

from ichsearch.dicom.reasons import REASONS
from ichsearch.labels import ANY, LABELS, SUBTYPES
from ichsearch.report.inspect_cohort import NONE, UNLABELLED, Cohort
from ichsearch.report.inspect_figures import (
    draw_balance,
    draw_bars,
    draw_co_occurrence,
    draw_counts,
    draw_filter,
    draw_shares,
)
from ichsearch.report.inspect_images import crops, hounsfield, sample_slices, windows
from ichsearch.report.inspect_page import NO_LABELS, Picture, Section, Table, percent

FEW_PATIENTS: Final = 5
"""Fewer positive patients than folds: a label that cannot be judged in all of them."""
TABLE_ROWS: Final = 12


def all_sections(cohort: Cohort) -> list[Section]:
    """Every section of the page, in its order."""
    return [section(cohort) for section in SECTIONS]


def files(cohort: Cohort) -> Section:
    """What became of every file."""
    counts = cohort.manifest.counts
    parts = {"ok": counts.ok, "duplicate": counts.duplicate, "quarantined": counts.quarantined, "found": counts.found}
    reasons = [
        (name, f"{number:,}", REASONS.get(name.partition(":")[0], "a reason that this version does not know"))
        for name, number in sorted(counts.reasons.items(), key=lambda item: -item[1])
    ]
    tables = [Table(("files", "n", "of all"), [(k, f"{n:,}", percent(n, counts.found)) for k, n in parts.items()])]
    if reasons:
        tables.append(Table(("quarantined because", "n", "what it means"), reasons, words=True))
    return Section(
        "files",
        "Files accounted for",
        "The first three rows must add up to the last; a reason with many files is a fault of the export, not of them.",
        notes=[f"Labels without a file: {counts.labels_without_file:,}."],
        tables=tables,
    )


def balance(cohort: Cohort) -> Section:
    """Haemorrhage against none, over slices and patients."""
    worst = cohort.table.groupby("patient")[ANY].max()  # 1 if any slice bleeds; missing if none has labels
    parts = {"slices": _three_parts(cohort.table[ANY]), "patients": _three_parts(worst)}
    rows = [
        (name, *(f"{counts[name]:,} ({percent(counts[name], sum(counts.values()))})" for counts in parts.values()))
        for name in parts["slices"]
    ]
    pictures = [Picture("balance", "Stacked bars: shares of haemorrhage, none and unlabelled.", draw_balance(parts))]
    return Section(
        "balance",
        "Haemorrhage and none",
        "The rarer class sets how many slices a model can learn from, and the patients how surely it can be judged.",
        notes=_label_notes(cohort),
        pictures=pictures,
        tables=[Table(("", *parts), rows)],
    )


def _label_notes(cohort: Cohort) -> list[str]:
    level = cohort.manifest.label_level
    if cohort.labelled.empty:
        return [NO_LABELS]
    if level in (None, "slice"):
        return []
    return [f"The labels were given for a whole {level}: each of its slices carries them, with blood in it or without."]


def _three_parts(values: "pd.Series[float]") -> dict[str, int]:
    return {
        "haemorrhage": int((values == 1).sum()),
        NONE: int((values == 0).sum()),
        UNLABELLED: int(values.isna().sum()),
    }


def prevalence(cohort: Cohort) -> Section:
    """How often each label is."""
    labelled = cohort.labelled
    look_for = (
        f"A label of fewer than {FEW_PATIENTS} patients is too rare to be judged in every fold, whatever the score."
    )
    title = "Prevalence of the subtypes"
    if labelled.empty:
        return Section("prevalence", title, look_for, notes=[NO_LABELS])
    patients = labelled["patient"].nunique()
    slices_of = {label: int((labelled[label] == 1).sum()) for label in LABELS}
    patients_of = {label: labelled.loc[labelled[label] == 1, "patient"].nunique() for label in LABELS}
    few = [label for label in LABELS if patients_of[label] < FEW_PATIENTS]
    rows = [
        (label, f"{n:,}", percent(n, len(labelled)), f"{(m := patients_of[label]):,}", percent(m, patients))
        for label, n in slices_of.items()
    ]
    percents = {label: 100 * n / len(labelled) for label, n in slices_of.items()}
    drawn = draw_bars(percents, [f"{n:,} slices" for n in slices_of.values()], "% of labelled slices")
    return Section(
        "prevalence",
        title,
        look_for,
        notes=[f"Too rare here: {', '.join(few)}."] if few else [],
        pictures=[Picture("prevalence", "Bars: percent of labelled slices with each label.", drawn)],
        tables=[Table(("label", "slices", "of slices", "patients", "of patients"), rows)],
    )


def co_occurrence(cohort: Cohort) -> Section:
    """Which labels stand together on one slice."""
    title = "Subtypes that come together"
    look_for = "A subtype that hardly ever comes alone is learnt together with its companion, and may be taken for it."
    if cohort.labelled.empty:
        return Section("co-occurrence", title, look_for, notes=[NO_LABELS])
    positive = (cohort.labelled[list(LABELS)] == 1).to_numpy().astype(np.int64)
    counts = positive.T @ positive
    alone = positive[positive[:, : len(SUBTYPES)].sum(axis=1) == 1].sum(axis=0)
    parts = [f"{name} {alone[place]:,} of {counts[place, place]:,}" for place, name in enumerate(SUBTYPES)]
    return Section(
        "co-occurrence",
        title,
        look_for,
        notes=[f"Slices with no second subtype: {', '.join(parts)}."],
        pictures=[
            Picture(
                "co_occurrence",
                "Heat map: slices that have both the row's and the column's label.",
                draw_co_occurrence(LABELS, counts),
                "Slices with both labels; the diagonal is the label itself, the colour the share of its row's label.",
            )
        ],
    )


def populations(cohort: Cohort) -> Section:
    """Slices by how their pixels are stored."""
    found = cohort.ledger.populations
    names = [f"{item.bits_stored} bit {'signed' if item.signed else 'unsigned'}" for item in found]
    rows = [
        (name, f"{item.slices:,}", f"{item.labelled:,}", f"{item.positive:,}", percent(item.positive, item.labelled))
        for name, item in zip(names, found, strict=True)
    ]
    pictures = []
    if found and cohort.manifest.counts.labelled:
        percents = {name: 100 * item.positive / max(1, item.labelled) for name, item in zip(names, found, strict=True)}
        drawn = draw_bars(
            percents, [f"of {item.labelled:,}" for item in found], "% of labelled slices with haemorrhage"
        )
        pictures = [Picture("populations", "Bars: prevalence of haemorrhage in each stored form.", drawn)]
    return Section(
        "populations",
        "Stored forms (BitsStored × PixelRepresentation)",
        "Where prevalence differs much between forms, a model can guess from the scanner instead of the blood.",
        notes=[
            f"Signed values written as unsigned, put right: {cohort.ledger.fixed_wrap:,} slices.",
            *([] if cohort.manifest.counts.labelled else [NO_LABELS]),
        ],
        pictures=pictures,
        tables=[Table(("stored as", "slices", "labelled", "haemorrhage", "of labelled"), rows)],
    )


def brain_filter(cohort: Cohort) -> Section:
    """What `min_brain` would take away."""
    rows, counts = cohort.ledger.filter, cohort.manifest.counts
    known = [label for label in LABELS if counts.positives.get(label)]

    def lost(number: int, whole: int) -> str:
        return f"{number:,} ({percent(number, whole)})" if number else "0"

    cells = [
        (
            f"{row.min_brain:g}",
            lost(row.slices_lost, counts.ok),
            *(lost(row.positives_lost.get(label, 0), counts.positives[label]) for label in known),
        )
        for row in rows
    ]
    lines = {"all slices": [100 * row.slices_lost / max(1, counts.ok) for row in rows]}
    for label in known:
        lines[label] = [100 * row.positives_lost.get(label, 0) / counts.positives[label] for row in rows]
    drawn = draw_filter([row.min_brain for row in rows], lines)
    return Section(
        "filter",
        "What a filter by brain share would lose",
        "A good threshold loses many slices and hardly a positive; every positive lost is one that no model can learn.",
        notes=[] if known else [NO_LABELS],
        pictures=[Picture("filter", "Lines: percent of slices and of positives lost over min_brain.", drawn)],
        tables=[Table(("min_brain", "slices", *known), cells)],
    )


def slices_per_patient(cohort: Cohort) -> Section:
    """How many slices patients have."""
    sizes = cohort.table["patient"].value_counts().to_numpy().astype(np.int64)
    median, low, high = int(np.median(sizes)), int(sizes.min()), int(sizes.max())
    return Section(
        "slices-per-patient",
        "Slices per patient",
        "A patient with many times the median weighs as much more in every slice-wise score.",
        notes=[f"Median {median:,}, from {low:,} to {high:,}, {len(sizes):,} patients."],
        pictures=[
            Picture(
                "slices_per_patient",
                "Histogram of the number of slices per patient.",
                draw_counts(sizes, "slices of a patient", "patients"),
            )
        ],
    )


def brain_share(cohort: Cohort) -> Section:
    """How much of a frame is brain."""
    table = cohort.table
    masks = {"haemorrhage": table[ANY] == 1, NONE: table[ANY] == 0, UNLABELLED: table[ANY].isna()}
    groups = {
        name: table.loc[mask, "brain_share"].to_numpy().astype(np.float64) for name, mask in masks.items() if mask.any()
    }
    thresholds = [row.min_brain for row in cohort.ledger.filter]
    return Section(
        "brain-share",
        "Brain share",
        "Haemorrhage at the far left means positives with next to no brain: look at them before filtering them away.",
        pictures=[
            Picture(
                "brain_share",
                "Histogram of the share of pixels between 0 and 80 HU, by haemorrhage.",
                draw_shares(groups, thresholds, "pixels in the brain window, share of the frame"),
                "Dotted: the thresholds of the filter below.",
            )
        ],
    )


def acquisition(cohort: Cohort) -> Section:
    """How the slices were made and sent."""
    ledger, slices = cohort.ledger, len(cohort.table)
    clipped = ", ".join(f"{name} {number:,}" for name, number in ledger.clipped_slices.items())
    return Section(
        "acquisition",
        "Compression, thickness, tilt",
        "Mixed thicknesses and tilts are several cohorts in one; unknown ones cannot be told apart later.",
        notes=[f"Slices with pixels outside -1024 to 3071 HU, clipped: {clipped or 'none'}."],
        tables=[
            _tally("transfer syntax", ledger.transfer_syntaxes, slices),
            _tally("slice thickness (mm)", ledger.slice_thickness_mm, slices),
            _tally("tilt (degrees)", ledger.tilt_degrees, slices),
        ],
    )


def _tally(name: str, counts: dict[str, int], slices: int) -> Table:
    """The most frequent values and how often they are, the others as one row."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    rows = [(value, f"{number:,}", percent(number, slices)) for value, number in ranked[:TABLE_ROWS]]
    if rest := ranked[TABLE_ROWS:]:
        number = sum(number for _, number in rest)
        rows.append((f"{len(rest):,} other values", f"{number:,}", percent(number, slices)))
    return Table((name, "slices", "of all"), rows)


def shared_images(cohort: Cohort) -> Section:
    """The same image under several patients."""
    shared = cohort.ledger.shared_images
    rows = [
        ("images that several patients have", f"{shared.images:,}"),
        ("slices that show them", f"{shared.slices:,}"),
        ("patients that have one", f"{shared.patients:,}"),
        ("images with conflicting labels", f"{shared.conflicting_labels:,}"),
    ]
    return Section(
        "shared-images",
        "Images shared across patients",
        "All should be 0; splits keep patients that share an image in one fold, but conflicting labels stay wrong.",
        tables=[Table(("the same stored pixels", "n"), rows)],
    )


SECTIONS: Final[tuple[Callable[[Cohort], Section], ...]] = (
    files,
    balance,
    prevalence,
    co_occurrence,
    populations,
    sample_slices,
    windows,
    crops,
    hounsfield,
    brain_share,
    brain_filter,
    slices_per_patient,
    acquisition,
    shared_images,
)

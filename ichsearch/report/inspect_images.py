"""The sections of the inspection page that show pixels: sample slices, windows, crops, the distribution of HU.

In: a `Cohort` with its `Sample`. Out: a `Section` each.
"""

import pandas as pd

from ichsearch.dicom.brain import CropBox
from ichsearch.dicom.windows import BRAIN, WINDOWS
from ichsearch.labels import ANY, LABELS, SUBTYPES
from ichsearch.report.inspect_cohort import NONE, UNLABELLED, Cohort, spread
from ichsearch.report.inspect_figures import COLUMNS, draw_crops, draw_hu_histogram, draw_tiles, windowed
from ichsearch.report.inspect_page import NO_LABELS, Picture, Section
from ichsearch.shards.schema import FRAME_SIDE


def sample_slices(cohort: Cohort) -> Section:
    """Some slices of every group, with all their labels."""
    missing = [name for name in (*SUBTYPES, NONE) if name not in cohort.sample.examples]
    known = len(cohort.labelled) > 0
    return Section(
        "samples",
        "Sample slices",
        "The blood that the label names must be visible and whole; a wrong crop or wrong HU shows at first sight.",
        notes=[
            f"Brain window ({BRAIN.level_hu}/{BRAIN.width_hu} HU), as the shards hold them, "
            f"from {cohort.sample.shards} of {len(cohort.manifest.shards)} shards.",
            *([] if known else [NO_LABELS]),
            *([f"No slice to show: {', '.join(missing)}."] if known and missing else []),
        ],
        pictures=[_examples(cohort, name, rows) for name, rows in cohort.sample.examples.items()],
    )


def _examples(cohort: Cohort, name: str, rows: list[int]) -> Picture:
    shown = [(_labels_of(cohort, row), windowed(cohort.sample.images[row], BRAIN)) for row in rows]
    return Picture(
        f"sample_{name}",
        f"{len(rows)} CT slices in the brain window, {name}.",
        draw_tiles(shown),
        f"{name}: slices {', '.join(_slice_name(cohort, row) for row in rows)}",
        photo=True,
    )


def _labels_of(cohort: Cohort, row: int) -> str:
    """A slice's subtypes, one a line."""
    values = cohort.table.loc[row, list(LABELS)]
    if pd.isna(values[ANY]):
        return UNLABELLED
    return "\n".join(label for label in SUBTYPES if values[label] == 1) or (ANY if values[ANY] == 1 else NONE)


def _slice_name(cohort: Cohort, row: int) -> str:
    return str(cohort.table.at[row, "slice"])[:12]


def windows(cohort: Cohort) -> Section:
    """One slice under every window."""
    row = next(iter(cohort.sample.examples.values()))[0]
    image = cohort.sample.images[row]
    tiles = [
        (f"{name} {window.level_hu}/{window.width_hu}", windowed(image, window)) for name, window in WINDOWS.items()
    ]
    text = f"Slice {_slice_name(cohort, row)}; level/width in HU."
    alt = f"One CT slice under the windows {', '.join(WINDOWS)}."
    return Section(
        "windows",
        "One slice, every window",
        "Brain shows blood in tissue, subdural blood along the skull, stroke grey and white matter, bone fractures.",
        pictures=[Picture("windows", alt, draw_tiles(tiles), text, photo=True)],
    )


def crops(cohort: Cohort) -> Section:
    """Whole frames with the crop box, and what is left."""
    rows = spread(sorted(cohort.sample.frames), COLUMNS)
    title, look_for = "Crops, before and after", "The box must hold the whole brain of its series, and little else."
    if not rows:
        return Section("crops", title, look_for, notes=["Missing: the shards that were read hold no whole frame."])
    drawn = draw_crops(
        [(cohort.sample.frames[row], _box_in_frame(cohort.table, row), cohort.sample.images[row]) for row in rows]
    )
    alt = f"{len(rows)} whole frames with their crop box, and the cropped slices below."
    names = ", ".join(_slice_name(cohort, row) for row in rows)
    note = (
        "The middle slice of a series; the box is the union over its slices."
        if cohort.manifest.settings.crop == "series"
        else "The middle slice of a series; the box is its own."
    )
    return Section("crops", title, look_for, [note], [Picture("crops", alt, drawn, f"Slices {names}", photo=True)])


def _box_in_frame(table: pd.DataFrame, row: int) -> CropBox:
    """A slice's crop box in pixels of the small frame."""
    names = ["crop_top", "crop_left", "crop_side", "rows", "columns"]
    top, left, side, rows, columns = table.loc[[row], names].to_numpy().astype(int)[0]
    scale = FRAME_SIDE / max(rows, columns)
    return CropBox(round(top * scale), round(left * scale), round(side * scale))


def hounsfield(cohort: Cohort) -> Section:
    """The distribution of HU of the sample."""
    sample = cohort.sample
    pixels = int(sample.hu_counts.sum())
    return Section(
        "hu",
        "Hounsfield units",
        "Expect peaks at air (-1000) and brain (20 to 40); any other is a cap, a fill, or stored values taken for HU.",
        notes=[
            f"A sample: n = {sample.slices_counted:,} of {len(cohort.table):,} slices from {sample.shards} of "
            f"{len(cohort.manifest.shards)} shards, {pixels:,} pixels, as the shards hold them (cropped)."
        ],
        pictures=[
            Picture(
                "hu_histogram",
                "Histogram of HU on a log scale, with the extent of the five windows below it.",
                draw_hu_histogram(sample.hu_counts),
            )
        ],
    )

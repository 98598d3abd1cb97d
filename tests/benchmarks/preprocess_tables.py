"""The figures of the preprocessing benchmark for a reader.

In: the figures. Out: tables on standard output.
"""

from typing import Any

from measuring import new_table, spread_text
from rich.console import Console
from rich.table import Table

Figures = dict[str, Any]


def show(figures: Figures) -> None:
    """Print all tables, each with what was compared."""
    console = Console(width=120, highlight=False)
    setting = figures["setting"]
    console.print(
        f"n = {setting['files']} files of {setting['source']} × {setting['rounds']} interleaved rounds; "
        f"median \\[min–max]; one core of {setting['cpu']}; load average {setting['load_average']}"
    )
    console.print(", ".join(f"{name} {number}" for name, number in setting["versions"].items()))
    for table, explanation in (_speed(figures), _stages(figures), _codecs(figures), _boxes(figures)):
        console.print(table)
        console.print(explanation)


def _speed(figures: Figures) -> tuple[Table, str]:
    table = new_table("DICOM file → stored slice", "", "slices/s", "ratio")
    speed, scaling = figures["speed"], figures["two_processes"]
    for name, rate in speed["slices_per_s"].items():
        table.add_row(name, spread_text(rate), "")
    for name, ratio in speed["ratios"].items():
        table.add_row(name, "", spread_text(ratio, 2))
    if "ratio" in scaling:
        table.add_row("ours in one spawned process", spread_text(scaling["slices_per_s"]["one"]), "")
        table.add_row("ours in two at once", spread_text(scaling["slices_per_s"]["two"]), "")
        table.add_row("two / one", "", spread_text(scaling["ratio"], 2))
    return table, (
        "ours: header, plan, decode, checks, hash, box, resize, Parquet shard, its SHA-256 and sync, all files in one "
        "shard. fastai: mask, crop, 3-window JPEG. pydicom + PIL: 3-window JPEG, neither mask nor crop. Two processes: "
        f"{scaling.get('files_per_process', 0)} files each."
    )


def _stages(figures: Figures) -> tuple[Table, str]:
    table = new_table("Stages of ours, one by one", "stage", "µs a slice")
    for stage, times in figures["stages_us"].items():
        table.add_row(stage, spread_text(times))
    return table, "Decoding and the header read the file themselves."


def _codecs(figures: Figures) -> tuple[Table, str]:
    table = new_table("Compressed files", "syntax", "reader", "slices/s", "× the fastest decoder")
    for syntax, codec in figures["compressed"].items():
        rows = [
            (name, spread_text(rate), _against_fastest(codec, name)) for name, rate in codec["slices_per_s"].items()
        ]
        rows += [(f"{name} skipped", reason[:40], "") for name, reason in codec["skipped"].items()]
        state = "" if codec["identical_to_uncompressed"] else ", OTHER PIXELS"
        for number, row in enumerate(rows):
            table.add_row("" if number else f"{syntax} (n = {codec['files']}{state})", *row)
    return table, (
        "Each decoder is used directly: dcmread + as_array, stored values only. `read_image` adds HU, checks and the "
        "hash; `decode` gives stored values as they do. Ours is checked to give the original's pixels."
    )


def _against_fastest(codec: Figures, name: str) -> str:
    ratio = codec.get("ratios", {}).get(f"{name} / fastest")
    return spread_text(ratio, 2) if ratio else "fastest" * (name == codec.get("fastest"))


def _boxes(figures: Figures) -> tuple[Table, str]:
    table = new_table(
        "Brain box against fastai's", "source", "slices", "refused", "edges within 1 px", "farthest edge, px"
    )
    for source, box in figures["boxes"].items():
        within = f"{box['within_1_px']} ({box['within_1_px'] / max(1, box['slices']):.1%})"
        table.add_row(source, str(box["slices"]), str(box["rejected"]), within, str(box["farthest_px"]))
    return table, "Slices of which all four edges lie within 1 px; both boxes square, of the same HU, edges inclusive."

"""The pictures of the inspection page, each drawn from numbers or pixels that are given to it.

In: counts, tables and images. Out: PNG bytes. Charts have a white ground, which the page inverts in the dark; CT images
have a black one. 4.6 inches wide with 9 point text: still legible at the width of a phone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ichsearch.dicom.brain import CropBox
from ichsearch.dicom.pixels import MIN_HU, Int16Image
from ichsearch.dicom.windows import BRAIN, WINDOWS, Window

WIDTH_INCHES: Final = 4.6
DPI: Final = 200
COLUMNS: Final = 3
HU_BIN: Final = 16
COLOURS: Final = {"haemorrhage": "#c8502d", "none": "#3b6ea8", "unlabelled": "#a0a0a0"}
LINE_COLOURS: Final = ("#c8502d", "#3b6ea8", "#2e8b57", "#8a5fb0", "#b8860b", "#202020")

FloatImage = npt.NDArray[np.float64]


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the name and version of the software in it."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return file.getvalue()


def chart(height_inches: float = 2.8) -> tuple[Figure, Axes]:
    """An empty chart."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def windowed(hu: Int16Image, window: Window) -> FloatImage:
    """Grey values in [0, 1] of an image of HU."""
    grey: FloatImage = (hu.astype(np.float64) - window.low_hu) / window.width_hu
    return grey.clip(0, 1)


def draw_balance(parts: Mapping[str, Mapping[str, int]]) -> bytes:
    """Stacked bars of 100 %: for slices and patients, how many have haemorrhage, none, no labels."""
    figure, axes = chart(1.9)
    for place, counts in enumerate(parts.values()):
        left, total = 0.0, max(1, sum(counts.values()))
        for name, count in counts.items():
            share = 100 * count / total
            axes.barh(place, share, left=left, color=COLOURS[name], label=name if place == 0 else None)
            if share > 9:
                axes.text(left + share / 2, place, f"{count:,}", ha="center", va="center", color="white", fontsize=9)
            left += share
    axes.set_yticks(range(len(parts)), list(parts))
    axes.set(xlabel="%", xlim=(0, 100))
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return png(figure)


def draw_bars(percents: Mapping[str, float], notes: Sequence[str], xlabel: str) -> bytes:
    """Horizontal bars with a note at the end of each."""
    figure, axes = chart(0.9 + 0.3 * len(percents))
    names = list(percents)
    bars = axes.barh(range(len(names)), list(percents.values()), color=COLOURS["none"])
    axes.bar_label(bars, list(notes), padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=xlabel, xlim=(0, 1.35 * max([*percents.values(), 0.01])))
    axes.invert_yaxis()
    return png(figure)


def draw_co_occurrence(names: Sequence[str], counts: npt.NDArray[np.int64]) -> bytes:
    """A heat map of counts, (labels, labels); the colour is the share of the row's label."""
    figure, axes = chart(4.2)
    shares = counts / np.maximum(1, np.diag(counts))[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), list(names), rotation=40, ha="right")
    axes.set_yticks(range(len(names)), list(names))
    axes.spines[:].set_visible(False)
    return png(figure)


def draw_hu_histogram(hu_counts: npt.NDArray[np.int64]) -> bytes:
    """Pixels per HU on a log scale, and below it how far every window reaches."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
    axes, spans = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    counts = hu_counts.reshape(-1, HU_BIN).sum(axis=1)
    edges = MIN_HU + HU_BIN * np.arange(len(counts) + 1)
    axes.stairs(counts, edges, fill=True, color=COLOURS["none"], baseline=0.5)
    axes.set(yscale="log", ylabel=f"pixels per {HU_BIN} HU", ylim=(0.5, None))
    for place, (name, window) in enumerate(WINDOWS.items()):
        spans.barh(place, window.width_hu, left=window.low_hu, height=0.7, color=LINE_COLOURS[place])
        spans.text(window.high_hu + 40, place, name, va="center", fontsize=8)
    spans.set(xlabel="HU", yticks=[], xlim=(edges[0], edges[-1]))
    spans.invert_yaxis()
    for part in (axes, spans):
        part.tick_params(labelsize=8)
        part.spines[["top", "right"]].set_visible(False)
    return png(figure)


def draw_filter(thresholds: Sequence[float], lost_percents: Mapping[str, Sequence[float]]) -> bytes:
    """Percent lost over the threshold of the filter, a line for all slices (dashed) and each label."""
    figure, axes = chart(3.3)
    for place, (name, percents) in enumerate(lost_percents.items()):
        style, colour = ("--", "0.5") if place == 0 else ("-", LINE_COLOURS[(place - 1) % len(LINE_COLOURS)])
        axes.plot(thresholds, percents, style, color=colour, marker="o", markersize=3, label=name)
    axes.set(xlabel="min_brain", ylabel="lost (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5)
    return png(figure)


def draw_counts(values: npt.NDArray[np.int64], xlabel: str, ylabel: str) -> bytes:
    """A histogram of whole numbers, bins of whole width."""
    figure, axes = chart()
    low, high = int(values.min()), int(values.max())
    step = max(1, -(-(high - low + 1) // 30))
    axes.hist(values, bins=[edge - 0.5 for edge in range(low, high + step + 1, step)], color=COLOURS["none"])
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return png(figure)


def draw_shares(groups: Mapping[str, npt.NDArray[np.float64]], thresholds: Sequence[float], xlabel: str) -> bytes:
    """A stacked histogram of shares, a colour for each group, the thresholds as dotted lines."""
    figure, axes = chart()
    high = max(0.05, *(float(values.max()) for values in groups.values() if len(values)))
    colours = [COLOURS[name] for name in groups]
    axes.hist(
        list(groups.values()), bins=list(np.linspace(0, high, 41)), stacked=True, color=colours, label=list(groups)
    )
    for threshold in thresholds:
        axes.axvline(threshold, color="0.35", linestyle=":", linewidth=0.8)
    axes.set(xlabel=xlabel, ylabel="slices")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_tiles(tiles: Sequence[tuple[str, FloatImage]]) -> bytes:
    """Grey images on black, three a row, a text above each."""
    rows = -(-len(tiles) // COLUMNS)
    figure, grid = _tile_grid(rows, lines=max(text.count("\n") + 1 for text, _ in tiles))
    for axes, (text, grey) in zip(grid, tiles, strict=False):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
        axes.set_title(text, color="white", fontsize=8.5)
    return png(figure)


def draw_crops(crops: Sequence[tuple[npt.NDArray[np.uint8], CropBox, Int16Image]]) -> bytes:
    """Above, whole frames with their crop box (in pixels of the frame as given); below, what the shard holds."""
    figure, grid = _tile_grid(2)
    for place, (frame, box, hu) in enumerate(crops):
        grid[place].imshow(frame, cmap="gray", vmin=0, vmax=255)
        grid[place].add_patch(
            Rectangle(
                (box.left - 0.5, box.top - 0.5), box.side, box.side, fill=False, edgecolor="#ffb000", linewidth=1.3
            )
        )
        grid[place].set_title("before", color="white", fontsize=8.5)
        grid[place + COLUMNS].imshow(windowed(hu, BRAIN), cmap="gray", vmin=0, vmax=1)
        grid[place + COLUMNS].set_title("after", color="white", fontsize=8.5)
    return png(figure)


def _tile_grid(rows: int, lines: int = 1) -> tuple[Figure, list[Axes]]:
    """A black figure of `rows` rows of tiles without axes, with room for `lines` of text above each."""
    figure = Figure(figsize=(WIDTH_INCHES, (1.64 + 0.14 * lines) * rows), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.07)
    grid = [figure.add_subplot(rows, COLUMNS, place + 1) for place in range(rows * COLUMNS)]
    for axes in grid:
        axes.set_axis_off()
    return figure, grid

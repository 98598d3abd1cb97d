"""The picture of a LR finder's curve with what it suggests.

In: an `LrCurve`. Out: a PNG file.
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ichsearch.files import written_aside
from ichsearch.train.lr_finder import LrCurve


def draw_curve(curve: LrCurve, path: Path) -> None:
    """Smoothed loss over learning rate, fastai's suggestions as points, and as a line the one that a search takes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(curve.lrs, curve.losses, color="0.25", linewidth=1.8)
    for (name, lr), marker in zip(curve.suggestions.items(), "osD^", strict=False):
        nearest = min(range(len(curve.lrs)), key=lambda index: abs(curve.lrs[index] - lr))
        axes.plot(
            lr,
            curve.losses[nearest],
            marker,
            markersize=8,
            label=f"{'minimum/10' if name == 'minimum' else name} {lr:.2g}",
        )
    taken = "fallback" if curve.guarded else "consensus, lone wild losses left out:"
    axes.axvline(curve.lr, color="tab:red", linestyle="--", label=f"{taken} {curve.lr:.2g}")
    config = curve.config
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="weighted log loss (smoothed)",
        title=f"{config.backbone} · batch {config.batch_size} · {config.size} px · {config.channels}",
    )
    if curve.losses:
        low = min(curve.losses)
        axes.set_ylim(top=min(max(curve.losses), 2.5 * curve.losses[0]), bottom=low - 0.05 * abs(low))
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)

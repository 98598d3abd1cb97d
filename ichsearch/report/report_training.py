"""The sections of the report about training: the LR finder's curves, and the learning curves of the best trials.

In: a `RunData`. Out: a `Section` each.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, Final

from ichsearch.report.chart import COLOURS, SMALL, Chart
from ichsearch.report.page import Figure, Section
from ichsearch.report.run_data import Finished, RunData
from ichsearch.report.scales import linear, logarithmic
from ichsearch.train.lr_finder import LrCurve

MOST_CURVES: Final = 12
SHOWN_TRIALS: Final = 5
HIGHEST_LOSS: Final = 2.5
"""Times the first loss: what runs away above it would flatten the valley."""
NAMES: Final = {"minimum": "minimum/10"}


def learning_rates(data: RunData) -> Section:
    """The LR finder's curves with what they suggest."""
    curves = data.curves
    more = len(curves) - MOST_CURVES
    return Section(
        "learning-rates",
        "Learning rates",
        "The line must stand on the slope left of the valley; where it does not, the range of lr is off for that "
        "backbone.",
        notes=[
            *([] if curves else ["Missing: the LR finder did not run."]),
            *([f"{more} more are in lr_finder/."] if more > 0 else []),
        ],
        figures=[_lr_figure(curve) for curve in curves[:MOST_CURVES]],
    )


def _lr_figure(curve: LrCurve) -> Figure:
    config = curve.config
    name = f"{config.backbone} · batch {config.batch_size} · {config.size} px · {config.channels}"
    taken = "fallback" if curve.guarded else "taken"
    caption = f"{name}: {taken} {curve.lr:.2g}"
    if curve.failure or not curve.losses:
        return Figure(_empty(curve), f"{caption}; the test failed with {curve.failure or 'no loss'}", small=True)
    top = min(max(curve.losses), HIGHEST_LOSS * curve.losses[0])
    chart = Chart(
        logarithmic(curve.lrs, "learning rate"), linear([*curve.losses, top], "loss (smoothed)", high=top), **SMALL
    )
    chart.line(curve.lrs, curve.losses, "c5")
    chart.rule(curve.lr, "c1", title=f"{taken} {curve.lr:.2g}")
    legend = [("c1", f"{taken} {curve.lr:.2g}")]
    for number, (suggestion, lr) in enumerate(curve.suggestions.items()):
        nearest = min(range(len(curve.lrs)), key=lambda place: abs(curve.lrs[place] - lr))
        style = f"c{(0, 2, 3, 4)[number % 4]}"
        text = f"{NAMES.get(suggestion, suggestion)} {lr:.2g}"
        chart.point(lr, curve.losses[nearest], style, title=text, radius=4)
        legend.append((f"{style} dot", text))
    return Figure(
        chart.svg(f"Loss over learning rate of {name}; {taken}: {curve.lr:.2g}."), caption, legend, small=True
    )


def _empty(curve: LrCurve) -> Any:
    return Chart(logarithmic([], "learning rate"), linear([], "loss"), **SMALL).svg(
        f"No curve of {curve.config.backbone}."
    )


def learning_curves(data: RunData) -> Section:
    """Loss and score over the epochs of the best trials."""
    shown = data.ranked[:SHOWN_TRIALS]
    metric = data.metric
    legend = [(f"c{place % COLOURS}", trial.text) for place, trial in enumerate(shown)]
    loss = _epoch_chart(data, shown, "train_loss", "training loss")
    note = f"The {len(shown)} best trials; a chain of promotions is drawn through. The best epoch of each is kept."
    alts = [
        f"{what} over epochs of trials {', '.join(trial.name for trial in shown)}."
        for what in ("Training loss", "Validation log loss", metric)
    ]
    figures = [Figure(loss.svg(alts[0]), "Loss while training", legend)]
    if metric != "log_loss":
        figures.append(Figure(_epoch_chart(data, shown, "log_loss", "log loss").svg(alts[1]), "Validation log loss"))
    figures.append(Figure(_epoch_chart(data, shown, metric, metric).svg(alts[2]), "Validation score"))
    return Section(
        "learning-curves",
        "Learning curves",
        "A training loss that falls while the validation loss rises is overfitting: augment more, or train less.",
        notes=[note],
        figures=figures,
    )


def _epoch_chart(data: RunData, trials: Sequence[Finished], key: str, label: str) -> Chart:
    lines = [_points(data, trial, key) for trial in trials]
    values = [value for line in lines for _, value in line]
    last = max((epoch for line in lines for epoch, _ in line), default=1)
    chart = Chart(linear([0, last], "epoch", low=0), linear(values, label))
    for place, (trial, line) in enumerate(zip(trials, lines, strict=True)):
        style = f"c{place % COLOURS}"
        chart.line(
            [epoch for epoch, _ in line], [value for _, value in line], style, title=trial.text, trial=trial.name
        )
        for epoch, value in line:
            chart.point(epoch, value, style, title=f"{trial.text}: epoch {epoch}, {value:.3f}", radius=2)
    return chart


def _points(data: RunData, trial: Finished, key: str) -> list[tuple[int, float]]:
    """(epoch, value) along a trial's chain of parents; epochs that a child tells again count once."""
    chain = list(data.chain(trial.name))[::-1]
    cut = [*(later.record.config["epochs_before"] for _, later in pairwise(chain)), trial.record.epochs]
    values: dict[int, float] = {}
    for one, last in zip(chain, cut, strict=True):
        for record in data.epochs_of(one.name):
            value = record.get(key)
            if record["epoch"] <= last and value is not None and isfinite(value):
                values[record["epoch"]] = value
    return sorted(values.items())

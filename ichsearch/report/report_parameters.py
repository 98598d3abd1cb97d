"""The section of the report about parameters: what was tried, and what mattered.

In: a `RunData`. Out: a `Section`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ichsearch.report.chart import Chart
from ichsearch.report.page import Figure, Section
from ichsearch.report.run_data import Finished, RunData
from ichsearch.report.scales import Scale, categories, fitting, linear
from ichsearch.search.importance import Importance, read_importance
from ichsearch.train.config import TrialConfig

AXIS_PX: Final = 124
"""Room for one axis of the parallel coordinates."""
SIDE_PX: Final = 56
FEW_VALUES: Final = 5
"""So few different whole numbers are shown as names are: evenly spread."""
FEW_FLOATS: Final = 2
BEST_SHARE: Final = 0.1


@dataclass(frozen=True)
class Axis:
    """One axis: where each trial's value lies, None for a trial without one, and what stands beside the axis."""

    name: str
    shares: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]


def parameters(data: RunData) -> Section:
    """Which values were tried, and which of them mattered."""
    axes = _axes(data)
    importance = read_importance(data.folder)
    return Section(
        "parameters",
        "Parameters",
        "Good trials that keep together on an axis say that its values matter; good ones everywhere, that they do not.",
        notes=[*([] if axes else ["Missing: every trial has the same parameters."]), importance.caveat],
        figures=[*([_parallel(data, axes)] if axes else []), *([_bars(importance)] if importance.shares else [])],
    )


def _values(trial: Finished) -> dict[str, Any]:
    """The values of a trial's parameters; the learning rate that was trained with instead of its factor."""
    config = TrialConfig.model_validate(trial.record.config)
    drawn = {name: value for name, value in trial.record.parameters.items() if name != "lr_factor"}
    return drawn | {"lr": config.lr, "epochs": config.epochs}


def _axes(data: RunData) -> list[Axis]:
    """An axis for each parameter that differs between trials, in the order of the space."""
    values = [_values(trial) for trial in data.ranked]
    names = dict.fromkeys(name for one in values for name in one)
    varied = [name for name in names if len({one.get(name) for one in values}) > 1]
    return [_axis(name, [one.get(name) for one in values]) for name in varied]


def _axis(name: str, values: Sequence[Any]) -> Axis:
    known = [value for value in values if value is not None]
    few = FEW_FLOATS if any(isinstance(value, float) for value in known) else FEW_VALUES
    if all(isinstance(value, int | float) for value in known) and len(set(known)) > few:
        scale = fitting([float(value) for value in known])
        places = {value: float(value) for value in known}
    else:
        names = sorted(set(known), key=lambda value: (isinstance(value, str), value))
        scale = categories([_text(value) for value in names])
        places = {value: float(place) for place, value in enumerate(names)}
    ticks = [(scale.share(place), text) for place, text in scale.ticks]
    return Axis(name, [None if value is None else scale.share(places[value]) for value in values], ticks)


def _text(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 22 else f"{text[:21]}…"


def _parallel(data: RunData, axes: Sequence[Axis]) -> Figure:
    scores = linear([trial.result.score for trial in data.ranked])
    score_axis = Axis(
        data.metric,
        [scores.share(trial.result.score) for trial in data.ranked],
        [(scores.share(place), text) for place, text in scores.ticks],
    )
    drawn = [*axes, score_axis]
    width = 2 * SIDE_PX + AXIS_PX * len(axes)
    chart = Chart(Scale(0, len(axes), []), Scale(0, 1, []), width=width, height=270, left=SIDE_PX, right=SIDE_PX)
    best = max(1, round(BEST_SHARE * len(data.ranked)))
    for place in reversed(range(len(data.ranked))):  # the best ones on top
        points = [(x, share) for x, axis in enumerate(drawn) if (share := axis.shares[place]) is not None]
        trial, style = data.ranked[place], "c1" if place < best else "c0 faint"
        chart.line([x for x, _ in points], [y for _, y in points], style, title=trial.text, trial=trial.name)
    for x, axis in enumerate(drawn):
        _draw_axis(chart, x, axis)
    alt = f"Parallel coordinates of {len(data.ranked)} trials over {', '.join(axis.name for axis in drawn)}."
    caption = "A line is a trial; it skips parameters that the trial does not have."
    return Figure(chart.svg(alt, "parallel"), caption, [("c1", "the best tenth"), ("c0", "others")], wide=True)


def _draw_axis(chart: Chart, x: float, axis: Axis) -> None:
    chart.line([x, x], [0, 1], "pillar")
    for share, text in axis.ticks:
        chart.text((x, share), text, dx=4)
    chart.text((x, 0), axis.name, anchor="middle", dx=0, dy=22)


def _bars(importance: Importance) -> Figure:
    names = list(importance.shares)
    chart = Chart(
        linear([0, 1], "share of importance", low=0, high=1),
        categories(names[::-1]),
        height=60 + 26 * len(names),
    )
    for place, name in enumerate(names[::-1]):
        share = importance.shares[name]
        chart.bar(0, share.value, place, "c0", title=f"{name}: {share.value:.2f}")
        chart.whisker((share.low, place), (share.high, place), "ink")
    told = ", ".join(f"{name} {share.value:.2f}" for name, share in importance.shares.items())
    caption = (
        f"What sets the best quarter of {importance.trials} finished trials apart (PED-ANOVA, {importance.study}); "
        "lines: 90 % of resampled trials."
    )
    return Figure(chart.svg(f"Importance of parameters: {told}."), caption)

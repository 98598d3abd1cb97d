"""The sections of the report about the search: how it came to its best, what it tried, what that cost.

In: a `RunData`. Out: a `Section` each.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import pandas as pd

from ichsearch.report.chart import Chart
from ichsearch.report.page import Figure, Section
from ichsearch.report.pareto import pareto_front
from ichsearch.report.run_data import RunData
from ichsearch.report.scales import categories, linear, logarithmic

SHOWN: Final = 6
"""Trials of a front that a caption names."""
UNITS_S: Final = (("h", 3600.0, 7200.0), ("min", 60.0, 120.0), ("s", 1.0, 0.0))


def search(data: RunData) -> Section:
    """How the best score rose with what was spent, and which trials were promoted."""
    lower = "lower" if data.lower_is_better else "higher"
    return Section(
        "search",
        "The search",
        "A line that is still rising at its right end says that more trials would pay; a flat one that they would not.",
        notes=[f"Scores are {data.metric} on the validation patients; {lower} is better."],
        figures=[_best_so_far(data), _rungs(data)],
    )


def _best_so_far(data: RunData) -> Figure:
    trials = list(data.finished.values())
    unit, in_s = _unit([sum(trial.result.seconds for trial in trials)])
    spent = list(accumulate(trial.result.seconds / in_s for trial in trials))
    scores = [trial.result.score for trial in trials]
    best = list(accumulate(scores, min if data.lower_is_better else max))
    chart = Chart(linear([0, *spent], f"training of all trials ({unit})"), linear(scores, data.metric))
    corners = [(spent[0], best[0]), *_corners(spent, best)]
    chart.line([x for x, _ in corners], [y for _, y in corners])
    for x, trial in zip(spent, trials, strict=True):
        chart.point(x, trial.result.score, "c5", title=trial.text, trial=trial.name, radius=2.5)
    alt = f"Best {data.metric} so far over time spent training: {best[0]:.3f} at first, {best[-1]:.3f} in the end."
    return Figure(
        chart.svg(alt), "In the order in which they started.", [("c0", "best so far"), ("c5 dot", "each trial")]
    )


def _corners(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The points of a staircase after its first: across, then up."""
    steps = zip(xs[1:], ys, ys[1:], strict=False)
    return [point for x, before, after in steps for point in ((x, before), (x, after))]


def _unit(seconds: Sequence[float]) -> tuple[str, float]:
    """In what a time is told, and its seconds."""
    return next((name, one) for name, one, least in UNITS_S if max(seconds) >= least)


def _rungs(data: RunData) -> Figure:
    lengths = sorted({trial.record.epochs for trial in data.finished.values()})
    scores = [trial.result.score for trial in data.finished.values()]
    x = categories([str(epochs) for epochs in lengths], "epochs of the trial, its parents' included")
    chart = Chart(x, linear(scores, data.metric))
    best = {trial.name for trial in data.chain(data.best.name)}
    for trial in data.finished.values():
        parent = data.finished.get(trial.record.parent or "")
        if parent:
            ends = [lengths.index(one.record.epochs) for one in (parent, trial)]
            style = "c1" if trial.name in best else "c5 faint"
            chart.line(ends, [parent.result.score, trial.result.score], style, trial=trial.name)
    for trial in data.finished.values():
        style = "c1" if trial.name in best else "c5"
        chart.point(lengths.index(trial.record.epochs), trial.result.score, style, title=trial.text, trial=trial.name)
    counts = [sum(trial.record.epochs == length for trial in data.finished.values()) for length in lengths]
    told = ", ".join(f"{count} of {length}" for count, length in zip(counts, lengths, strict=True))
    promoted = sum(trial.record.parent is not None for trial in data.finished.values())
    alt = f"Scores of finished trials by their length in epochs, lines from a trial to its promotion: {told} epochs."
    caption = f"Finished trials: {told} epochs; {promoted} promoted."
    return Figure(
        chart.svg(alt), caption, [("c1", "the best trial and those it was promoted from"), ("c5 dot", "others")]
    )


def cost(data: RunData) -> Section:
    """Which trials no other beats in both score and cost."""
    trials = data.ranked
    table = pd.DataFrame(
        {
            "status": "finished",
            "metric": data.metric,
            "score": [trial.result.score for trial in trials],
            "seconds": [sum(one.result.seconds for one in data.chain(trial.name)) for trial in trials],
            "parameters_m": [trial.result.parameters_m for trial in trials],
        }
    )
    unit, in_s = _unit(table["seconds"].tolist())
    return Section(
        "cost",
        "Score and cost",
        "Trials on the line are those that none beats in both; a cheap one near the best score is the better buy.",
        figures=[
            _front(data, table, "seconds", f"training, parents' included ({unit})", in_s),
            _front(data, table, "parameters_m", "parameters (millions)"),
        ],
    )


def _front(data: RunData, table: pd.DataFrame, column: str, label: str, unit: float = 1.0) -> Figure:
    """Scores over costs of the trials, the best first, with the line of those that no other one beats in both."""
    front = pareto_front(table, ["score", column]).tolist()
    costs, scores = (table[column] / unit).tolist(), table["score"].tolist()
    chart = Chart(logarithmic(costs, label), linear(scores, data.metric))
    line = sorted((cost, score) for cost, score, is_on in zip(costs, scores, front, strict=True) if is_on)
    corners = [line[0], *_corners([x for x, _ in line], [y for _, y in line])]
    drawn = list(zip(data.ranked, costs, front, strict=True))[::-1]
    for trial, cost, is_on in sorted(drawn, key=lambda mark: mark[2]):  # the front lies on top
        style = "c1" if is_on else "c5"
        chart.point(cost, trial.result.score, style, title=trial.text, trial=trial.name)
    chart.line([x for x, _ in corners], [y for _, y in corners], "c1")
    on_it = [trial for trial, is_on in zip(data.ranked, front, strict=True) if is_on]
    names = ", ".join(f"{trial.name} ({trial.backbone})" for trial in on_it[:SHOWN])
    alt = f"Scores over {label}; on the Pareto front: {names}."
    return Figure(chart.svg(alt), f"On the front: {names}.", [("c1", "Pareto front"), ("c5 dot", "others")])

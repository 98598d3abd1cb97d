"""The section of the report about confirmation: the best trials trained anew, and scored on the test fold.

In: a `RunData`. Out: a `Section`.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from ichsearch.data.split import TEST_FOLD
from ichsearch.report.bootstrap import Interval
from ichsearch.report.chart import Chart
from ichsearch.report.page import Cell, Column, Figure, Row, Section, Table, number, words
from ichsearch.report.run_data import RunData
from ichsearch.report.scales import categories, linear
from ichsearch.report.statistics import read_predictions, resampled_scores
from ichsearch.search.openings import read_openings
from ichsearch.train.trial import read_result


@dataclass(frozen=True)
class Confirmed:
    """A trial, its score in the search, those of its replays, and what all of these say of slices never seen."""

    trial: str
    searched: float
    replays: list[float]
    test: Interval | None
    out_of_fold: Interval | None


def confirmation(data: RunData) -> Section:
    """Whether the best trials hold what they promise."""
    title = "Confirmation"
    look_for = "Replays below the search's score are what the winner's luck was worth; the test fold decides."
    openings = [
        f"The test fold was opened on {opening.when:%Y-%m-%d %H:%M} UTC by `{opening.command}`, for trials "
        f"{', '.join(opening.trials)}."
        for opening in read_openings(data.folder)
    ]
    replayed = {record.trial for record in data.folder.replays()}
    confirmed = [_confirmed(data, trial.name) for trial in data.ranked if trial.name in replayed]
    if not confirmed:
        missing = (
            f"Not confirmed yet: the best score is the luckiest of {len(data.finished)}. `ichsearch confirm RUN` "
            "trains the best trials anew from fresh seeds, then scores them on the test fold, once."
        )
        return Section("confirmation", title, look_for, notes=[missing, *openings])
    failed = sum(record.status == "failed" for record in data.folder.replays())
    notes = [*openings, *([f"Replays that failed: {failed}; confirm/ has their errors."] if failed else [])]
    return Section("confirmation", title, look_for, notes, [_figure(data, confirmed)], [_table(data, confirmed)])


def _confirmed(data: RunData, trial: str) -> Confirmed:
    records = [one for one in data.folder.replays() if (one.trial, one.fold) == (trial, TEST_FOLD)]
    results = [read_result(data.folder.replay(record.name)) for record in records]
    return Confirmed(
        trial,
        data.finished[trial].result.score,
        [result.score for result in results if result],
        _interval(data, data.folder.test_predictions(trial)),
        _interval(data, data.folder.out_of_fold_predictions(trial)),
    )


def _interval(data: RunData, path: Path) -> Interval | None:
    """The metric that ranks, of the mean predictions of replays; None before they are there."""
    return resampled_scores(read_predictions(path), data.metric)[data.metric].interval if path.is_file() else None


def _figure(data: RunData, confirmed: list[Confirmed]) -> Figure:
    values = [value for one in confirmed for value in (one.searched, *one.replays, *(one.test or ())[:3])]
    names = [one.trial for one in confirmed[::-1]]
    chart = Chart(linear(values, data.metric), categories(names), height=60 + 34 * len(names))
    for place, one in enumerate(confirmed[::-1]):
        if one.test:
            chart.whisker((one.test.low, place), (one.test.high, place), "c1")
            chart.point(one.test.value, place, "c1", title=f"test fold {one.test.value:.3f}", trial=one.trial, radius=5)
        for score in one.replays:
            chart.point(score, place, "c0", title=f"replay {score:.3f}", trial=one.trial)
        chart.point(one.searched, place, "c4", title=f"search {one.searched:.3f}", trial=one.trial)
    legend = [("c4 dot", "in the search"), ("c0 dot", "replays, fresh seeds"), ("c1 dot", "test fold, 95 %")]
    told = "; ".join(f"trial {one.trial}: {one.searched:.3f} in the search" for one in confirmed)
    return Figure(chart.svg(f"Scores of confirmed trials. {told}."), legend=legend)


def _table(data: RunData, confirmed: list[Confirmed]) -> Table:
    columns = [
        Column("trial", words=True),
        Column("backbone", words=True),
        Column("search"),
        Column("replays", "trained anew from fresh seeds, on the same validation patients"),
        Column("mean"),
        Column("sd"),
        Column("test fold", "of the replays' mean predictions"),
        Column("out of fold", "of the replays' mean predictions on all folds, each by those that held it out"),
    ]
    rows = [Row(_cells(one, data.finished[one.trial].backbone), one.trial) for one in confirmed]
    return Table(f"Confirmed trials ({data.metric})", columns, rows)


def _cells(one: Confirmed, backbone: str) -> list[Cell]:
    return [
        words(one.trial),
        words(backbone),
        number(one.searched),
        number(len(one.replays), "d"),
        number(mean(one.replays) if one.replays else None),
        number(stdev(one.replays) if len(one.replays) > 1 else None),
        _interval_cell(one.test),
        _interval_cell(one.out_of_fold),
    ]


def _interval_cell(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("–")
    return Cell(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]", interval.value)

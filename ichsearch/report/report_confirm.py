"""The section of the report about confirmation: the best trials trained anew, and scored on the test fold.

In: a `RunData`. Out: a `Section`.
"""

from ichsearch.report.bootstrap import MIN_PATIENTS, Interval
from ichsearch.report.chart import Chart
from ichsearch.report.confirmation import Confirmation, confirmations, out_of_fold
from ichsearch.report.page import Cell, Column, Figure, Row, Section, Table, number, words
from ichsearch.report.run_data import RunData
from ichsearch.report.scales import categories, linear
from ichsearch.search.openings import read_openings


def confirmation(data: RunData) -> Section:
    """Whether the best trials hold what they promise."""
    title = "Confirmation"
    look_for = "Replays below the search's score are what the winner's luck was worth; the test fold decides."
    openings = [
        f"The test fold was opened on {opening.when:%Y-%m-%d %H:%M} UTC by “{opening.command}”, for trials "
        f"{', '.join(opening.trials)}."
        for opening in read_openings(data.folder)
    ]
    confirmed = confirmations(data.folder)
    if not confirmed:
        missing = (
            f"Not confirmed yet: the best score is the luckiest of {len(data.finished)}. “ichsearch confirm RUN” "
            "trains the best trials anew from fresh seeds, then scores them on the test fold, once."
        )
        return Section("confirmation", title, look_for, notes=[missing, *openings])
    failed = sum(record.status == "failed" for record in data.folder.replays())
    notes = [*openings, *([f"Replays that failed: {failed}; confirm/ has their errors."] if failed else [])]
    return Section("confirmation", title, look_for, notes, [_figure(data, confirmed)], [_table(data, confirmed)])


def _figure(data: RunData, confirmed: dict[str, Confirmation]) -> Figure:
    values = [value for one in confirmed.values() for value in (one.searched, *one.scores, *_shown(one))]
    names = list(confirmed)[::-1]
    chart = Chart(linear(values, data.metric), categories(names), height=60 + 34 * len(names))
    for place, name in enumerate(names):
        one = confirmed[name]
        if one.test and one.patients >= MIN_PATIENTS:
            chart.whisker((one.test.low, place), (one.test.high, place), "c1")
        if one.test:
            chart.point(one.test.value, place, "c1", title=f"test fold {one.test.value:.3f}", trial=name, radius=5)
        for score in one.scores:
            chart.point(score, place, "c0", title=f"replay {score:.3f}", trial=name)
        chart.point(one.searched, place, "c4", title=f"search {one.searched:.3f}", trial=name)
    legend = [("c4 dot", "in the search"), ("c0 dot", "replays, fresh seeds"), ("c1 dot", "test fold, 95 %")]
    told = "; ".join(f"trial {name}: {one.searched:.3f} in the search" for name, one in confirmed.items())
    return Figure(chart.svg(f"Scores of confirmed trials. {told}."), legend=legend)


def _shown(one: Confirmation) -> tuple[float, ...]:
    """What is drawn of the test fold: the interval only of enough patients to mean something."""
    if one.test is None:
        return ()
    return (one.test.low, one.test.value, one.test.high) if one.patients >= MIN_PATIENTS else (one.test.value,)


def _table(data: RunData, confirmed: dict[str, Confirmation]) -> Table:
    columns = [
        Column("trial", words=True),
        Column("backbone", words=True),
        Column("search"),
        Column("replays", "trained anew from fresh seeds, on the same validation patients"),
        Column("mean"),
        Column("sd"),
        Column("test fold", "of the replays' mean predictions"),
        Column("mean of the folds", "of the scores on each fold when it was held out"),
    ]
    rows = [Row(_cells(data, name, one), name) for name, one in confirmed.items()]
    return Table(f"Confirmed trials ({data.metric})", columns, rows)


def _cells(data: RunData, trial: str, one: Confirmation) -> list[Cell]:
    return [
        words(trial),
        words(data.finished[trial].backbone),
        number(one.searched),
        number(len(one.scores), "d"),
        number(one.mean),
        number(one.sd),
        _interval_cell(one.test, one.patients),
        _interval_cell(out_of_fold(data.folder, trial, one.metric), one.patients),
    ]


def _interval_cell(interval: Interval | None, patients: int) -> Cell:
    if interval is None:
        return Cell("–")
    if patients < MIN_PATIENTS:
        return number(interval.value)
    return Cell(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]", interval.value)

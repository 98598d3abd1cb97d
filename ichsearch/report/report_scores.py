"""The sections of the report about the best trial's scores: ROC, precision and recall, calibration, confusion, groups.

In: a `RunData`. Out: a `Section` each.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from ichsearch.data.split import RELIABLE_POSITIVE_GROUPS
from ichsearch.labels import ANY
from ichsearch.report.bands import BINS, GRID, Calibration, Kind, LabelCurves, precision_recall, roc
from ichsearch.report.bootstrap import MIN_PATIENTS, RESAMPLES, Interval, resample
from ichsearch.report.chart import SMALL, Chart, interval_mark
from ichsearch.report.page import Cell, Column, Figure, Row, Section, Table, counted, number, words
from ichsearch.report.run_data import RunData
from ichsearch.report.scales import linear
from ichsearch.report.statistics import Predictions, read_predictions
from ichsearch.report.weighted_scores import RANKED, ranked_scores
from ichsearch.train.metrics import SPECIFICITIES_PERCENT, BoolArray, FloatArray

THICK_MM: Final = (2.0, 4.0)
AUROC: Final = linear([], low=0, high=1)


def curves_of(data: RunData, label: str) -> LabelCurves:
    """Truth and probabilities of one label for the best trial."""
    return _curves(data.predictions, label)


def _curves(predictions: Predictions, label: str) -> LabelCurves:
    column = predictions.labels.index(label)
    return LabelCurves(predictions.positive[:, column], predictions.probabilities[:, column], predictions.of_patient)


def discrimination(data: RunData) -> Section:
    """ROC, and precision over recall, of every label."""
    labels = data.best_config.labels[::-1]  # any haemorrhage first
    known = [label for label in labels if curves_of(data, label).defined]
    return Section(
        "curves",
        "ROC, precision and recall",
        "A band that reaches the dotted line of chance says that these patients do not show that the label is told.",
        notes=[
            f"Best trial on the validation slices; bands: 95 % over resampled patients ({RESAMPLES:,} resamples, "
            f"scores in {BINS} bins).",
            *([f"Grey: {data.rival}, the best of the rules that see no image."] if data.rival else []),
            *_undefined(labels, known),
            *_few(data, known),
        ],
        figures=[figure for label in known for figure in _curve_figures(data, label)],
    )


def _undefined(labels: Sequence[str], known: Sequence[str]) -> list[str]:
    missing = [label for label in labels if label not in known]
    return [f"Undefined, the validation slices are all of one kind: {', '.join(missing)}."] if missing else []


def _few(data: RunData, labels: Sequence[str]) -> list[str]:
    few = [label for label in labels if curves_of(data, label).positive_patients < RELIABLE_POSITIVE_GROUPS]
    least = f"fewer than {RELIABLE_POSITIVE_GROUPS} positive patients"
    return [f"Bands too narrow to be believed, {least}: {', '.join(few)}."] if few else []


def _curve_figures(data: RunData, label: str) -> list[Figure]:
    curves, rule = curves_of(data, label), _rule(data, label)
    prevalence = float(curves.positive.mean())
    patients = counted(curves.positive_patients, "patient")
    found = f"{label}: {counted(int(curves.positive.sum()), 'positive slice')} of {patients}"
    axes = ("1 - specificity", "sensitivity"), ("recall", "precision")
    roc_chart = _band_chart(curves, rule, roc, axes[0], chance=(0, 1))
    precision_chart = _band_chart(curves, rule, precision_recall, axes[1], chance=(prevalence, prevalence))
    return [
        Figure(roc_chart.svg(f"ROC of {found}."), f"ROC, {found}", small=True),
        Figure(precision_chart.svg(f"Precision over recall of {found}."), f"Precision, {found}", small=True),
    ]


def _rule(data: RunData, label: str) -> LabelCurves | None:
    """The best rule that sees no image, on the same slices."""
    return _curves(read_predictions(data.folder.baseline(data.rival)), label) if data.rival else None


def _band_chart(
    curves: LabelCurves, rule: LabelCurves | None, kind: Kind, axes: tuple[str, str], chance: tuple[float, float]
) -> Chart:
    """A curve with its band, the line of the rule without one, and that of chance."""
    band, x = curves.band(kind), GRID.tolist()
    chart = Chart(linear([], axes[0], low=0, high=1), linear([], axes[1], low=0, high=1), **SMALL)
    chart.band(x, band.low.tolist(), band.high.tolist())
    chart.line([0, 1], chance, "soft dotted")
    start = [0.0] if kind is roc else []  # where no slice is called positive
    if rule:
        chart.line([*start, *x], [*start, *rule.line(kind).tolist()], "c5 thin")
    chart.line([*start, *x], [*start, *band.value.tolist()])
    return chart


def calibration(data: RunData) -> Section:
    """Whether probabilities can be taken at their word."""
    labels = data.best_config.labels[::-1]
    known = [label for label in labels if curves_of(data, label).defined]
    return Section(
        "calibration",
        "Calibration",
        "Points on the diagonal are probabilities to be taken at their word; below it the model is too sure.",
        notes=[
            "Ten bins of equally many slices; lines: 95 % over resampled patients; bars: where the probabilities lie.",
            *_undefined(labels, known),
        ],
        figures=[_calibration_figure(label, curves_of(data, label)) for label in known],
    )


def _calibration_figure(label: str, curves: LabelCurves) -> Figure:
    result = curves.calibration()
    x = linear([0, float(result.predicted.max())], "predicted probability", low=0)
    y = linear([0, float(result.high.max())], "share of positives", low=0)
    chart = Chart(x, y, **SMALL)
    _draw_histogram(chart, curves.scores, x.high, y.high)
    chart.line([0, min(x.high, y.high)], [0, min(x.high, y.high)], "soft dotted")
    _draw_bins(chart, result)
    alt = f"Calibration of {label}: share of positives over predicted probability in {len(result.predicted)} bins."
    return Figure(chart.svg(alt), label, small=True)


def _draw_histogram(chart: Chart, scores: FloatArray, high: float, top: float) -> None:
    counts, edges = np.histogram(scores.clip(0, high), bins=20, range=(0, high))
    for count, left, right in zip(counts.tolist(), edges.tolist(), edges[1:].tolist(), strict=False):
        chart.column(left, right, 0, 0.25 * top * count / max(counts.max(), 1), "shade")


def _draw_bins(chart: Chart, result: Calibration) -> None:
    chart.line(result.predicted.tolist(), result.observed.tolist())
    for x, y, low, high, slices in zip(*(values.tolist() for values in result), strict=True):
        chart.whisker((x, low), (x, high))
        chart.point(x, y, title=f"{slices} slices: predicted {x:.3f}, observed {y:.3f} ({low:.3f} to {high:.3f})")


def confusion(data: RunData) -> Section:
    """True and false answers of every label at two thresholds."""
    labels = data.best_config.labels
    shown = [f"{percent} % specificity" for percent in SPECIFICITIES_PERCENT]
    tables = [_confusion_table(data, "At a probability of 0.5", dict.fromkeys(labels, 0.5))]
    for percent, title in zip(SPECIFICITIES_PERCENT, shown, strict=True):
        thresholds = {label: _threshold(curves_of(data, label), percent) for label in labels}
        tables.append(_confusion_table(data, f"At {title}", thresholds))
    return Section(
        "confusion",
        "Confusion",
        "A label that is never called at 0.5 is not useless: look at its sensitivity where the specificity is fixed.",
        notes=["Validation slices of the best trial. The thresholds were chosen on the same slices."],
        tables=tables,
    )


def _threshold(curves: LabelCurves, specificity_percent: int) -> float | None:
    """The lowest threshold with at least this specificity; slices at or above it are called positive."""
    if not curves.defined:
        return None
    negatives = np.sort(curves.scores[~curves.positive])[::-1]
    allowed = (100 - specificity_percent) * len(negatives) // 100
    above = curves.scores[curves.scores > negatives[allowed]] if allowed < len(negatives) else curves.scores
    return float(above.min()) if len(above) else float(np.nextafter(negatives[0], 2))


def _confusion_table(data: RunData, title: str, thresholds: dict[str, float | None]) -> Table:
    names = (
        "label",
        "threshold",
        "found",
        "missed",
        "false alarms",
        "rightly quiet",
        "sensitivity",
        "specificity",
        "precision",
    )
    rows = [Row(_confusion_cells(label, curves_of(data, label), at)) for label, at in thresholds.items()]
    return Table(title, [Column(name) for name in names], rows)


def _confusion_cells(label: str, curves: LabelCurves, threshold: float | None) -> list[Cell]:
    if threshold is None:
        return [words(label), *[Cell("undefined")] * 8]
    called, positive = curves.scores >= threshold, curves.positive
    found, missed = int((called & positive).sum()), int((~called & positive).sum())
    alarms, quiet = int((called & ~positive).sum()), int((~called & ~positive).sum())
    return [
        words(label),
        number(threshold, ".3g"),
        *(number(count, ",d") for count in (found, missed, alarms, quiet)),
        _share(found, found + missed),
        _share(quiet, quiet + alarms),
        _share(found, found + alarms),
    ]


def _share(part: int, whole: int) -> Cell:
    return number(part / whole, ".3f") if whole else Cell("undefined")


def judged_label(data: RunData) -> str:
    """Any haemorrhage; of a task without it the label with most positive validation slices."""
    labels = data.best_config.labels
    return ANY if ANY in labels else max(labels, key=lambda label: int(curves_of(data, label).positive.sum()))


def scanners(data: RunData) -> Section:
    """Scores of the best trial in groups of slices that were made alike."""
    title, look_for = (
        "Scanner populations",
        "A group that scores worse than the others is one the model was not taught.",
    )
    if data.shards is None:
        return Section(
            "scanners", title, look_for, notes=["Missing: the shards are not at hand; name them with --data."]
        )
    label = judged_label(data)
    table = data.table.iloc[data.rows].reset_index(drop=True)
    groups = {"How pixels are stored": _storage(table), "Slice thickness": _thickness(table), "Gantry": _tilt(table)}
    return Section(
        "scanners",
        title,
        look_for,
        notes=[
            f"AUROC of slices for {label} with 95 % over resampled patients; groups with fewer than {MIN_PATIENTS} "
            "patients, or slices of one kind only, have none."
        ],
        tables=[_group_table(name, curves_of(data, label), keys) for name, keys in groups.items()],
    )


def _storage(table: pd.DataFrame) -> "pd.Series[str]":
    signed = np.where(table["signed"], "signed", "unsigned")
    bits, intercept = table["bits_stored"].astype(str), table["rescale_intercept"].map("{:g}".format)
    return bits + " bit, " + signed + ", intercept " + intercept


def _thickness(table: pd.DataFrame) -> "pd.Series[str]":
    thin, thick = THICK_MM
    mm = table["slice_thickness_mm"].astype(float)
    groups = {"not told": mm.isna(), f"up to {thin:g} mm": mm <= thin, f"over {thick:g} mm": mm > thick}
    names = np.select(list(groups.values()), list(groups), f"over {thin:g} to {thick:g} mm")
    return pd.Series(names.astype(object), dtype=str)


def _tilt(table: pd.DataFrame) -> "pd.Series[str]":
    names = np.where(table["tilt_degrees"].abs() >= 1, "tilted by 1° or more", "upright")
    return pd.Series(names.astype(object), dtype=str)


def _group_table(name: str, curves: LabelCurves, keys: "pd.Series[str]") -> Table:
    columns = ["slices", "patients", "positive", "mean probability", "AUROC", "interval"]
    groups = {str(key): (keys == key).to_numpy() for key in sorted(keys.unique())}
    rows = [Row(_group_cells(key, curves, chosen)) for key, chosen in groups.items()]
    return Table(name, [Column(name), *(Column(column) for column in columns)], rows)


def _group_cells(key: str, curves: LabelCurves, chosen: BoolArray) -> list[Cell]:
    positive, scores = curves.positive[chosen], curves.scores[chosen]
    patients, numbers = np.unique(curves.of_patient[chosen], return_inverse=True)
    count = len(patients)
    interval = None
    if count >= MIN_PATIENTS:
        interval = resample(ranked_scores(positive, scores, numbers), count)[RANKED.index("auroc")].interval
    return [
        words(key),
        number(len(scores), ",d"),
        number(count, ",d"),
        number(int(positive.sum()), ",d"),
        number(float(scores.mean())),
        *interval_cells(interval),
    ]


def interval_cells(interval: Interval | None) -> list[Cell]:
    """A value, and its interval drawn on the scale of an AUROC."""
    if interval is None:
        return [Cell("–"), Cell("–")]
    mark = interval_mark(AUROC, interval.low, interval.value, interval.high, rules=[0.5])
    text = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return [Cell(text, interval.value), Cell(mark)]

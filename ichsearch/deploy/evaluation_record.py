"""What a model is worth on labelled slices: the form of `evaluations/<name>.json`.

In: scores and operating points. Out: an `Evaluation`, and what a person reads of it.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ichsearch.labels import ANY
from ichsearch.report.bootstrap import MIN_PATIENTS, Interval

Part = Literal["all", "validation", "test"]
Scores = dict[str, Interval | None]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AppliedPoint(_Frozen):
    """A threshold that the validation patients chose, and what it gives here."""

    threshold: float
    chosen_sensitivity: float = Field(description="on the validation patients, which flatter it")
    chosen_specificity: float = Field(description="likewise")
    sensitivity: Interval | None = Field(description="here; null without a positive")
    specificity: Interval | None = Field(description="here; null without a negative")


Points = dict[str, dict[str, AppliedPoint | None]]
"""By label, then `specificity_90`, `specificity_95`, `youden`; null where validation shows one class only."""


class Evaluation(_Frozen):
    """A model on slices that it did not learn from."""

    ichsearch: str
    run: str
    trials: list[str]
    weights: list[float]
    flip: bool
    smoothed: bool
    fingerprint: str = Field(description="of the shards")
    part: Part
    slices: int
    patients: int
    patients_left_out: int = Field(description="because the run knows them, by name or by image")
    other_key: bool = Field(False, description="patients were hashed with another key than the run's: by image alone")
    images_compared: bool = Field(False, description="whether the run's own images were at hand to be looked for")
    label_level: str | None = Field("slice", description="what a label was given for: slice, series, study, patient")
    positive_slices: dict[str, int]
    positive_patients: dict[str, int]
    scores: Scores = Field(description="as in statistics.json; null where the patients do not define one")
    slice_thresholds: Points
    patient_thresholds: Points


def interval_text(interval: Interval | None, patients: int) -> str:
    """A value with its interval, without it where these are too few patients to believe one."""
    if interval is None:
        return "undefined"
    bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if patients >= MIN_PATIENTS else ""
    return f"{interval.value:.3f}{bounds}"


def score_rows(judged: Evaluation) -> list[list[str]]:
    """A header, and a row a label: the scores that rank."""
    names = ("auroc", "average_precision", "patient_auroc", "patient_average_precision")
    rows = [["", "positive slices", "patients", *names]]
    for label, positive in judged.positive_slices.items():
        scores = [interval_text(judged.scores.get(f"{name}_{label}"), judged.patients) for name in names]
        rows.append([label, str(positive), str(judged.positive_patients[label]), *scores])
    means = [interval_text(judged.scores.get(f"{name}_mean"), judged.patients) for name in names]
    return [*rows, ["mean", "", "", *means]]


def threshold_rows(judged: Evaluation) -> list[list[str]]:
    """A header, and a row an operating point of the label `any`, or else of the first: of slices, then of patients."""
    labels = list(judged.positive_slices)
    label = ANY if ANY in labels else labels[0]
    rows = [[label, "point", "threshold", "sensitivity", "specificity", "both on validation"]]
    for level, points in (("slices", judged.slice_thresholds), ("patients", judged.patient_thresholds)):
        for name, point in points[label].items():
            if point:
                chosen = f"{point.chosen_sensitivity:.3f}, {point.chosen_specificity:.3f}"
                shares = [interval_text(share, judged.patients) for share in (point.sensitivity, point.specificity)]
                rows.append([level, name, f"{point.threshold:.4g}", *shares, chosen])
    return rows


def evaluation_text(judged: Evaluation) -> list[str]:
    """What a person should know of it, a line each."""
    lines = [f"{judged.slices} labelled slices of {judged.patients} patients; 95 % intervals over patients"]
    if judged.patients < MIN_PATIENTS:
        lines[0] = lines[0].replace("; 95 % intervals over patients", f"; no intervals of fewer than {MIN_PATIENTS}")
    if judged.label_level not in (None, "slice"):
        lines.append(
            f"labels are given per {judged.label_level}: every slice of a positive one counts as positive, so that "
            "scores of slices are those of its whole length; believe those of patients"
        )
    if judged.other_key and judged.part == "all":
        images = "were looked for by their images" if judged.images_compared else "cannot be told from new ones"
        lines.append(
            f"these shards were made with another key: patients whom the run learned from {images}"
            + ("" if judged.images_compared else "; where there may be any, name the run's own shards with --run-data")
        )
    if judged.patients_left_out:
        lines.append(f"{judged.patients_left_out} patients are left out: the run knows them")
    if judged.part == "test":
        lines.append("the test fold was opened for this, noted in test_fold.json: do not choose by what it shows")
    if judged.part == "validation":
        lines.append("the model was chosen on these patients, so its scores are optimistic")
    return lines

"""Intervals hold the truth as often as they say: on cohorts drawn from a law that is known; and DeLong agrees.

    pytest -m slow tests/test_coverage.py -rP

shows the coverage of every score over 1,000 cohorts.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from ichsearch.labels import ANY
from ichsearch.report import bootstrap
from ichsearch.report.bootstrap import Resampled, resample
from ichsearch.report.statistics import Intervals, Predictions, intervals, resampled_scores
from ichsearch.report.weighted_scores import RANKED, ranked_scores
from ichsearch.train.metrics import BoolArray, FloatArray, Scores, score

SLICES: Final = 10
LAW_PATIENTS: Final = 50_000
"""So many that their scores are those of the law, to three digits."""


def draw(patients: int, rng: np.random.Generator) -> Predictions:
    """Two patients in five bleed, in a third of their slices; the model errs by patient and by slice."""
    of_patient = np.repeat(np.arange(patients), SLICES)
    bleeds = (rng.random(patients) < 0.4)[of_patient]
    positive = bleeds & (rng.random(len(of_patient)) < 1 / 3)
    noise = 0.8 * rng.normal(size=len(of_patient)) + 0.6 * rng.normal(size=patients)[of_patient]
    probabilities = 1 / (1 + np.exp(2.5 - 2 * positive - noise))
    names = np.arange(patients).astype(np.object_)
    slices = np.arange(len(of_patient)).astype(np.object_)
    return Predictions((ANY,), slices, names, of_patient, positive[:, None], probabilities[:, None])


@pytest.fixture(scope="module")
def law() -> Scores:
    """What the scores are, whoever is drawn."""
    many = draw(LAW_PATIENTS, np.random.default_rng(1))
    return score(many.positive.astype(float), many.probabilities, [ANY], many.of_patient.astype(np.object_))


def covered(law: Scores, found: Intervals) -> dict[str, bool]:
    """Which intervals hold the truth."""
    held = {}
    for name, interval in found.items():
        truth = law.get(name)
        if interval is not None and truth is not None and not name.endswith("_mean"):
            held[name] = interval.low <= truth <= interval.high
    return held


def coverage(law: Scores, patients: int, cohorts: int, judge: Callable[[Predictions], Intervals]) -> dict[str, float]:
    """How often the intervals of each score hold the truth, of the cohorts that define it."""
    rng = np.random.default_rng(patients)
    held, defined = Counter[str](), Counter[str]()
    for _ in range(cohorts):
        for name, holds in covered(law, judge(draw(patients, rng))).items():
            held[name] += holds
            defined[name] += 1
    return {name: held[name] / count for name, count in defined.items()}


def of_auroc(predictions: Predictions) -> Intervals:
    return {name: resampled_scores(predictions, name)[name].interval for name in ("auroc_any", "patient_auroc_any")}


def as_if_slices_were_patients(predictions: Predictions) -> Intervals:
    alone = np.arange(len(predictions.slices))
    return of_auroc(predictions._replace(of_patient=alone, patients=alone.astype(np.object_)))


def test_intervals_hold_the_truth_and_would_not_if_slices_were_resampled(
    law: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    found = coverage(law, 60, 150, of_auroc)
    assert found["auroc_any"] >= 0.9
    assert found["patient_auroc_any"] >= 0.9
    assert coverage(law, 60, 60, as_if_slices_were_patients)["auroc_any"] < 0.87


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "least"), [(300, 0.93), (60, 0.9), (24, 0.85), (12, 0.7)])
def test_coverage_over_a_thousand_cohorts(law: Scores, patients: int, least: float) -> None:
    found = coverage(law, patients, 1000, intervals)
    shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.items())
    sys.stdout.write(f"{patients} patients: {shown}\n")
    assert len(found) == 10
    assert min(found.values()) >= least


def influence(positive: BoolArray, scores: FloatArray, of_patient: npt.NDArray[np.intp]) -> FloatArray:
    """How much each patient pulls the AUROC, (P,): DeLong's components, summed by patient (Obuchowski 1997)."""
    above = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    patients = int(of_patient.max()) + 1
    pull = np.zeros(patients)
    for rows, shares in ((positive, above.mean(axis=1)), (~positive, above.mean(axis=0))):
        pull += np.bincount(of_patient[rows], weights=shares - above.mean(), minlength=patients) / rows.sum()
    return pull


def delong_error(pull: FloatArray) -> float:
    """DeLong's standard error of an AUROC, or of a difference of two."""
    return float(np.sqrt(len(pull) / (len(pull) - 1) * (pull**2).sum()))


def auroc(positive: BoolArray, scores: FloatArray, of_patient: npt.NDArray[np.intp]) -> Resampled:
    return resample(ranked_scores(positive, scores, of_patient), int(of_patient.max()) + 1)[RANKED.index("auroc")]


def assert_as_delong(found: Resampled, pull: FloatArray) -> None:
    error = delong_error(pull)
    assert np.nanstd(found.draws, ddof=1) == pytest.approx(error, rel=0.06)
    interval = found.interval
    assert interval is not None
    ends = [found.value - 1.96 * error, found.value + 1.96 * error]
    np.testing.assert_allclose([interval.low, interval.high], ends, atol=0.5 * error)


@pytest.mark.parametrize("slices_of_a_patient", [1, SLICES])
def test_delong_agrees_on_the_error_of_an_auroc(slices_of_a_patient: int) -> None:
    cohort = draw(300, np.random.default_rng(2))
    rows = np.flatnonzero(np.arange(3000) % SLICES < slices_of_a_patient)
    parts = cohort.positive[rows, 0], cohort.probabilities[rows, 0], cohort.of_patient[rows]
    assert_as_delong(auroc(*parts), influence(*parts))


def test_delong_agrees_on_the_error_of_a_difference() -> None:
    cohort = draw(300, np.random.default_rng(3))
    positive, first, of_patient = cohort.positive[:, 0], cohort.probabilities[:, 0], cohort.of_patient
    second = 0.7 * first + 0.3 * np.random.default_rng(4).random(len(first))
    found = auroc(positive, first, of_patient).minus(auroc(positive, second, of_patient))
    assert_as_delong(found, influence(positive, first, of_patient) - influence(positive, second, of_patient))


def test_delong_would_not_agree_if_slices_were_patients() -> None:
    cohort = draw(300, np.random.default_rng(2))
    parts = cohort.positive[:, 0], cohort.probabilities[:, 0]
    by_slice = delong_error(influence(*parts, np.arange(3000)))
    assert by_slice < 0.85 * np.nanstd(auroc(*parts, cohort.of_patient).draws)

"""Metrics against scikit-learn's on random data with ties, and small sums done by hand."""

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score, roc_curve

from ichsearch.errors import DataError
from ichsearch.labels import LABELS, LOSS_WEIGHTS, SUBTYPES
from ichsearch.train.metrics import (
    LOWER_IS_BETTER,
    FloatArray,
    Metric,
    Scores,
    better,
    is_defined,
    patient_level,
    score,
    slice_losses,
)

LABEL_SETS = (("any",), LABELS, SUBTYPES)


def draw(seed: int, slices: int = 90, labels: int = 6, levels: int | None = None) -> tuple[FloatArray, FloatArray]:
    """Labels and probabilities that know something of them; with `levels`, so few distinct ones that most are tied."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((slices, labels)) < rng.uniform(0.1, 0.6)).astype(np.float32)
    probabilities = rng.random((slices, labels)) * 0.7 + 0.3 * truth * rng.random((slices, labels))
    if levels is not None:
        probabilities = np.round(probabilities * levels) / levels
    return truth, probabilities.astype(np.float32)


def patients_of(slices: int, patients: int = 13) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """Unequal numbers of slices of patients, mixed; some have fewer than three."""
    rng = np.random.default_rng(slices)
    return np.array([f"p{int(patients * rng.random() ** 2)}" for _ in range(slices)], np.object_)


def sensitivity(truth: FloatArray, predicted: FloatArray, specificity: float) -> float:
    alarms, found, _ = roc_curve(truth, predicted, drop_intermediate=False)
    return float(found[1 - alarms >= specificity - 1e-9].max())


def random_cases() -> Iterator[tuple[tuple[str, ...], FloatArray, FloatArray]]:
    for seed in range(30):
        labels = LABEL_SETS[seed % 3]
        yield labels, *draw(seed, labels=len(labels), slices=50 + seed, levels=(None, 1, 4, 30)[seed % 4])


def expect(scores: Scores, name: str, truth: FloatArray, predicted: FloatArray) -> None:
    """Compare the scores by rank, called as the pattern `name` says, with scikit-learn's."""
    assert scores[name.format("auroc")] == pytest.approx(roc_auc_score(truth, predicted))
    assert scores[name.format("average_precision")] == pytest.approx(average_precision_score(truth, predicted))
    assert scores[name.format("sensitivity_at_90")] == pytest.approx(sensitivity(truth, predicted, 0.9))
    assert scores[name.format("sensitivity_at_95")] == pytest.approx(sensitivity(truth, predicted, 0.95))


def test_scores_of_slices_are_those_of_scikit_learn() -> None:
    for labels, truth, probabilities in random_cases():
        scores = score(truth, probabilities, labels, patients_of(len(truth)))
        for column, label in enumerate(labels):
            assert truth[:, column].any(), "this test needs both classes"
            expect(scores, f"{{}}_{label}", truth[:, column], probabilities[:, column])
        assert scores["auroc_mean"] == pytest.approx(roc_auc_score(truth, probabilities))
        assert scores["average_precision_mean"] == pytest.approx(average_precision_score(truth, probabilities))


def test_scores_of_patients_are_those_of_scikit_learn_on_the_mean_of_three_slices() -> None:
    compared = 0
    for labels, truth, probabilities in random_cases():
        patients = patients_of(len(truth), patients=25)
        scores = score(truth, probabilities, labels, patients)
        rows = [np.flatnonzero(patients == name) for name in dict.fromkeys(patients)]
        assert min(map(len, rows)) < 3 < max(map(len, rows))
        for column, label in enumerate(labels):
            positive = np.array([truth[of, column].max() for of in rows])
            tops = np.array([np.sort(probabilities[of, column])[-3:].astype(np.float64).mean() for of in rows])
            if positive.all() or not positive.any():
                assert scores[f"patient_auroc_{label}"] is None
            else:
                expect(scores, f"patient_{{}}_{label}", positive, tops)
                compared += 1
    assert compared > 60


def test_patients_stand_in_the_order_of_their_first_slices() -> None:
    patients = np.array(["b", "a", "b", "b", "a", "b", "c"], np.object_)
    probabilities = np.array([0.1, 0.9, 0.2, 0.3, 0.1, 0.7, 0.0])[:, None]
    truth, scores = patient_level(np.array([0, 0, 1, 0, 0, 1, 0])[:, None] == 1, probabilities, patients)
    assert truth[:, 0].tolist() == [True, False, False]
    assert scores[:, 0].tolist() == pytest.approx([(0.7 + 0.3 + 0.2) / 3, 0.5, 0.0])


def test_the_order_of_slices_changes_nothing() -> None:
    truth, probabilities = draw(1, slices=200, levels=12)
    patients, order = patients_of(200), np.random.default_rng(0).permutation(200)
    mixed = score(truth[order], probabilities[order], LABELS, patients[order])
    for name, value in score(truth, probabilities, LABELS, patients).items():
        assert mixed[name] == (None if value is None else pytest.approx(value, rel=1e-12)), name


def test_the_log_loss_is_that_of_scikit_learn_with_any_counted_twice() -> None:
    truth, probabilities = draw(3)
    columns = [log_loss(truth[:, i], probabilities[:, i].astype(float), labels=[0, 1]) for i in range(6)]
    patients = patients_of(90)
    expected = (sum(columns[:5]) + 2 * columns[5]) / 7
    assert score(truth, probabilities, LABELS, patients)["log_loss"] == pytest.approx(expected, rel=1e-6)
    without = score(truth[:, :5], probabilities[:, :5], SUBTYPES, patients)["log_loss"]
    assert without == pytest.approx(sum(columns[:5]) / 5, rel=1e-6)
    alone = score(truth[:, 5:], probabilities[:, 5:], ("any",), patients)["log_loss"]
    assert alone == pytest.approx(columns[5], rel=1e-6)
    assert dict(zip(LABELS, LOSS_WEIGHTS, strict=True))["any"] == 2


def test_certain_and_wrong_is_finite() -> None:
    worst = slice_losses(np.ones((2, 6)), np.zeros((2, 6)), LABELS)
    assert worst == pytest.approx([-np.log(1e-7)] * 2)
    assert slice_losses(np.ones((2, 6)), np.ones((2, 6)), LABELS) == pytest.approx([0, 0], abs=1e-6)


def test_accuracy_multi_is_the_share_of_right_bits() -> None:
    truth = np.zeros((4, 6))
    truth[0, 5] = truth[1, 2] = 1
    probabilities = np.full((4, 6), 0.5)  # 0.5 says no
    probabilities[0, 5] = 0.51  # right
    probabilities[2, 0] = 0.9  # wrong; and [1, 2] is missed
    assert score(truth, probabilities, LABELS, patients_of(4))["accuracy_multi"] == pytest.approx(22 / 24)


def test_sensitivity_is_read_at_a_vertex_whose_specificity_suffices_exactly() -> None:
    truth = np.array([0] * 30 + [1] * 4, np.float32)[:, None]
    negatives = np.concatenate([np.linspace(0, 0.4, 27), [0.6, 0.8, 0.85]])
    probabilities = np.concatenate([negatives, [0.9, 0.7, 0.5, 0.1]])[:, None]
    scores = score(truth, probabilities, ("any",), patients_of(34))
    assert scores["sensitivity_at_90_any"] == 3 / 4  # 3 false alarms of 30 are just allowed: down to 0.5
    assert scores["sensitivity_at_95_any"] == 1 / 4  # 1 of 30, 0.85; the next vertex has 2 of 30
    flat = score(truth, np.full((34, 1), 0.3), ("any",), patients_of(34))
    assert (flat["sensitivity_at_90_any"], flat["auroc_any"]) == (0, 0.5)


def test_the_calibration_error_is_that_of_scikit_learns_quantile_bins() -> None:
    for seed in range(10):
        truth, probabilities = draw(seed, slices=450)
        scores = score(truth, probabilities, LABELS, patients_of(450))
        for column, label in enumerate(LABELS):
            share, mean = calibration_curve(truth[:, column], probabilities[:, column], n_bins=15, strategy="quantile")
            assert len(share) == 15
            assert scores[f"calibration_error_{label}"] == pytest.approx(np.abs(share - mean).mean(), rel=1e-5)


def test_equal_probabilities_are_calibrated_together() -> None:
    truth = np.array([1, 0, 0, 0, 1, 1, 1, 0], np.float32)[:, None]
    probabilities = np.array([0.2] * 4 + [0.9] * 4)[:, None]
    error = score(truth, probabilities, ("any",), patients_of(8))["calibration_error_any"]
    assert error == pytest.approx((abs(0.25 - 0.2) + abs(0.75 - 0.9)) / 2)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_one_class_has_no_score(value: int) -> None:
    truth, probabilities = draw(3)
    truth[:, LABELS.index("epidural")] = value
    scores = score(truth, probabilities, LABELS, patients_of(90))
    undefined = [name for name, number in scores.items() if number is None and not name.startswith("patient_")]
    assert undefined == [name for name in scores if name.endswith("epidural") and not name.startswith("patient_")]
    assert scores["patient_auroc_epidural"] is None
    assert scores["auroc_mean"] == pytest.approx(np.mean([scores[f"auroc_{x}"] for x in LABELS if x != "epidural"]))
    nothing = score(truth[:, :1], probabilities[:, :1], ("epidural",), patients_of(90))
    assert [name for name, number in nothing.items() if number is not None] == ["log_loss", "accuracy_multi"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01])
def test_what_is_no_probability_is_refused(value: float) -> None:
    truth, probabilities = draw(3)
    probabilities[7, 2] = value
    with pytest.raises(DataError, match=r"must lie in \[0, 1\], but 1 of 540 do not"):
        score(truth, probabilities, LABELS, patients_of(90))


def test_unlabelled_slices_and_an_empty_fold_are_refused() -> None:
    truth, probabilities = draw(3)
    truth[4] = np.nan
    with pytest.raises(DataError, match="must be 0 or 1, but 6 of 540 are not"):
        score(truth, probabilities, LABELS, patients_of(90))
    with pytest.raises(DataError, match="needs slices"):
        score(truth[:0], probabilities[:0], LABELS, patients_of(90)[:0])


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_every_metric_that_is_defined_has_a_score(labels: tuple[str, ...]) -> None:
    truth, probabilities = draw(5, labels=len(labels), slices=300)
    patients = np.array([f"p{number // 3}" for number in range(300)], np.object_)
    scores = score(truth, probabilities, labels, patients)
    for metric in get_args(Metric):
        assert is_defined(metric, labels) == (scores.get(metric) is not None), metric
    assert is_defined("auroc_any", labels) == (labels is not SUBTYPES)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_better_knows_the_direction(metric: Metric) -> None:
    good, bad = (0.1, 0.2) if metric == "log_loss" else (0.9, 0.8)
    assert (metric in LOWER_IS_BETTER) == (metric == "log_loss")
    assert better(metric, good, bad)
    assert not better(metric, bad, good)
    assert not better(metric, good, good)
    assert better(metric, bad, None)


@pytest.mark.parametrize("metric", ["auroc_any", "log_loss"])
def test_zero_is_a_score_like_others(metric: Metric) -> None:
    assert better(metric, 0.5, 0.0) is (metric == "auroc_any")

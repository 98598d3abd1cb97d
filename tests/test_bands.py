"""Curves with bands: those of scikit-learn, and of resamples that were drawn one by one."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ichsearch.report import bootstrap
from ichsearch.report.bands import CALIBRATION_BINS, LabelCurves, precision_recall, roc


def curves(patients: int = 40, slices: int = 6, seed: int = 0) -> LabelCurves:
    rng = np.random.default_rng(seed)
    positive = rng.random(patients * slices) < 0.3
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, len(positive)) + 1.5 * positive - 1)))
    return LabelCurves(positive, scores, np.repeat(np.arange(patients), slices))


def test_the_roc_is_that_of_scikit_learn() -> None:
    data = curves()
    band = data.band(roc)
    fpr, tpr, _ = roc_curve(data.positive, data.scores, drop_intermediate=False)
    np.testing.assert_allclose(band.value, np.interp(band.x, fpr, tpr), atol=1e-12)
    assert np.trapezoid(band.value, band.x) == pytest.approx(roc_auc_score(data.positive, data.scores), abs=0.01)
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()


def test_precision_over_recall_is_that_of_scikit_learn() -> None:
    data = curves()
    band = data.band(precision_recall)
    precision, recall, _ = precision_recall_curve(data.positive, data.scores)
    reached = [recall[recall >= at].min() for at in band.x[1:]]
    expected = [precision[recall == found].max() for found in reached]  # of its thresholds the first, the highest
    np.testing.assert_allclose(band.value[1:], expected, atol=1e-12)
    average = average_precision_score(data.positive, data.scores)
    assert float(band.value.mean()) == pytest.approx(average, abs=0.02)


def test_the_band_is_that_of_resamples_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    data = curves(patients=15)
    rows_of = [np.flatnonzero(data.of_patient == number) for number in range(15)]
    drawn = np.random.default_rng(0).multinomial(15, np.full(15, 1 / 15), size=200)
    band, lines = data.band(roc), []
    for counts in drawn:
        rows = np.concatenate([np.tile(own, count) for own, count in zip(rows_of, counts, strict=True)])
        fpr, tpr, _ = roc_curve(data.positive[rows], data.scores[rows], drop_intermediate=False)
        lines.append(np.interp(band.x, fpr, tpr))
    low, high = np.percentile(lines, bootstrap._ends_percent(15), axis=0)
    np.testing.assert_allclose(band.low, low, atol=1e-9)
    np.testing.assert_allclose(band.high, high, atol=1e-9)


def test_scores_in_bins_hardly_move_the_curve() -> None:
    data = curves(patients=600, slices=10)
    band = data.band(roc)
    fpr, tpr, _ = roc_curve(data.positive, data.scores)
    assert np.abs(band.value - np.interp(band.x, fpr, tpr)).max() < 0.02


def test_fewer_patients_give_a_wider_band() -> None:
    wide, narrow = curves(patients=15).band(roc), curves(patients=150).band(roc)
    assert (wide.high - wide.low).mean() > 1.5 * (narrow.high - narrow.low).mean()


def test_calibration_counts_every_slice_once() -> None:
    data = curves()
    result = data.calibration()
    assert len(result.slices) == CALIBRATION_BINS
    assert result.slices.sum() == len(data.positive)
    assert (result.observed * result.slices).sum() == pytest.approx(data.positive.sum())
    assert (result.predicted * result.slices).sum() == pytest.approx(data.scores.sum())
    assert (result.low <= result.observed).all()
    assert (result.observed <= result.high).all()


def test_equal_probabilities_share_a_bin() -> None:
    constant = LabelCurves(np.array([True, False] * 10), np.full(20, 0.3), np.arange(20))
    result = constant.calibration()
    assert result.slices.tolist() == [20]
    assert result.observed.tolist() == [0.5]


def test_one_class_is_undefined() -> None:
    data = curves()
    assert data.defined
    assert not LabelCurves(np.zeros(len(data.scores), bool), data.scores, data.of_patient).defined


def test_the_same_slices_give_the_same_band() -> None:
    assert all((one == other).all() for one, other in zip(curves().band(roc), curves().band(roc), strict=True))

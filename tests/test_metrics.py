"""Metrics against scikit-learn's and small sums done by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from ichsearch.labels import LABELS, LOSS_WEIGHTS
from ichsearch.train.metrics import FloatArray, Metric, better, score, weighted_log_loss
from ichsearch.train.setup import weighted_loss


@pytest.fixture
def drawn() -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(3)
    labels = (rng.random((50, 6)) < 0.3).astype(np.float32)
    probabilities = np.clip(rng.random((50, 6)) * 0.7 + 0.3 * labels * rng.random((50, 6)), 0, 1).astype(np.float32)
    return labels, probabilities


def test_the_log_loss_is_that_of_scikit_learn_with_any_counted_twice(drawn: tuple[FloatArray, FloatArray]) -> None:
    labels, probabilities = drawn
    columns = [log_loss(labels[:, i], probabilities[:, i].astype(float), labels=[0, 1]) for i in range(6)]
    expected = (sum(columns[:5]) + 2 * columns[5]) / 7
    assert weighted_log_loss(labels, probabilities) == pytest.approx(expected, rel=1e-6)
    assert score(labels, probabilities)["log_loss"] == pytest.approx(expected, rel=1e-6)
    assert dict(zip(LABELS, LOSS_WEIGHTS, strict=True))["any"] == 2


def test_the_log_loss_is_the_loss_that_is_trained(drawn: tuple[FloatArray, FloatArray]) -> None:
    labels = drawn[0]
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = float(weighted_loss(logits, torch.from_numpy(labels)))
    assert weighted_log_loss(labels, logits.sigmoid().numpy()) == pytest.approx(trained, rel=1e-5)


def test_certain_and_wrong_is_finite() -> None:
    worst = weighted_log_loss(np.ones((2, 6)), np.zeros((2, 6)))
    assert worst == pytest.approx(-np.log(1e-7))
    assert weighted_log_loss(np.ones((2, 6)), np.ones((2, 6))) == pytest.approx(0, abs=1e-6)


def test_accuracy_multi_is_the_share_of_right_bits() -> None:
    labels = np.zeros((4, 6))
    labels[0, 5] = labels[1, 2] = 1
    probabilities = np.full((4, 6), 0.5)  # 0.5 says no
    probabilities[0, 5] = 0.51  # right
    probabilities[2, 0] = 0.9  # wrong; and [1, 2] is missed
    assert score(labels, probabilities)["accuracy_multi"] == pytest.approx(22 / 24)


def test_auroc_and_average_precision_are_those_of_each_column(drawn: tuple[FloatArray, FloatArray]) -> None:
    scores = score(*drawn)
    for column, label in enumerate(LABELS):
        truth, predicted = drawn[0][:, column], drawn[1][:, column]
        assert scores[f"auroc_{label}"] == pytest.approx(roc_auc_score(truth, predicted))
        assert scores[f"average_precision_{label}"] == pytest.approx(average_precision_score(truth, predicted))


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_one_class_has_no_score(drawn: tuple[FloatArray, FloatArray], value: int) -> None:
    labels, probabilities = drawn
    labels[:, LABELS.index("epidural")] = value
    scores = score(labels, probabilities)
    assert scores["auroc_epidural"] is None
    assert scores["average_precision_epidural"] is None
    assert sum(number is None for number in scores.values()) == 2


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("auroc_any", 0.9, 0.8),
        ("average_precision_any", 0.9, 0.8),
        ("accuracy_multi", 0.9, 0.8),
        ("log_loss", 0.1, 0.2),
    ],
)
def test_better_knows_the_direction(metric: Metric, good: float, bad: float) -> None:
    assert better(metric, good, bad)
    assert not better(metric, bad, good)
    assert not better(metric, good, good)
    assert better(metric, bad, None)


@pytest.mark.parametrize("metric", ["auroc_any", "log_loss"])
def test_zero_is_a_score_like_others(metric: Metric) -> None:
    assert better(metric, 0.5, 0.0) is (metric == "auroc_any")

"""Intervals over patients: each number is what resampling patients one by one with the trial's own metrics gives."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from judged_runs import draw_truth, predicted, scores_of
from sklearn.metrics import average_precision_score, roc_auc_score

from ichsearch.labels import ANY, LABELS
from ichsearch.report import bootstrap
from ichsearch.report.bootstrap import Interval, resample
from ichsearch.report.statistics import Predictions, as_predictions, intervals, resampled_scores
from ichsearch.report.weighted_scores import RANKED, ranked_scores
from ichsearch.train.metrics import BoolArray, FloatArray


def judged(patients: int = 30, skill: float = 1.0, seed: int = 0) -> pd.DataFrame:
    return predicted(draw_truth(patients, seed=seed), skill, seed)


def interval(frame: pd.DataFrame, name: str) -> Interval:
    found = resampled_scores(as_predictions(frame), name)[name].interval
    assert found is not None
    return found


def width(frame: pd.DataFrame, name: str = "auroc_any") -> float:
    found = interval(frame, name)
    return found.high - found.low


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> int:
    """So few that they can be gone through one by one."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    return 50


def with_repetition(frame: pd.DataFrame, counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pd.DataFrame:
    """A cohort in which each patient occurs so often; who occurs twice is two patients."""
    parts = []
    for (name, rows), count in zip(frame.groupby("patient"), counts, strict=True):
        parts += [rows.assign(patient=f"{name}-{copy}") for copy in range(count)]
    return pd.concat(parts, ignore_index=True)


def test_every_score_of_every_resample_is_that_of_a_cohort_drawn_with_repetition(few_resamples: int) -> None:
    frame = judged(patients=12)
    found = resampled_scores(as_predictions(frame))
    rng = np.random.default_rng(0)
    compared = 0
    for row, counts in enumerate(rng.multinomial(12, np.full(12, 1 / 12), size=few_resamples)):
        expected = scores_of(with_repetition(frame, counts))
        labels_of_one_class = any(expected[f"auroc_{label}"] is None for label in LABELS)
        for name in expected.keys() & found.keys():
            if name.endswith("_mean") and labels_of_one_class:  # of fewer labels there than here
                continue
            value = expected[name]
            assert found[name].draws[row] == pytest.approx(np.nan if value is None else value, rel=1e-9, nan_ok=True)
            compared += 1
    assert compared > 40 * few_resamples


def test_the_values_are_those_that_the_trial_says() -> None:
    frame = judged(40)
    expected, found = scores_of(frame), intervals(as_predictions(frame))
    names = {name for name in expected if not name.startswith("calibration_error")}
    assert names <= found.keys()
    for name in names:
        of_name = found[name]
        assert of_name is not None
        assert of_name.value == pytest.approx(expected[name], rel=1e-12)
        assert of_name.low <= of_name.value <= of_name.high


def test_log_loss_has_an_interval_for_each_label_and_level() -> None:
    frame = judged(40)
    found = intervals(as_predictions(frame))
    truth, probability = frame["label_subdural"], frame["probability_subdural"].astype(np.float64)
    losses = -np.log(np.where(truth == 1, probability, 1 - probability))
    of_label = found["log_loss_subdural"]
    assert of_label is not None
    assert of_label.value == pytest.approx(losses.mean())
    tops = frame.groupby("patient")["probability_any"].apply(lambda of: of.astype(np.float64).nlargest(3).mean())
    bleeds = frame.groupby("patient")["label_any"].max()
    of_patients = found["patient_log_loss_any"]
    assert of_patients is not None
    assert of_patients.value == pytest.approx(-np.log(np.where(bleeds == 1, tops, 1 - tops)).mean())


def weighted(truth: BoolArray, scores: FloatArray, patients: int, weights: FloatArray) -> dict[str, FloatArray]:
    of_patient = np.arange(len(truth)) % patients
    return dict(zip(RANKED, ranked_scores(truth, scores, of_patient)(weights), strict=True))


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize(
    ("name", "reference"), [("auroc", roc_auc_score), ("average_precision", average_precision_score)]
)
def test_weighted_scores_are_those_of_scikit_learn(levels: int, name: str, reference: Callable[..., float]) -> None:
    rng = np.random.default_rng(levels)
    truth = rng.random(90) < 0.4
    scores = rng.integers(levels, size=90) + truth.astype(np.float64)  # with 3 levels nearly all scores are tied
    weights = rng.integers(0, 4, (25, 30)).astype(np.float64)
    expected = [reference(truth, scores, sample_weight=row[np.arange(90) % 30]) for row in weights]
    np.testing.assert_allclose(weighted(truth, scores, 30, weights)[name], expected, rtol=1e-12)


def test_a_label_of_which_the_weights_show_one_class_has_no_score() -> None:
    weights = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], np.float64)
    truth, scores = np.array([True, True, False, False]), np.array([0.9, 0.1, 0.5, 0.2])
    for name, values in weighted(truth, scores, 4, weights).items():
        assert np.isnan(values[:2]).all(), name
        assert values[2] == 1, name


def test_no_positive_at_all_is_no_score_either() -> None:
    values = weighted(np.zeros(4, np.bool_), np.arange(4.0), 4, np.ones((3, 4)))
    assert all(np.isnan(of_name).all() for of_name in values.values())


def test_a_fold_without_a_positive_of_a_subtype_has_no_interval_of_it() -> None:
    frame = judged(30)
    frame["label_epidural"] = np.int8(0)
    found = intervals(as_predictions(frame))
    undefined = {name for name, of_name in found.items() if of_name is None}
    assert undefined == {f"{level}{name}_epidural" for level in ("", "patient_") for name in RANKED}
    others = [label for label in LABELS if label != "epidural"]
    mean = found["auroc_mean"]
    assert mean is not None
    assert mean.value == pytest.approx(np.mean([scores_of(frame)[f"auroc_{label}"] for label in others]))


def test_no_positive_of_any_label_leaves_no_mean() -> None:
    frame = judged(30)
    frame[[f"label_{label}" for label in LABELS]] = np.int8(0)
    found = intervals(as_predictions(frame))
    assert found["auroc_mean"] is None
    assert found["patient_average_precision_mean"] is None
    assert found["log_loss"] is not None


def test_resamples_that_do_not_define_a_score_are_left_out_and_counted() -> None:
    frame = judged(5)
    frame["label_any"] = (frame["patient"] == "p00000").astype(np.int8)  # a resample without this patient has one class
    found = interval(frame, "auroc_any")
    assert found.resamples == pytest.approx(2000 * (1 - 0.8**5), rel=0.1)
    assert np.isfinite(found).all()
    assert interval(frame, "log_loss").resamples == 2000


def test_intervals_are_the_same_each_time_and_whatever_the_order_of_slices() -> None:
    frame = judged(15)
    assert intervals(as_predictions(frame)) == intervals(as_predictions(frame.copy()))
    shuffled = frame.sample(frac=1, random_state=0, ignore_index=True)
    assert interval(shuffled, "auroc_any") == pytest.approx(interval(frame, "auroc_any"))
    assert interval(shuffled, "patient_auroc_any") == pytest.approx(interval(frame, "patient_auroc_any"))


def test_fewer_patients_give_a_wider_interval() -> None:
    assert width(judged(15)) > width(judged(60)) > width(judged(240))


def test_more_slices_of_the_same_patients_make_it_no_surer() -> None:
    frame = judged(12)
    tenfold = pd.concat([frame] * 10, ignore_index=True)
    assert width(tenfold) == pytest.approx(width(frame))
    assert width(tenfold, "log_loss") == pytest.approx(width(frame, "log_loss"))


def paired(frame: pd.DataFrame, other: pd.DataFrame) -> Interval:
    first, second = (resampled_scores(as_predictions(each), "auroc_any")["auroc_any"] for each in (frame, other))
    found = first.minus(second).interval
    assert found is not None
    return found


def test_nothing_differs_from_itself() -> None:
    assert paired(judged(10), judged(10))[:3] == (0, 0, 0)


def test_a_difference_of_like_models_is_surer_than_that_of_unlike_ones() -> None:
    truth = draw_truth(60)
    alike, unlike = (paired(predicted(truth, 1.0, 1, share), predicted(truth, 0.8, 2, share)) for share in (0.95, 0.0))
    assert alike.high - alike.low < (unlike.high - unlike.low) / 2


def test_a_single_score_can_be_asked_for() -> None:
    predictions: Predictions = as_predictions(judged(20))
    everything = intervals(predictions)
    for name in ("log_loss", "patient_auroc_any", "auroc_mean", "patient_average_precision_mean"):
        assert {name: resampled_scores(predictions, name)[name].interval} == {name: everything[name]}


def test_one_label_is_enough() -> None:
    frame = predicted(draw_truth(20, labels=[ANY]), 1.0)
    found = intervals(as_predictions(frame))
    assert found["auroc_mean"] == found["auroc_any"]
    assert "auroc_subdural" not in found


def test_draws_depend_on_the_seed() -> None:
    statistic = ranked_scores(np.arange(40) % 3 == 0, np.arange(40.0) % 7, np.arange(40))
    first, again, other = (resample(statistic, 40, seed)[0] for seed in (0, 0, 1))
    assert first.interval == again.interval != other.interval

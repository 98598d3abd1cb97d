"""Whether scores differ: against tests that are known, and on trials that are equal."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ichsearch.report import bootstrap
from ichsearch.report.bootstrap import Resampled, resample
from ichsearch.report.comparisons import SIGNIFICANT, holm, is_above_zero, pairwise_p
from ichsearch.report.weighted_scores import ranked_scores, weighted_means
from ichsearch.train.metrics import FloatArray


def means(values: FloatArray) -> Resampled:
    """The mean of one value a patient: a score whose tests are in every textbook."""
    return resample(weighted_means(values[:, None], np.arange(len(values))), len(values))[0]


def test_p_is_that_of_the_paired_t_test_where_there_is_one() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(size=80)
    others = [first + rng.normal(shift, 1, 80) for shift in (0.1, 0.25, 0.5)]
    p = pairwise_p([means(values) for values in (first, *others)], 80)
    for column, other in enumerate(others, 1):
        expected = ttest_rel(first, other).pvalue
        assert np.log(p[0, column]) == pytest.approx(np.log(expected), rel=0.1)
    np.testing.assert_allclose(p, p.T)
    assert (np.diag(p) == 1).all()


def test_holm_corrects_for_every_pair() -> None:
    """By hand: p in rising order times 3, 2, 1, never falling."""
    p = np.array([[1, 0.01, 0.04], [0.01, 1, 0.03], [0.04, 0.03, 1]])
    corrected = holm(p)
    np.testing.assert_allclose(corrected[np.triu_indices(3, 1)], [0.03, 0.06, 0.06])
    np.testing.assert_array_equal(corrected, corrected.T)
    assert holm(np.ones((1, 1))).tolist() == [[1]]


def test_what_is_certain_has_no_standard_error() -> None:
    always, never = (Resampled(value, np.full(50, value), 20) for value in (1.0, 0.5))
    assert pairwise_p([always, never, always], 20)[0].tolist() == [1, 0, 1]
    assert is_above_zero(always.minus(never), 20)
    assert not is_above_zero(always.minus(always), 20)
    assert not is_above_zero(never.minus(always), 20)


def test_a_gain_is_shown_one_sided() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=60)
    for shift in (0.1, 0.2, 0.25, 0.4):
        values = noise - noise.mean() + shift
        expected = ttest_rel(values, np.zeros(60), alternative="greater").pvalue < SIGNIFICANT
        assert is_above_zero(means(values), 60) == expected
    assert not is_above_zero(means(noise - noise.mean() - 0.4), 60)


def equal_trials(rng: np.random.Generator, *, trials: int, patients: int, slices: int = 6) -> list[Resampled]:
    """AUROCs of models of the same worth that err alike on the same slices, as models do."""
    of_patient = np.repeat(np.arange(patients), slices)
    truth = (rng.random(len(of_patient)) < 0.5) & (rng.random(patients) < 0.5)[of_patient]

    def noise() -> FloatArray:
        return 0.8 * rng.normal(size=len(of_patient)) + 0.5 * rng.normal(size=patients)[of_patient]

    shared = 1.2 * truth + 0.8 * noise()
    return [resample(ranked_scores(truth, shared + 0.6 * noise(), of_patient), patients)[0] for _ in range(trials)]


def test_the_luckiest_of_equal_trials_is_rarely_called_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    alone = of_all = 0
    for _ in range(60):
        scores = equal_trials(rng, trials=15, patients=40)
        best = int(np.argmax([score.value for score in scores]))
        p = pairwise_p(scores, 40)
        of_all += bool((holm(p)[best] < SIGNIFICANT).any())
        alone += bool((np.delete(p[best], best).min() * 14) < SIGNIFICANT)
    assert of_all <= 8  # of 60: more has a probability of 0.4 % if it is one in twenty
    assert alone > of_all, "what correcting for the comparisons with the best alone would come to"


def test_the_luckiest_of_many_does_not_beat_a_rule_that_is_worth_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    rng = np.random.default_rng(1)
    alone = of_all = 0
    for _ in range(60):
        rule, *trials = equal_trials(rng, trials=21, patients=40)
        best = max(trials, key=lambda score: score.value)
        alone += is_above_zero(best.minus(rule), 40)
        of_all += is_above_zero(best.minus(rule), 40, len(trials))
    assert of_all <= 8
    assert alone > of_all


def test_what_one_patient_or_no_resample_defines_differs_from_nothing() -> None:
    first, second = (Resampled(value, np.full(50, value), 1) for value in (0.9, 0.4))
    assert (pairwise_p([first, second], 1) == 1).all()
    assert not is_above_zero(first.minus(second), 1)
    undefined = Resampled(0.9, np.full(50, np.nan), 20)
    assert (pairwise_p([undefined, Resampled(0.4, np.full(50, 0.4), 20)], 20) == 1).all()
    assert not is_above_zero(undefined, 20)

"""What one way to predict gains over another on the same patients.

In: predictions of the same slices, a metric. Out: a difference with its interval.
"""

from ichsearch.deploy.ensemble_record import Gain
from ichsearch.report.statistics import Predictions, resampled_scores
from ichsearch.train.metrics import LOWER_IS_BETTER


def gain_over(new: Predictions, old: Predictions, metric: str) -> Gain | None:
    """How much better `new` is than `old`, paired over patients; None where the patients do not define the metric."""
    better, worse = (resampled_scores(predictions, metric)[metric] for predictions in (new, old))
    difference = worse.minus(better) if metric in LOWER_IS_BETTER else better.minus(worse)
    interval = difference.interval
    return interval and Gain(value=interval.value, low=interval.low, high=interval.high)


def gain_text(gain: Gain) -> str:
    """The gain as a person reads it."""
    return f"{gain.value:+.4f} (95 % {gain.low:+.4f} to {gain.high:+.4f})"

"""A run's figures as Ray's metrics: what Prometheus and Grafana show of it.

In: where the run stands. Out: gauges `ray_ichsearch_…` with the run's name as tag `run`.
"""

from typing import Final

from ray.util.metrics import Gauge

from ichsearch.search.book import Standing

GAUGES: Final = {
    "best_score": "Score of the best trial",
    "running": "Trials that run",
    "finished": "Trials that have finished",
    "failed": "Trials that have failed",
    "images_per_s": "Slices that all running trials together train on in a second, by their last epochs",
}


class Gauges:
    """The gauges of one run; where no metrics are exported they go nowhere."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            name: Gauge(f"ichsearch_{name}", description, tag_keys=("run",)) for name, description in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def show(self, standing: Standing, images_per_s: float) -> None:
        """Set all gauges; there is no best score before a trial has finished."""
        figures = {
            "best_score": standing.best and standing.best[1],
            "running": standing.running,
            "finished": standing.finished,
            "failed": standing.failed,
            "images_per_s": images_per_s,
        }
        for name, value in figures.items():
            self._gauges[name].set(value)

"""What trials cost, and what of a run's budget is left for more.

In: a space's budget, what trials took. Out: estimates, and whether something still fits.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from ichsearch.search.drawing import Configuration
from ichsearch.train.config import TrialConfig

Step = tuple[int, int]
"""Epochs before a trial, and when it has ended."""


class Costs:
    """Seconds an epoch, from the trials most like the one asked for."""

    def __init__(self, images_per_s: Callable[[TrialConfig], float | None], train_slices: int) -> None:
        self._images_per_s, self._train_slices = images_per_s, train_slices
        self._seen: dict[Hashable, list[float]] = defaultdict(list)

    def learn(self, config: TrialConfig, seconds: float, epochs: int) -> None:
        """Know what a trial took."""
        for key in _keys(config):
            self._seen[key].append(seconds / epochs)

    def seconds(self, config: TrialConfig, steps: Sequence[Step]) -> float | None:
        """What trials would take, in seconds; None if nothing is known of any like them.

        The LR finder's speed stands in for a backbone that no trial has had yet.
        """
        epochs = sum(after - before for before, after in steps)
        own, backbone, any_at_all = _keys(config)
        for key in (own, backbone):
            if key in self._seen:
                return epochs * median(self._seen[key])
        if images_per_s := self._images_per_s(config):
            return epochs * self._train_slices / images_per_s
        return epochs * median(self._seen[any_at_all]) if any_at_all in self._seen else None


def _keys(config: TrialConfig) -> tuple[Hashable, Hashable, Hashable]:
    """The trials that cost as much, those that cost about as much, and all."""
    return (config.backbone, config.batch_size, config.size, config.channels, config.head), config.backbone, None


@dataclass(frozen=True)
class Budget:
    """What a run may take; of time, None is no limit.

    Attributes:
        devices_of: how many devices a trial takes while it runs; a share of one, if others run beside it.
    """

    trials: int
    time_s: float | None
    device_s: float | None
    devices_of: Callable[[TrialConfig], float]


@dataclass
class Left:
    """What is left of a budget at one moment.

    Attributes:
        trials: how many may still start.
        time_s: wall clock, in seconds.
        device_s: device time, in seconds, less what running trials will take.
        seconds: what trials of a configuration would take; None if nothing is known.
        devices: how many devices they would take.
        lacking: what the last trials that did not fit would have needed more of.
    """

    trials: int
    time_s: float
    device_s: float
    seconds: Callable[[Configuration, Sequence[Step]], float | None]
    devices: Callable[[Configuration], float]
    lacking: Literal["time", "device_hours"] = field(default="time", init=False)

    def has(self, configuration: Configuration, steps: Sequence[Step]) -> bool:
        """Whether trials of these epochs fit into the time that is left; one of unknown cost is tried."""
        cost_s = self.seconds(configuration, steps) or 0.0
        if not 0 < self.time_s >= cost_s:
            self.lacking = "time"
            return False
        if not 0 < self.device_s >= cost_s * self.devices(configuration):
            self.lacking = "device_hours"
            return False
        return True

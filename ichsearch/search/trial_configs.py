"""Between what a space draws and what a trial trains: factors become learning rates, and back.

In: drawn parameters. Out: `TrialConfig`s; from those of an earlier start, what this space would have drawn.
"""

from collections.abc import Callable, Collection
from typing import Any

from ichsearch.search.drawing import Configuration, Drawn, has_values, replayed
from ichsearch.search.parameters import SEARCHED, default_of
from ichsearch.search.run_folder import TrialRecord
from ichsearch.search.space import Space
from ichsearch.train.config import InputConfig, TrialConfig


class TrialConfigs:
    """The configurations of a space's trials.

    Args:
        space: what draws them.
        suggest_lr: the LR finder's rate, of the space's inputs alone.
        backbones: those that have start weights.
    """

    def __init__(self, space: Space, suggest_lr: Callable[[InputConfig], float], backbones: Collection[str]) -> None:
        self._space, self._suggest_lr, self._backbones = space, suggest_lr, backbones
        self._inputs = set(space.input_configs())
        whole = space.strategy == "promote" and space.schedule == "whole"
        self.cycle_epochs = space.epochs if whole else None
        """Of the one cycle that all trials of a chain share; None where each has its own."""

    def config(self, drawn: Drawn, epochs: int) -> TrialConfig:
        """The configuration of a trial that was drawn, with its learning rate instead of a factor."""
        space, lr = self._space, float(drawn["lr"])
        if space.lr_is_factor(drawn):
            lr *= self._suggest_lr(space.input_config(drawn))
        run = {"task": space.task, "seed": space.seed, "metric": space.metric, "cycle_epochs": self.cycle_epochs}
        return TrialConfig.model_validate({**drawn, **run, "lr": lr, "epochs": epochs})

    def named(self, drawn: Drawn) -> dict[str, Any]:
        """What was drawn, a factor of the learning rate under its own name."""
        name = "lr_factor" if self._space.lr_is_factor(drawn) else "lr"
        return {key: value for key, value in drawn.items() if key != "lr"} | {name: drawn["lr"]}

    def replayed(self, config: TrialConfig, record: TrialRecord) -> Configuration | None:
        """The configuration of an earlier trial as this space would have drawn it; None if it could not."""
        if config.cycle_epochs != self.cycle_epochs or config.backbone not in self._backbones:
            return None
        values = {name: getattr(config, name) for name in SEARCHED}
        if self._space.lr_is_factor(values):
            seen = self._space.input_config(values)
            if seen not in self._inputs:
                return None
            values["lr"] = self._factor(config, record, self._suggest_lr(seen))
        made = replayed(self._space.draw, values)
        if made is None or self._space.allows(made.drawn):
            return None
        undrawn = {name: default_of(name) for name in SEARCHED if name not in made.drawn}
        return made if has_values(values, undrawn) else None

    def _factor(self, config: TrialConfig, record: TrialRecord, suggested: float) -> float:
        """As it was drawn, to the last bit, if the LR finder still says the same."""
        same = record.lr_suggestion is not None and record.lr_suggestion == rounded(suggested)
        return float(record.parameters["lr_factor"]) if same else config.lr / suggested


def rounded(rate: float) -> float:
    """A rate to nine significant digits: as it is written, and compared."""
    return float(f"{rate:.9g}")

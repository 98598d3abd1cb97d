"""What Ray Tune calls beside the searcher: at each of its steps, when a trial starts, when one has failed.

In: Ray Tune's events. Out: names for Ray's dashboard, errors for the searcher, a beat for what is done now and then.
"""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from ichsearch.search.resources import node_of


class FirstCome(FIFOScheduler):
    """Ray Tune's simplest scheduler; it keeps a trial's error before the searcher is told that there was one.

    Ray Tune starts pending trials by itself: to point at the first of them, as its own scheduler does, would mean a
    look at every trial of the run at each event.
    """

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._errors = errors

    def choose_trial_to_run(self, tune_controller: Any) -> None:  # noqa: ARG002 - as Ray Tune calls it
        """None: see the class."""
        return

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:  # noqa: ARG002
        """Forget the course of its metrics, which Ray Tune would keep of every trial, and nobody reads."""
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002 - as Ray Tune calls it
        """Keep what the last attempt died of."""
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._errors[trial.trial_id] = text.rpartition("Failure #")[2]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: nobody restores it."""
        return {}


class Beat(Callback):
    """Names trials for the dashboard, tells where they run, and calls `beat` at each of Ray Tune's steps.

    These come ten times a second or more.
    """

    def __init__(self, beat: Callable[[], None], on_place: Callable[[str, str | None], None]) -> None:
        self._beat, self._on_place = beat, on_place

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Whatever `beat` raises ends the run as it is."""
        self._beat()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:  # noqa: ARG002
        """Tell the trial's node; let the dashboard's tasks and the process list show the trial, not its worker.

        A worker goes from trial to trial: Ray asks for an actor's name and `repr` once, but each task has its own name.
        """
        actor = trial.temporary_state.ray_actor
        vars(actor)["train"] = _Named(actor, trial.config["label"])
        self._on_place(trial.trial_id, node_of(actor))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: nobody restores it."""
        return {}


class _Named:
    """An actor's method `train` under another name; a weak reference, since an actor ends with its last handle."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor: Callable[[], Any] = weakref.ref(actor)
        self._name = name

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        actor = self._actor()
        return type(actor).__getattr__(actor, "train").options(name=self._name).remote(*args, **kwargs)

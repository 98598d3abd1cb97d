"""What the report knows of a run: its files, read once.

In: a run folder, and its shards if they are at hand. Out: a `RunData`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.data.stream import SliceStream
from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.files import read_json
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.report.leaderboard import BASELINE, read_leaderboard
from ichsearch.report.statistics import Predictions, read_predictions
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.search.space import Space
from ichsearch.search.space_file import load_space
from ichsearch.shards.manifest import Manifest, read_manifest
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import METRICS, PREDICTIONS
from ichsearch.train.lr_finder import LrCurve
from ichsearch.train.metrics import LOWER_IS_BETTER
from ichsearch.train.trial import TrialResult, read_result


@dataclass(frozen=True)
class Finished:
    """A trial that has a score."""

    record: TrialRecord
    result: TrialResult

    @property
    def name(self) -> str:
        """Its id."""
        return self.record.trial

    @property
    def backbone(self) -> str:
        """What it trained."""
        return str(self.record.config["backbone"])

    @property
    def text(self) -> str:
        """What stands beside its mark in a chart."""
        epochs = f"{self.record.epochs} epoch{'s' * (self.record.epochs != 1)}"
        return f"trial {self.name} · {self.backbone} · {epochs} · {self.result.score:.3f}"


@dataclass(frozen=True)
class RunData:
    """A run's files; `shards` is None where its slices are not at hand."""

    folder: RunFolder
    shards: Path | None

    @cached_property
    def space(self) -> Space:
        """The space as resolved."""
        return load_space(self.folder.space)

    @property
    def metric(self) -> str:
        """What trials are ranked by."""
        return self.space.metric

    @property
    def lower_is_better(self) -> bool:
        """Whether the best score is the lowest."""
        return self.metric in LOWER_IS_BETTER

    @cached_property
    def records(self) -> list[TrialRecord]:
        """All trials, in the order in which they started."""
        return self.folder.records()

    @cached_property
    def finished(self) -> dict[str, Finished]:
        """The trials that have a score, in the order in which they started."""
        found = ((record, read_result(self.folder.trial(record.trial))) for record in self.records)
        return {record.trial: Finished(record, result) for record, result in found if result is not None}

    @cached_property
    def failed(self) -> list[TrialRecord]:
        """The trials without a score that have ended, and those that were running when the run was left."""
        return [record for record in self.records if record.trial not in self.finished]

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """All trials, the best first."""
        return read_leaderboard(self.folder)

    @cached_property
    def ranked(self) -> list[Finished]:
        """The finished trials whose predictions can be read, the best first."""
        names = self.leaderboard.loc[self.leaderboard["place"].notna(), "trial"]
        return [self.finished[name] for name in names if name in self.finished]

    @property
    def best(self) -> Finished:
        """The best trial; a report is made of runs that have one."""
        return self.ranked[0]

    @cached_property
    def best_config(self) -> TrialConfig:
        """The configuration of the best trial."""
        return TrialConfig.model_validate(self.best.record.config)

    @cached_property
    def predictions(self) -> Predictions:
        """What the best trial says of the validation slices."""
        return read_predictions(self.folder.trial(self.best.name) / PREDICTIONS)

    @cached_property
    def rival(self) -> str | None:
        """The rule that sees no image with the best score; None where none has been judged."""
        rules = self.leaderboard.loc[self.leaderboard["status"] == BASELINE, "trial"]
        return None if rules.empty else str(rules.iloc[0])

    def epochs_of(self, trial: str) -> list[dict[str, Any]]:
        """The records of a trial's own epochs."""
        records: list[dict[str, Any]] = read_json(self.folder.trial(trial) / METRICS)["epochs"]
        return records

    def chain(self, trial: str) -> Iterator[Finished]:
        """A finished trial, its parent, and so on to the first."""
        name: str | None = trial
        while name is not None and name in self.finished:
            yield self.finished[name]
            name = self.finished[name].record.parent

    @cached_property
    def curves(self) -> list[LrCurve]:
        """The LR finder's curves."""
        return [LrCurve.model_validate(read_json(path)) for path in sorted(self.folder.lr_finder.glob("*.json"))]

    @cached_property
    def manifest(self) -> Manifest:
        """Of the shards."""
        return read_manifest(self._at_hand)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The shards' rows without images."""
        return read_metadata(self._at_hand, self.manifest)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Where in `table` each slice of `predictions` stands."""
        return np.asarray(pd.Index(self.table["slice"]).get_indexer(self.predictions.slices), np.int64)

    def stored(self, size: int) -> SliceStream:
        """The slices at a size, read from their shards as they are asked for: no page is worth decoding them all."""
        return SliceStream(self._at_hand, self.manifest, size)

    @cached_property
    def slices(self) -> SliceSet:
        """The slices as the best trial saw them."""
        config, registered = self.best_config, self.manifest.settings.crop == "series"
        if config.channels == "hist":  # its scaling is one of all slices
            return open_slices(self._at_hand, config.size)
        hu, breaks = self.stored(config.size), np.array([MIN_HU, MAX_HU], np.int16)
        return SliceSet(hu, self.table, self.manifest.fingerprint, registered, breaks)

    @property
    def _at_hand(self) -> Path:
        assert self.shards is not None, "asked for only where the shards are at hand"
        return self.shards

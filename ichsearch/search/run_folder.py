"""The one place where the files of a run are named.

In: a folder. Out: paths, trial records.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ichsearch.errors import ConfigError
from ichsearch.files import read_json, to_json, write_bytes
from ichsearch.train.config import InputConfig
from ichsearch.train.lineage import CHECKPOINT


class TrialRecord(BaseModel):
    """What the search knows of one trial: `trials/<id>/trial.json`; its curves and scores stand beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    status: str
    reason: str = ""
    parameters: dict[str, Any]
    config: dict[str, Any]
    lr_suggestion: float | None
    weights: str
    epochs: int
    parent: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def space(self) -> Path:
        """The space as resolved."""
        return self.root / "space.yaml"

    @property
    def split(self) -> Path:
        """The frozen split."""
        return self.root / "split.json"

    @property
    def journal(self) -> Path:
        """Optuna's journal: everything the search knows."""
        return self.root / "journal.log"

    @property
    def weights(self) -> Path:
        """Start weights, fetched once."""
        return self.root / "weights"

    @property
    def lr_finder(self) -> Path:
        """Curves of the LR finder."""
        return self.root / "lr_finder"

    @property
    def trials(self) -> Path:
        """One folder a trial."""
        return self.root / "trials"

    @property
    def leaderboard(self) -> Path:
        """All trials, best first."""
        return self.root / "leaderboard.csv"

    @property
    def ranking(self) -> Path:
        """Every trial and baseline held against the best trial."""
        return self.root / "ranking.json"

    @property
    def summary(self) -> Path:
        """What a person should take from the run."""
        return self.root / "summary.json"

    @property
    def baselines(self) -> Path:
        """Predictions of the rules that see no image, a file each, and what they were fitted on."""
        return self.root / "baselines"

    @property
    def phantom(self) -> Path:
        """The synthetic cohort of a run without data."""
        return self.root / "phantom"

    @property
    def own_shards(self) -> Path | None:
        """The shards of that cohort; None for a run on data that lie elsewhere."""
        shards = self.phantom / "shards"
        return shards if shards.is_dir() else None

    def curve(self, config: InputConfig) -> Path:
        """The JSON file of a LR finder's curve; its picture has the same name."""
        return self.lr_finder / curve_name(config)

    def trial(self, trial: str) -> Path:
        """The folder of one trial."""
        return self.trials / trial

    def statistics(self, trial: str) -> Path:
        """The scores of one trial with their intervals."""
        return self.trial(trial) / "statistics.json"

    def baseline(self, name: str) -> Path:
        """The predictions of one baseline."""
        return self.baselines / f"{name}.parquet"

    def write_record(self, record: TrialRecord) -> None:
        """Show what the search knows of a trial; not waiting for the disk, since the journal knows it, too."""
        write_bytes(self.trial(record.trial) / "trial.json", to_json(record.model_dump()), durable=False)

    def remove_checkpoint(self, trial: str) -> None:
        """Free the room of what a trial that has ended would have gone on from."""
        shutil.rmtree(self.trial(trial) / CHECKPOINT, ignore_errors=True)

    def record(self, trial: str) -> TrialRecord | None:
        """What is known of one trial; None if nothing is."""
        path = self.trial(trial) / "trial.json"
        return TrialRecord.model_validate(read_json(path)) if path.is_file() else None

    def records(self) -> list[TrialRecord]:
        """All trials of the run, in the order of their ids."""
        paths = sorted(self.trials.glob("*/trial.json"), key=lambda path: (len(path.parent.name), path.parent.name))
        return [TrialRecord.model_validate(read_json(path)) for path in paths]


def open_run(root: Path) -> RunFolder:
    """The folder of a run that has begun.

    Raises:
        ConfigError: it is no run.
    """
    folder = RunFolder(root.resolve())
    if not folder.space.is_file() or not folder.split.is_file():
        raise ConfigError(f"RUN must be the folder of a run, with its space.yaml and split.json, but {root} is none")
    return folder


def curve_name(config: InputConfig) -> str:
    """File name of the LR finder's curve for a configuration."""
    parts = [
        config.backbone,
        f"batch{config.batch_size}",
        f"{config.size}px",
        config.channels,
        config.head,
        config.task,
    ]
    return f"{'-'.join(parts)}.json"

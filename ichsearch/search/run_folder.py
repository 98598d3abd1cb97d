"""The one place where the files of a run are named.

In: a folder, on a disk or in a store. Out: paths, trial records.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from ichsearch.files import read_json, to_json, write_bytes, write_json
from ichsearch.locations import below
from ichsearch.search.mirror import CLAIMS, SPACE, Mirror, scratch
from ichsearch.shards.manifest import MANIFEST
from ichsearch.storage import open_folder
from ichsearch.train.config import InputConfig
from ichsearch.train.lineage import CHECKPOINT

BEGUN: Final = ("run.lock", "lease.json", CLAIMS, "phantom")
"""What a driver may have left of a run without a space."""
PROBE: Final = ".ichsearch-doctor-"
"""Begins the names of what a doctor that was killed has left."""
REPLAY: Final = "replay.json"


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


class ReplayRecord(BaseModel):
    """What became of one replay of a trial: `confirm/<name>/replay.json`; its curves and scores stand beside it.

    Attributes:
        fold: the one that was held out; 0 is the run's test fold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    seed: int
    fold: int
    status: Literal["finished", "failed"]
    reason: str = ""

    @property
    def name(self) -> str:
        """Its folder's."""
        return replay_name(self.trial, self.seed, self.fold)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; one in a store has them in a mirror."""

    root: Path
    mirror: Mirror | None = None

    def __str__(self) -> str:
        return self.mirror.store if self.mirror else str(self.root)

    def shown(self, path: Path) -> str:
        """Where a file of the run is for a person: never in the mirror."""
        return below(self.mirror.store, self._name(path)) if self.mirror else str(path)

    def _name(self, path: Path) -> str:
        return "" if path == self.root else path.relative_to(self.root).as_posix()

    def holds_other_files(self) -> bool:
        """Whether a folder that is no run's yet holds what no driver has left that came no further, and no doctor."""
        if self.mirror:
            names = {name.partition("/")[0] for name in open_folder(self.mirror.store).names()}
        else:
            names = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        return any(name not in BEGUN and not name.startswith(PROBE) for name in names)

    def refresh(self, path: Path) -> None:
        """See below a folder of the run what others have written to the store."""
        if self.mirror:
            self.mirror.pull(self._name(path))

    def bring(self, path: Path) -> None:
        """Have the weights below a folder of the run here, too."""
        if self.mirror:
            self.mirror.pull(self._name(path), holes=False)

    def push(self, path: Path) -> None:
        """Let others see at once what has changed below a folder of the run."""
        if self.mirror:
            self.mirror.push(self._name(path))

    def check(self) -> None:
        """Raises `StorageError` if the store has stayed away, `AlreadyRunningError` if another worker writes there."""
        if self.mirror:
            self.mirror.check()

    def publish_journal(self) -> None:
        """Let what was appended to the journal be known to every later driver, wherever it runs."""
        if self.mirror:
            self.mirror.journal.push()

    @property
    def space(self) -> Path:
        """The space as resolved."""
        return self.root / SPACE

    @property
    def split(self) -> Path:
        """The frozen split."""
        return self.root / "split.json"

    @property
    def leaks(self) -> bool:
        """Whether it is judged on patients that it trains on: its split is by slice."""
        return self.split.is_file() and read_json(self.split).get("by") == "slice"

    @property
    def preprocessing(self) -> Path:
        """How the slices were made that the run learned from."""
        return self.root / "preprocessing.json"

    @property
    def ensemble(self) -> Path:
        """Which trials predict together, and what that gains."""
        return self.root / "ensemble.json"

    @property
    def ensemble_predictions(self) -> Path:
        """What these say together of the validation slices."""
        return self.root / "ensemble.parquet"

    @property
    def evaluations(self) -> Path:
        """What its models are worth on other slices: two files an evaluation."""
        return self.root / "evaluations"

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
    def report(self) -> Path:
        """The page that people look at."""
        return self.root / "report.html"

    @property
    def commands(self) -> Path:
        """By which commands the run was made: a line each."""
        return self.root / "commands.jsonl"

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
    def confirm(self) -> Path:
        """One folder a replay, and what they say together."""
        return self.root / "confirm"

    @property
    def confirmed(self) -> Path:
        """A row a replay."""
        return self.confirm / "confirm.csv"

    def test_predictions(self, trial: str) -> Path:
        """The mean predictions of a trial's replays on the test fold."""
        return self.confirm / f"{trial}-test.parquet"

    def out_of_fold_predictions(self, trial: str) -> Path:
        """The mean predictions of a trial's replays on all folds, each by those that held it out."""
        return self.confirm / f"{trial}-out_of_fold.parquet"

    @property
    def test_fold(self) -> Path:
        """When the test fold was opened, and by whom; absent as long as it was not."""
        return self.root / "test_fold.json"

    @property
    def phantom_shards(self) -> str | Path | None:
        """Where the slices of that cohort are; None if there are none."""
        if self.mirror:
            location = below(self.mirror.store, "phantom/shards")
            return location if open_folder(location).exists(MANIFEST) else None
        return self.phantom / "shards" if self.phantom.is_dir() else None

    @property
    def phantom(self) -> Path:
        """The synthetic cohort of a run without data."""
        return self.root / "phantom"

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

    def replay(self, name: str) -> Path:
        """The folder of one replay."""
        return self.confirm / name

    def write_replay(self, record: ReplayRecord) -> None:
        """Keep what became of a replay."""
        write_json(self.replay(record.name) / REPLAY, record.model_dump())

    def replays(self) -> list[ReplayRecord]:
        """All replays that have ended, by trial, seed and fold."""
        records = [ReplayRecord.model_validate(read_json(path)) for path in self.confirm.glob(f"*/{REPLAY}")]
        return sorted(records, key=lambda record: (record.trial, record.seed, record.fold))

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


@contextmanager
def opened(location: str | Path) -> Iterator[RunFolder]:
    """The run folder at a location; one in a store is mirrored as long as the block runs, then what is new uploaded.

    What somebody else, such as the run's driver, has written there meanwhile stays. The mirror has holes for
    weights and the like: see `RunFolder.bring`.

    Raises:
        ConfigError: the location is none.
        StorageError: the store cannot be read.
    """
    folder = open_folder(location)
    if (path := folder.local_path()) is not None:
        yield RunFolder(path)
        return
    with scratch(folder.location) as root:
        mirror = Mirror(folder.location, root)
        mirror.pull()
        yield RunFolder(root, mirror)
        mirror.push_unless_outdated()


def replay_name(trial: str, seed: int, fold: int) -> str:
    """The name of a replay's folder."""
    return f"{trial}-seed{seed}" + (f"-fold{fold}" if fold else "")


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

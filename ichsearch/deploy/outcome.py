"""What a prediction writes, and what became of every file.

In: paths, counts. Out: `Targets`, an `Outcome`, and what a person reads of it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ichsearch.data.tasks import Task
from ichsearch.deploy.models import Predictor
from ichsearch.deploy.overlays import require_maps
from ichsearch.deploy.prediction_files import require_all_labels
from ichsearch.deploy.series import Refused
from ichsearch.deploy.targets import check_files, check_target
from ichsearch.errors import ConfigError


@dataclass(frozen=True)
class Targets:
    """Where results go; None is left out."""

    table: Path
    kaggle: Path | None = None
    overlays: Path | None = None

    @property
    def studies(self) -> Path:
        """A row a study."""
        return self.table.with_name(f"{self.table.stem}.studies.csv")

    @property
    def quarantine(self) -> Path:
        """Which files were no use, and why; absent where all were."""
        return self.table.with_name(f"{self.table.stem}.quarantine.csv")

    def check(self, predictor: Predictor) -> None:
        """Refuse what cannot be written, before any work is done.

        Raises:
            ConfigError: with what to do.
        """
        files = [("--out", path) for path in (self.table, self.studies, self.quarantine)]
        if self.kaggle is not None:
            require_all_labels(predictor.labels)
            files.append(("--kaggle", self.kaggle))
        check_files(files)
        if self.overlays is not None:
            check_target(self.overlays, "--overlays")
            require_maps(predictor)
            if any(path.resolve().is_relative_to(self.overlays.resolve()) for _, path in files):
                raise ConfigError(
                    f"--overlays must be a folder of its own, but other results go into {self.overlays}, too; "
                    f"give {self.overlays}/overlays, say"
                )


@dataclass
class Outcome:
    """What became of every file: slices + duplicates + refused = files.

    Attributes:
        guessed: rows of Kaggle's form for slices that could not be read.
    """

    files: int
    duplicates: int
    slices: int = 0
    studies: int = 0
    guessed: int = 0
    drawn: int = 0
    refused: list[Refused] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How often each reason."""
        return Counter(file.reason for file in self.refused)


def outcome_text(outcome: Outcome, targets: Targets, task: Task) -> list[str]:
    """What was found and what was written, a line each."""
    reasons = ", ".join(f"{reason} {number}" for reason, number in outcome.reasons.most_common())
    lines = [
        f"{outcome.files} files = {outcome.slices} slices + {outcome.duplicates} duplicates + "
        f"{len(outcome.refused)} quarantined{f' ({reasons})' if reasons else ''}",
        f"{targets.table}: {outcome.slices} rows, a slice each; {targets.studies}: {outcome.studies}, a study each",
    ]
    if outcome.refused:
        lines.append(f"{targets.quarantine}: what was no use, and why")
    if targets.kaggle:
        guessed = f"; {outcome.guessed} cannot be read and have the validation patients' prevalence"
        lines.append(f"{targets.kaggle}: {outcome.slices + outcome.guessed} slices{guessed if outcome.guessed else ''}")
    if targets.overlays:
        lines.append(f"{targets.overlays}: {outcome.drawn} pictures, each named by its slice's number")
    if task == "positives":
        lines.append("the model learned from slices that bleed: of any other slice its subtypes mean nothing")
    return [*lines, "not for clinical use"]

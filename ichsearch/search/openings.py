"""`test_fold.json`: each time that the test fold was opened, noted before anything of it is looked at.

In: a run folder, a command, trials. Out: one entry more; none is ever changed or taken away.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from shlex import join

from pydantic import BaseModel, ConfigDict, Field

from ichsearch import __version__
from ichsearch.files import read_json, write_json
from ichsearch.search.run_folder import RunFolder


class Opening(BaseModel):
    """One time that the test fold was opened."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: datetime
    command: str = Field(description="as it was typed")
    ichsearch: str = Field(description="version")
    trials: list[str] = Field(description="which were to be scored on it")


def read_openings(folder: RunFolder) -> list[Opening]:
    """All openings, the first one first."""
    if not folder.test_fold.is_file():
        return []
    return [Opening.model_validate(entry) for entry in read_json(folder.test_fold)]


def note_opening(folder: RunFolder, command: Sequence[str], trials: Sequence[str]) -> list[Opening]:
    """Note that the test fold is about to be opened; all openings, this one last."""
    now = datetime.now(UTC).replace(microsecond=0)
    new = Opening(when=now, command=join(command), ichsearch=__version__, trials=list(trials))
    openings = [*read_openings(folder), new]
    write_json(folder.test_fold, [opening.model_dump(mode="json") for opening in openings])
    folder.push(folder.root)
    return openings

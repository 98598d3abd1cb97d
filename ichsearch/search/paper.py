"""A paper file: runs that were published, each a space of one configuration at its own length, to be done again.

In: a YAML file with `runs:`, a scale. Out: a `Paper`, its runs in order. At a scale below 1 they shrink, and are no
reproduction any more.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, ValidationError

from ichsearch.data.split import LEAKY
from ichsearch.errors import ConfigError
from ichsearch.search.sections import Section
from ichsearch.search.space import Space
from ichsearch.search.space_file import Places, read_content, space_of

LEAST_SIZE: Final = 64
SIZE_STEP: Final = 32
LEAST_BATCH: Final = 16
BATCH_STEP: Final = 8
DECIDED: Final = ("name", "strategy", "trials", "split", "confirm")
"""Keys of a space that a paper file decides itself: one trial a run, by patient, and by slice where it says leaky."""
SHARED_KEY: Final = "all"
RUNS_KEY: Final = "runs"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]


class PaperEntry(Section):
    """One published run."""

    reported: float = Field(ge=0, le=1, description="the accuracy that the paper reports")
    leaky: bool = Field(False, description="run it again with a split by slice, as the paper's was")
    space: dict[str, Any] = Field({}, description="keys of a space, laid over `all`; parameters one by one")


class PaperFile(Section):
    """What a paper file may say."""

    name: Name = Field(description="also the default run folder's")
    all: dict[str, Any] = Field({}, description="keys of a space that all runs share")
    runs: dict[Name, PaperEntry] = Field(min_length=1, description="in the order in which they are run")


class Length(NamedTuple):
    """What a scale changes."""

    epochs: int
    frozen_epochs: int
    batch_size: int
    size: int


class PaperRun(NamedTuple):
    """A run as it is done here.

    Attributes:
        entry: its name in the file.
        reported: the paper's accuracy.
        leaky: whether it is split by slice.
        paper: its length in the paper.
        here: its length here.
        space: of its one trial.
    """

    entry: str
    reported: float
    leaky: bool
    paper: Length
    here: Length
    space: Space

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{self.entry}-{LEAKY}" if self.leaky else self.entry


class Paper(NamedTuple):
    """A paper file, read."""

    name: str
    scale: float
    runs: tuple[PaperRun, ...]


def is_paper(path: Path) -> bool:
    """Whether a file is a paper file rather than a space."""
    return RUNS_KEY in read_content(path)[0]


def load_paper(path: Path, options: Sequence[str] = (), scale: float = 1.0) -> Paper:
    """Read and validate a paper file.

    Args:
        path: the file.
        options: `key=value`, as for a space: `all.pretrained=no`, `runs.binary-scratch.space.epochs=2`.
        scale: in (0, 1], of epochs, batch sizes, and the area of images.

    Raises:
        ConfigError: with file and line, or option, and rule, value and remedy.
    """
    file, at = _read(path, options)
    published, there = _read(path, ())
    lengths = {name: length_of(_space(published, name, there)[0]) for name in published.runs}
    runs = [run for name in file.runs for run in _runs(file, name, at, scale, lengths.get(name))]
    return Paper(file.name, scale, tuple(runs))


def _read(path: Path, options: Sequence[str]) -> tuple[PaperFile, Places]:
    content, at = read_content(path, options)
    try:
        return PaperFile.model_validate(content), at
    except ValidationError as error:
        told = (_told(at, problem) for problem in error.errors())
        raise ConfigError("\n".join(dict.fromkeys(told))) from None


def _told(at: Places, problem: Any) -> str:
    where = tuple(part for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        known = PaperEntry.model_fields if len(where) > 1 else PaperFile.model_fields
        return at.told(where, f"unknown key {where[-1]!r}; known: {', '.join(known)}")
    rule = problem["msg"].replace("Input should be", "must be", 1)
    return at.told(where, f"{rule}, but got {str(problem['input'])[:60]!r}; correct it")


def _runs(file: PaperFile, name: str, at: Places, scale: float, published: Length | None) -> Iterator[PaperRun]:
    """The run of an entry, by patient, and its leaky twin if it has one; `published` is its length without options."""
    entry = file.runs[name]
    space, content = _space(file, name, at)
    at = at.within((SHARED_KEY,), (RUNS_KEY, name, "space"))
    asked = length_of(space)
    paper, here = published or asked, scaled(asked, scale)
    if here != asked:
        content |= {"epochs": here.epochs, "parameters": content["parameters"] | _parameters(here)}
    yield PaperRun(name, entry.reported, False, paper, here, space_of(content, at))
    if entry.leaky:
        content |= {"name": f"{content['name']}-{LEAKY}", "split": "slice"}
        yield PaperRun(name, entry.reported, True, paper, here, space_of(content, at))


def _space(file: PaperFile, name: str, at: Places) -> tuple[Space, dict[str, Any]]:
    """The space of an entry's one configuration, by patient, and what it is made of."""
    at = at.within((SHARED_KEY,), (RUNS_KEY, name, "space"))
    content = _laid_over(file.all, file.runs[name].space, at)
    for key in DECIDED:
        if key in content:
            raise ConfigError(
                at.told((key,), f"{key} is not for a paper file to say, but run {name} has it; remove it")
            )
    content |= {"name": f"{file.name}-{name}", "strategy": "grid"}
    return _single(space_of(content, at), name, at), content


def _laid_over(shared: dict[str, Any], own: dict[str, Any], at: Places) -> dict[str, Any]:
    """The run's own keys over the shared ones, parameters one by one."""
    parts = [part.get("parameters", {}) for part in (shared, own)]
    if not all(isinstance(part, dict) for part in parts):
        raise ConfigError(at.told(("parameters",), "parameters must be keys and values, but are not; correct it"))
    return {**shared, **own, "parameters": parts[0] | parts[1]}


def _single(space: Space, name: str, at: Places) -> Space:
    if (number := len(space.grid())) != 1:
        raise ConfigError(
            at.told(("parameters",), f"a run of a paper file is one configuration, but {name} has {number}; choose one")
        )
    return space


def length_of(space: Space) -> Length:
    """The length of a space's one trial; frozen epochs are 0 where nothing is fine-tuned."""
    (drawn,) = space.grid()
    frozen = int(drawn["frozen_epochs"]) if drawn.get("lr_schedule") == "fine_tune" else 0
    return Length(space.epochs, frozen, int(drawn["batch_size"]), int(drawn["size"]))


def scaled(paper: Length, scale: float) -> Length:
    """Epochs and batches times `scale`, an image's side times its root; none longer than in the paper.

    At least 1 epoch (and 1 more than are frozen), batches of 16 in steps of 8, sides of 64 in steps of 32: smaller ones
    some backbones cannot be trained on.
    """
    frozen = max(1, round(paper.frozen_epochs * scale)) if paper.frozen_epochs else 0
    batch_size = max(LEAST_BATCH, BATCH_STEP * round(paper.batch_size * scale / BATCH_STEP))
    size = max(LEAST_SIZE, SIZE_STEP * int(paper.size * sqrt(scale) / SIZE_STEP))
    return Length(
        epochs=max(1 + frozen, round(paper.epochs * scale)),
        frozen_epochs=frozen,
        batch_size=min(paper.batch_size, batch_size),
        size=min(paper.size, size),
    )


def _parameters(length: Length) -> dict[str, Any]:
    frozen = {"frozen_epochs": length.frozen_epochs} if length.frozen_epochs else {}
    return {"batch_size": length.batch_size, "size": length.size} | frozen

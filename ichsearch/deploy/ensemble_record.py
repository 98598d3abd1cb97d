"""Which trials predict together: the form of `ensemble.json`.

In: a run folder. Out: an `Ensemble`.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json
from ichsearch.search.run_folder import RunFolder


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gain(_Frozen):
    """A difference of scores on the validation patients with its 95 % interval; above zero is better."""

    value: float
    low: float
    high: float


class Member(_Frozen):
    """A trial with as many votes as it was chosen times."""

    trial: str
    count: int = Field(ge=1)
    weight: float = Field(gt=0, le=1, description="its share of all votes")
    gain: Gain | None = Field(description="of the ensemble over the one without it; null where it is alone")


class Step(_Frozen):
    """One choice: the trial, and the score of all that are chosen then."""

    trial: str
    score: float
    gain: Gain | None = Field(description="over the step before; null for the first")


class Ensemble(_Frozen):
    """Trials chosen on the validation patients, who therefore flatter it."""

    metric: str
    members: tuple[Member, ...]
    flip: bool = Field(description="whether the probabilities of an image and its mirror image are averaged")
    score: float
    low: float
    high: float
    gain: Gain | None = Field(description="over the best trial alone; null where that is all there is")
    flip_gain: Gain | None = Field(description="of averaging with the mirror image; null where it was not tried")
    steps: tuple[Step, ...]
    slices: int
    patients: int
    candidates: int = Field(1, description="trials that were chosen from")
    predictions_sha256: str | None = Field(None, description="of ensemble.parquet, which thresholds come from")


def read_ensemble(folder: RunFolder) -> Ensemble:
    """The ensemble of a run.

    Raises:
        ConfigError: it has none.
        DataError: its file is damaged.
    """
    if not folder.ensemble.is_file():
        raise ConfigError(f"an ensemble must be chosen first, but {folder} has none; `ichsearch ensemble RUN`")
    try:
        return Ensemble.model_validate(read_json(folder.ensemble))
    except ValidationError as error:
        raise DataError(
            f"{folder.ensemble.name} must tell of an ensemble, but does not ({error.error_count()} errors); choose anew"
        ) from error

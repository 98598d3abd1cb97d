"""How slices were made that a run learned from, so that DICOM files can be made the same way for its models.

In: shards. Out: a `Preprocessing`, kept in the run folder as `preprocessing.json`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ichsearch.data.cache import open_slices
from ichsearch.shards.manifest import read_manifest


class Preprocessing(BaseModel):
    """What a model's inputs depend on beside its own configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=16, le=1024, description="pixels of a stored slice's side")
    crop: Literal["series", "slice"] = Field(description="one box per series, or per slice")
    hist_breaks: dict[int, list[int]] = Field(
        description="rising HU, the break points of channels: hist, by the side of the images; none without such"
    )
    key_id: str | None = Field(None, description="of the key that hashed the patients; older runs do not tell")


def preprocessing_of(shards: Path, hist_sizes: Iterable[int] = ()) -> Preprocessing:
    """How the slices of `shards` were made; `hist_sizes` are the image sizes that models with channels: hist see."""
    settings = read_manifest(shards).settings
    breaks = {size: open_slices(shards, size, decode=False).hist_breaks.tolist() for size in hist_sizes}
    return Preprocessing(size=settings.size, crop=settings.crop, hist_breaks=breaks, key_id=settings.key_id)

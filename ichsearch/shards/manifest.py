"""`manifest.json`: what a folder of shards holds, and by which settings; what is not in it did not happen.

In: the settings and the results of all shards. Out: a `Manifest`, written last and read first.
"""

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ichsearch import __version__
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import from_json, to_json
from ichsearch.shards.labels_csv import Level
from ichsearch.shards.schema import SCHEMA_VERSION
from ichsearch.storage import Folder, open_folder

MANIFEST: Final = "manifest.json"
SETTINGS: Final = "settings.json"


class Frozen(BaseModel):
    """Base of what stands in the folder's JSON files: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Frozen):
    """What decides the bytes of the shards, beside the files themselves."""

    schema_version: int = SCHEMA_VERSION
    size: int = Field(256, ge=16, le=1024, description="pixels of a stored slice's side")
    crop: Literal["series", "slice"] = Field("series", description="one box per series, or per slice as in the paper")
    key_id: str
    source_id: str = Field(description="keyed hash of the DICOM folder")


class ShardEntry(Frozen):
    """One shard of the folder."""

    file: str
    slices: int
    sha256: str


class Counts(Frozen):
    """Files and slices: ok + duplicate + quarantined = found."""

    found: int
    ok: int
    duplicate: int
    quarantined: int
    labelled: int
    labels_without_file: int
    patients: int
    patients_unknown: int
    studies: int
    series: int
    fixed_wrap: int
    positives: dict[str, int]
    reasons: dict[str, int]


class Manifest(Frozen):
    """Everything a reader needs to know of a folder of shards."""

    settings: Settings
    written_by: dict[str, str]
    label_level: Level | None = Field(description="what a label of the CSV was given for; None without labels")
    counts: Counts
    shards: list[ShardEntry]
    fingerprint: str


def make_manifest(settings: Settings, label_level: Level | None, counts: Counts, shards: list[ShardEntry]) -> Manifest:
    """The manifest with its fingerprint: a SHA-256 over the settings and the shards' hashes."""
    content = json.dumps([settings.model_dump(), [shard.model_dump() for shard in shards]], sort_keys=True)
    return Manifest(
        settings=settings,
        written_by={"ichsearch": __version__, "pyarrow": pa.__version__},
        label_level=label_level,
        counts=counts,
        shards=shards,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Declare the folder's shards complete."""
    folder.write_bytes(MANIFEST, to_json(manifest.model_dump()))


def read_manifest(location: str | Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        DataError: the folder has none (preprocessing did not finish), or one of another version or form.
    """
    try:
        value = from_json(open_folder(location).read_bytes(MANIFEST), MANIFEST)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError(
            f"a folder of shards has a {MANIFEST}, but {location} has none; make one with "
            "`ichsearch preprocess DICOM_DIR --out SHARDS`, or let an interrupted one finish"
        ) from None
    settings = value.get("settings") if isinstance(value, dict) else None
    version = settings.get("schema_version") if isinstance(settings, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"shards must have schema version {SCHEMA_VERSION}, but {location} has {version}; preprocess again"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"{MANIFEST} of {location} must be a manifest, but {where} is wrong; preprocess again"
        ) from None


def claim_folder(folder: Folder, settings: Settings) -> None:
    """Mark `folder` as the output of these settings before anything else is written to it; errors of `check_folder`."""
    check_folder(folder, settings)
    folder.write_bytes(SETTINGS, to_json(settings.model_dump()))


def check_folder(folder: Folder, settings: Settings) -> None:
    """Refuse an output folder that is not new, and not of these settings.

    Raises:
        ConfigError: it holds other files, or shards of other settings; the difference is named.
    """
    where = folder.location
    if folder.exists(SETTINGS):
        there, asked = from_json(folder.read_bytes(SETTINGS), SETTINGS), settings.model_dump()
        if not isinstance(there, dict):
            raise ConfigError(f"{SETTINGS} of {where} must hold settings, but does not; give another --out")
        names = [name for name in asked if there.get(name) != asked[name]]
        if names:
            explain = {"source_id": "another DICOM folder", "key_id": "another key"}
            parts = [explain.get(name) or f"{name} {there.get(name)} there, {asked[name]} asked for" for name in names]
            raise ConfigError(f"{where} holds shards made differently ({'; '.join(parts)}); give another --out")
        return
    path = folder.local_path()
    if path is not None and path.exists() and not path.is_dir():
        raise ConfigError(f"--out must be a new folder or one of ichsearch's, but {where} is a file")
    if any(not name.endswith(".aside") for name in folder.names()):
        raise ConfigError(f"--out must be a new folder or one of ichsearch's, but {where} holds other files")

"""`model.json` of an exported folder: all that a program needs to know to use `model.onnx`.

In: a file. Out: an `ExportedRecord`. It knows neither torch nor the search: whoever predicts needs neither.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json

FORM_VERSION: Final = 1
RECORD: Final = "model.json"
ONNX: Final = "model.onnx"
CARD: Final = "MODEL_CARD.md"
SCRIPT: Final = "predict.py"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperatingPoint(_Frozen):
    """A slice is positive whose probability is at least `threshold`."""

    threshold: float
    sensitivity: float = Field(description="of the validation slices, which the threshold was chosen on")
    specificity: float = Field(description="likewise")


OperatingPoints = dict[str, dict[str, OperatingPoint | None]]
"""By label, then `specificity_90`, `specificity_95`, `youden`; None for labels of which one class only occurs."""


class WindowRecord(_Frozen):
    """A window as one channel: (HU clipped to it - low) / width, minus `mean`, over `std` of the member."""

    level_hu: int
    width_hu: int


class MemberRecord(_Frozen):
    """One model: what it sees, and where its weights are."""

    trial: str
    backbone: str
    head: str
    channels: str
    size: int = Field(description="pixels of its input's side; the stored slice averaged over areas")
    windows: list[WindowRecord] = Field(description="a channel each; one for all three slices of channels: neighbours")
    mean: float
    std: float
    weight: float = Field(description="share of its probabilities in the mean")
    weights: str = Field(description="its state dict, a safetensors file")
    sha256: str = Field(description="of that file")


class OnnxRecord(_Frozen):
    """The graph from stored HU to probabilities, and how it was held against torch."""

    sha256: str
    opset: int
    input: str = "hu"
    output: str = "probabilities"
    checked_slices: int = Field(description="images that both have seen")
    max_difference: float = Field(description="largest of the probabilities' differences between them")


class ExportedRecord(_Frozen):
    """An exported model."""

    form_version: int = FORM_VERSION
    ichsearch: str
    run: str
    labels: list[str] = Field(description="order of the probabilities")
    depth: Literal[1, 3] = Field(description="slices of one input: (batch, depth, stored_px, stored_px) int16 HU")
    stored_px: int = Field(description="pixels of a slice's side after its crop")
    crop: Literal["series", "slice"] = Field(description="one box round the brain per series, or per slice")
    clipped_to_hu: tuple[int, int]
    flip: bool = Field(description="whether the graph averages each image with its mirror image")
    members: list[MemberRecord]
    thresholds: OperatingPoints
    onnx: OnnxRecord
    intended_use: str = "research and engineering; not for clinical use"


def read_record(folder: Path) -> ExportedRecord:
    """What `model.json` of an exported folder says.

    Raises:
        ConfigError: the folder holds no exported model, or one of another version.
        DataError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ConfigError(f"an exported model has a {RECORD}, but {folder} has none; `ichsearch export RUN --out DIR`")
    saved = read_json(path)
    version = saved.get("form_version") if isinstance(saved, dict) else None
    if version != FORM_VERSION:
        raise ConfigError(f"{RECORD} must have form version {FORM_VERSION}, but has {version}; export anew")
    try:
        return ExportedRecord.model_validate(saved)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{RECORD} must describe a model, but {where} is wrong; export anew") from error

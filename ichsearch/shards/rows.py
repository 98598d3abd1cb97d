"""One row of a shard from a decoded slice.

In: a `DecodedSlice`, its crop box and its place in its series. Out: values of the schema's columns.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ichsearch.dicom.brain import CropBox, cropped
from ichsearch.dicom.elements import SYNTAXES, Elements
from ichsearch.dicom.header import unit_normal
from ichsearch.dicom.pixels import SliceImage
from ichsearch.dicom.windows import BRAIN
from ichsearch.labels import LABELS
from ichsearch.shards.plan import LabelledFile
from ichsearch.shards.schema import FRAME_SIDE, pack_hu

Row = dict[str, Any]


class DecodedSlice(NamedTuple):
    """A file with its image, and where the brain is in it."""

    file: LabelledFile
    image: SliceImage
    brain_share: float
    box: CropBox | None


class Place(NamedTuple):
    """Where a slice stands in its series."""

    number: int
    slices: int

    @property
    def is_middle(self) -> bool:
        """Whether it is the one slice of the series whose whole frame is kept."""
        return self.number == self.slices // 2


def make_row(item: DecodedSlice, box: CropBox, place: Place, size: int) -> Row:
    """All columns of `shard_schema(size)`."""
    image = item.image
    return {
        **_identity(item, place),
        **_crop(item, box, size),
        **_encoding(image),
        **_geometry(image.elements),
        **_acquisition(image.elements),
        **_stored(image),
        **dict(zip(LABELS, item.file.labels or [None] * len(LABELS), strict=True)),
        "hu": pack_hu(cropped(image.hu, box, size)),
        "frame": _whole_frame(image) if place.is_middle else None,
    }


def _identity(item: DecodedSlice, place: Place) -> Row:
    source = item.file.source
    return {
        "slice": source.slice,
        "patient": source.patient,
        "patient_known": source.patient_known,
        "study": source.study,
        "series": source.series,
        "series_index": place.number,
        "series_slices": place.slices,
        "position_mm": source.position_mm,
    }


def _crop(item: DecodedSlice, box: CropBox, size: int) -> Row:
    row_mm, column_mm = item.image.encoding.spacing_mm
    return {
        "spacing_row_mm": row_mm * box.side / size,
        "spacing_column_mm": column_mm * box.side / size,
        "brain_share": item.brain_share,
        "crop_top": box.top,
        "crop_left": box.left,
        "crop_side": box.side,
    }


def _encoding(image: SliceImage) -> Row:
    encoding, elements = image.encoding, image.elements
    return {
        "transfer_syntax": SYNTAXES.get(elements.syntax, "other"),
        "rows": encoding.rows,
        "columns": encoding.columns,
        "bits_allocated": encoding.bits_allocated,
        "bits_stored": encoding.bits_stored,
        "signed": encoding.signed,
        "inverted": encoding.inverted,
        "rescale_slope": encoding.slope,
        "rescale_intercept": encoding.intercept,
        "padding_value": elements.optional_short("PixelPaddingValue", signed=encoding.signed),
        "window_level_hu": elements.optional_number("WindowCenter"),
        "window_width_hu": elements.optional_number("WindowWidth"),
        "pixel_spacing_row_mm": encoding.spacing_mm[0],
        "pixel_spacing_column_mm": encoding.spacing_mm[1],
    }


def _geometry(elements: Elements) -> Row:
    origin_mm = elements.numbers("ImagePositionPatient", count=3)
    orientation = elements.numbers("ImageOrientationPatient", count=6)
    names = [f"image_{edge}_{axis}" for edge in ("row", "column") for axis in "xyz"]
    return {
        "tilt_degrees": math.degrees(math.acos(min(1.0, unit_normal(orientation)[2]))),
        **{f"image_position_{axis}_mm": value for axis, value in zip("xyz", origin_mm, strict=True)},
        **dict(zip(names, orientation, strict=True)),
    }


def _acquisition(elements: Elements) -> Row:
    keywords = {
        "slice_thickness_mm": "SliceThickness",
        "gantry_tilt_degrees": "GantryDetectorTilt",
        "reconstruction_diameter_mm": "ReconstructionDiameter",
        "tube_voltage_kv": "KVP",
        "tube_current_ma": "XRayTubeCurrent",
        "exposure_mas": "Exposure",
    }
    return {name: elements.optional_number(keyword) for name, keyword in keywords.items()}


def _stored(image: SliceImage) -> Row:
    statistics = image.statistics
    return {
        "stored_min": statistics.minimum,
        "stored_max": statistics.maximum,
        "stored_mean": statistics.mean,
        "stored_std": statistics.std,
        "clipped_low": image.clipped_low,
        "clipped_high": image.clipped_high,
        "fixed_wrap": image.encoding.wrapped,
        "stored_hash": image.stored_hash,
    }


def _whole_frame(image: SliceImage) -> bytes:
    small = cropped(image.hu, CropBox(0, 0, image.hu.shape[0]), FRAME_SIDE)
    shown = (small.astype(np.float32) - BRAIN.low_hu) / BRAIN.width_hu
    return (shown.clip(0, 1) * 255).astype(np.uint8).tobytes()

"""Small real CT files, written with pydicom: any header element can be changed, written raw, or left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

# Identifiers here are no valid UIDs, as in RSNA 2019: pydicom would warn of each.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TILTED: Final = (1.0, 0.0, 0.0, 0.0, 0.948, -0.317)

Stored = NDArray[np.int16] | NDArray[np.uint16]


def head_hu(side: int = 64, seed: int = 0, *, centre: tuple[float, float] | None = None) -> NDArray[np.int16]:
    """A disc of noisy brain in a ring of bone in air, (side, side) HU; `centre` is (row, column)."""
    rng = np.random.default_rng(seed)
    row, column = centre or (side / 2, side / 2)
    rows, columns = np.mgrid[:side, :side]
    radius = np.hypot(rows - row, columns - column) / side
    hu = np.full((side, side), -1000, np.int16)
    hu[radius < 0.34] = 900
    brain = radius < 0.3
    hu[brain] = rng.integers(20, 45, np.count_nonzero(brain))
    return hu


def stored_12_bit(hu: NDArray[np.int16]) -> NDArray[np.uint16]:
    """HU as unsigned 12-bit values with intercept -1024."""
    return (hu.astype(np.int32) + 1024).astype(np.uint16)


def ct_dataset(stored: Stored, changes: Mapping[str, Any] | None = None) -> Dataset:
    """A CT slice around stored values, 12-bit unsigned or 16-bit signed by their type.

    `changes` sets elements by keyword: None leaves one out, bytes are written as they stand, other values by pydicom.
    """
    signed = stored.dtype == np.int16
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    elements: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "ID_000000001",
        "Modality": "CT",
        "PatientID": "ID_0000000aa",
        "StudyInstanceUID": "ID_0000000bb",
        "SeriesInstanceUID": "ID_0000000cc",
        "ImagePositionPatient": [-125.0, -125.0, 0.0],
        "ImageOrientationPatient": list(AXIAL),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.5, 0.5],
        "BitsAllocated": 16,
        "BitsStored": 16 if signed else 12,
        "HighBit": 15 if signed else 11,
        "PixelRepresentation": int(signed),
        "RescaleIntercept": 0 if signed else -1024,
        "RescaleSlope": 1,
        "PixelData": stored.tobytes(),
    }
    ds.set_original_encoding(False, True, "iso8859")
    with pydicom.config.disable_value_validation():
        for keyword, value in (elements | dict(changes or {})).items():
            if isinstance(value, bytes):
                _set_raw(ds, keyword, value)
            elif value is not None:
                setattr(ds, keyword, value)
    return ds


def _set_raw(ds: Dataset, keyword: str, value: bytes) -> None:
    tag = Tag(tag_for_keyword(keyword) or 0)
    vr = "OW" if keyword == "PixelData" else dictionary_VR(tag)
    padded = value + b" " * (len(value) % 2)
    ds[tag] = RawDataElement(tag, vr, len(padded), padded, 0, is_implicit_VR=False, is_little_endian=True)


def write_ct(
    path: Path, stored: Stored, changes: Mapping[str, Any] | None = None, *, syntax: str = ExplicitVRLittleEndian
) -> Path:
    """Write one CT slice in the given transfer syntax: native, deflated, RLE or JPEG 2000."""
    ds = ct_dataset(stored, changes)
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    with pydicom.config.disable_value_validation():
        if syntax == JPEG2000Lossless:
            ds.PixelData = encapsulate([encode_array(stored, bits_stored=ds.BitsStored)])
            ds["PixelData"].is_undefined_length = True
        elif UID(syntax).is_compressed and not UID(syntax).is_deflated:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.compress(UID(syntax), generate_instance_uid=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    return path

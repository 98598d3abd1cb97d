"""One slice as a DICOM file in the form of the RSNA 2019 set.

In: stored values and where they lie. Out: a file with the header elements of an RSNA file, its opaque `ID_...`
identifiers (not valid UIDs) and no InstanceNumber.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from ichsearch.phantom.geometry import Stack
from ichsearch.phantom.scanner import Scanner, Storage


@dataclass(frozen=True)
class Identity:
    """The identifiers of one slice, each `ID_` and nine hex digits."""

    instance: str
    patient: str
    study: str
    series: str


def write_slice(
    path: Path,
    stored: NDArray[np.int16] | NDArray[np.uint16],
    identity: Identity,
    stack: Stack,
    index: int,
    scanner: Scanner,
) -> None:
    """Write slice `index` of `stack`; `stored` is (matrix, matrix). OSError if the file cannot be written."""
    with disable_value_validation():  # the identifiers break VR UI on purpose: so do those of the RSNA set
        dataset = _identified(identity)
        _place(dataset, stack, index)
        _describe_pixels(dataset, scanner)
        dataset.PixelData = stored.tobytes()
        dataset.save_as(path, enforce_file_format=True)


def _identified(identity: Identity) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(identity.instance)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = identity.instance
    dataset.Modality = "CT"
    dataset.PatientID = identity.patient
    dataset.StudyInstanceUID = identity.study
    dataset.SeriesInstanceUID = identity.series
    dataset.StudyID = ""
    return dataset


def _place(dataset: Dataset, stack: Stack, index: int) -> None:
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in stack.position_mm(index)]
    dataset.ImageOrientationPatient = [f"{value:.6f}" for value in stack.orientation]
    dataset.PixelSpacing = [f"{stack.pixel_mm:.6f}"] * 2
    dataset.Rows = dataset.Columns = stack.matrix


def _describe_pixels(dataset: Dataset, scanner: Scanner) -> None:
    signed = scanner.storage is Storage.SIGNED_16
    centre, width = scanner.window
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (16, 15, 1) if signed else (12, 11, 0)
    dataset.WindowCenter = f"{centre}" if signed else [f"{centre:05d}"] * 2
    dataset.WindowWidth = f"{width}" if signed else [f"{width:05d}"] * 2
    dataset.RescaleIntercept = "0" if scanner.storage is Storage.WRAPPED_12 else "-1024"
    dataset.RescaleSlope = "1"

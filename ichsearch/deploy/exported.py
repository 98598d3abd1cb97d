"""An exported model at work: DICOM in, probabilities out, through onnxruntime; neither torch nor the search is needed.

In: an exported folder, and a folder of DICOM files. Out: a row a slice, and how many files were no use and why.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from ichsearch.deploy.exported_record import ONNX, read_record
from ichsearch.deploy.series import open_dicom_folder
from ichsearch.deploy.targets import private_csv
from ichsearch.errors import DataError, IchsearchError, StorageError
from ichsearch.files import as_cell, sha256_of

BATCH: Final = 32


class ExportedModel:
    """The model of an exported folder.

    Attributes:
        record: what `model.json` says.
    """

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            ConfigError: the folder holds no exported model.
            DataError: its files are not those that were exported.
        """
        self.record = read_record(folder)
        if sha256_of(folder / ONNX) != self.record.onnx.sha256:
            raise DataError(f"{ONNX} must be as it was exported, but was changed; restore it, or export anew")
        self._session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])

    def predict(self, pixels_hu: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
        """Probabilities (N, L) of the N slices of one series from foot to head, (N, stored_px, stored_px) int16 HU."""
        slices, onnx = len(pixels_hu), self.record.onnx
        offsets = np.array([-1, 0, 1] if self.record.depth == 3 else [0])
        rows = (np.arange(slices)[:, None] + offsets).clip(0, max(slices - 1, 0))
        parts = [np.empty((0, len(self.record.labels)), np.float32)]
        for start in range(0, slices, BATCH):
            parts += self._session.run([onnx.output], {onnx.input: pixels_hu[rows[start : start + BATCH]]})
        return np.concatenate(parts)


def predict_folder(model: ExportedModel, dicom: str, out: Path) -> tuple[int, Counter[str]]:
    """Write the probabilities of all slices below a DICOM folder as CSV; how many, and what files were left out for.

    Raises:
        DataError: the folder cannot be read, or holds no usable slice.
    """
    found = open_dicom_folder(dicom)
    left_out = Counter(file.reason for file in found.refused)
    left_out.update({"duplicate": found.duplicates} if found.duplicates else {})
    written = 0
    header = ["study", "series", "slice", *(f"probability_{label}" for label in model.record.labels)]
    with private_csv(out, header) as write:
        for series in found.series(model.record.stored_px, model.record.crop):
            left_out.update(refused.reason for refused in series.refused)
            names = [as_cell(series.study), as_cell(series.series)]
            for slice_uid, row in zip(series.slices, model.predict(series.hu), strict=True):
                write([*names, as_cell(slice_uid), *(f"{value:.6g}" for value in row)])
            written += len(series.slices)
        if not written:
            reasons = ", ".join(f"{reason} {number}" for reason, number in left_out.most_common())
            raise DataError(f"at least one file must be a usable CT slice, but none is ({reasons or 'no files'})")
    return written, left_out


def main(folder: Path, arguments: Sequence[str]) -> int:
    """The command line of an exported folder's `predict.py`; its exit code."""
    parser = argparse.ArgumentParser(description="Predict haemorrhage on head CT slices. Not for clinical use.")
    parser.add_argument("dicom", metavar="DICOM_DIR", help="folder of DICOM files, searched below")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    options = parser.parse_args(arguments)
    try:
        written, left_out = predict_folder(ExportedModel(folder), options.dicom, options.out)
    except IchsearchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{options.out} must be writable, but: {error.strerror}; give another --out\n")
        return StorageError.exit_code
    sys.stdout.write(f"{written} slices in {options.out} · not for clinical use\n")
    for reason, number in left_out.most_common():
        sys.stdout.write(f"left out: {reason} {number}\n")
    return 0

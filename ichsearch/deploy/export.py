"""A run's model as a folder that needs neither the run nor torch.

In: a run folder. Out: `model.onnx`, `model.json`, safetensors, `MODEL_CARD.md` and `predict.py`; whole or absent.
"""

import shutil
from pathlib import Path
from typing import Final, NamedTuple

from ichsearch import __version__
from ichsearch.data.channels import MEAN, STD, WINDOWS
from ichsearch.deploy.exported_record import (
    CARD,
    ONNX,
    RECORD,
    SCRIPT,
    ExportedRecord,
    MemberRecord,
    OnnxRecord,
    WindowRecord,
)
from ichsearch.deploy.model_card import model_card
from ichsearch.deploy.models import Predictor
from ichsearch.deploy.onnx_graph import OPSET, Parity, write_onnx
from ichsearch.deploy.targets import folder_aside
from ichsearch.deploy.thresholds import operating_points
from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.files import sha256_of, write_json, write_text
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import WEIGHTS

PREDICT: Final = '''\
"""Predict with the model in this folder: python predict.py DICOM_DIR --out predictions.csv

In: a folder of DICOM files. Out: a CSV, a row a slice. Needs `pip install 'ichsearch[export]'`. Not for clinical use.
"""

import sys
from pathlib import Path

from ichsearch.deploy.exported import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent, sys.argv[1:]))
'''


class Exported(NamedTuple):
    """A folder that has been written."""

    folder: Path
    record: ExportedRecord


def export_model(folder: RunFolder, predictor: Predictor, shards: Path | None, out: Path) -> Exported:
    """Write what `predictor`, exact and on the CPU, predicts with to `out`.

    Args:
        folder: the run's.
        predictor: of a trial or the ensemble.
        shards: the run's data, which the card describes; None leaves out what it would say of them.
        out: a new folder.

    Raises:
        ConfigError: `out` holds something, or the model has no ONNX form that says the same.
        DataError: predictions or shards are damaged.
    """
    with folder_aside(out) as aside:
        record = _fill(aside, folder, predictor, shards)
    return Exported(out, record)


def _fill(target: Path, folder: RunFolder, predictor: Predictor, shards: Path | None) -> ExportedRecord:
    stored_px, thresholds = predictor.preprocessing.size, operating_points(predictor.validation)
    parity = write_onnx(predictor.pipeline, stored_px, target / ONNX)
    members = [
        _member(target, folder, trial, config, weight)
        for trial, config, weight in zip(predictor.trials, predictor.configs, predictor.weights, strict=True)
    ]
    record = ExportedRecord(
        ichsearch=__version__,
        run=load_space(folder.space).name,
        labels=list(predictor.labels),
        depth=3 if predictor.needs_neighbours else 1,
        stored_px=stored_px,
        crop=predictor.preprocessing.crop,
        clipped_to_hu=(MIN_HU, MAX_HU),
        flip=predictor.flip,
        members=members,
        thresholds=thresholds,
        onnx=_onnx(target, parity),
    )
    write_json(target / RECORD, record.model_dump())
    write_text(target / CARD, model_card(folder, record, predictor.validation, shards))
    write_text(target / SCRIPT, PREDICT)
    return record


def _member(target: Path, folder: RunFolder, trial: str, config: TrialConfig, weight: float) -> MemberRecord:
    name = f"{trial}.safetensors"
    shutil.copyfile(folder.trial(trial) / WEIGHTS, target / name)
    windows = WINDOWS.get(config.channels, ())
    return MemberRecord(
        trial=trial,
        backbone=config.backbone,
        head=config.head,
        channels=config.channels,
        size=config.size,
        windows=[WindowRecord(level_hu=window.level_hu, width_hu=window.width_hu) for window in windows],
        mean=MEAN,
        std=STD,
        weight=weight,
        weights=name,
        sha256=sha256_of(target / name),
    )


def _onnx(target: Path, parity: Parity) -> OnnxRecord:
    return OnnxRecord(
        sha256=sha256_of(target / ONNX),
        opset=OPSET,
        checked_slices=parity.slices,
        max_difference=parity.max_difference,
    )

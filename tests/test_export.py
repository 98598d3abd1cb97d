"""Exported folders: ONNX says what torch says, a DICOM file is predicted without torch, what was changed is refused."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_cli import assert_refused, ichsearch
from trained_runs import INPUTS, write_trained_run

from ichsearch import cli_deploy
from ichsearch.data.cache import open_slices
from ichsearch.data.preprocessing import Preprocessing
from ichsearch.deploy.models import load_predictor, predictor_of
from ichsearch.errors import ConfigError, DataError
from ichsearch.phantom import write_cohort
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.identity import home_folder, load_key
from ichsearch.shards.preprocess import preprocess
from ichsearch.train.config import TrialConfig
from ichsearch.train.setup import make_model

pytest.importorskip("onnxscript", reason="needs ichsearch[export]")
pytest.importorskip("onnxruntime", reason="needs ichsearch[export]")

from ichsearch.deploy.export import export_model
from ichsearch.deploy.exported import ExportedModel
from ichsearch.deploy.exported_record import read_record
from ichsearch.deploy.onnx_graph import compare, images, write_onnx
from ichsearch.deploy.pipeline import Member, Pipeline

CPU = torch.device("cpu")
PAPERS = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")
Run = tuple[RunFolder, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The windows at 32 px."""
    target = tmp_path_factory.mktemp("exported") / "model"
    predictor = load_predictor(run[0], "0001", ensemble=False, device=CPU, exact=True)
    return export_model(run[0], predictor, run[1], target).folder


def pipeline_of(backbone: str, px: int, *, flip: bool = False) -> Pipeline:
    """A model whose normalisation has seen a few images, so that its answers differ from image to image."""
    config = TrialConfig(backbone=backbone, batch_size=2, size=px, lr=0.01, epochs=1)
    model = make_model(config, None, CPU).train()
    preprocessing = Preprocessing(size=px, crop="series", hist_breaks={})
    member = Member(model, config, preprocessing)
    with torch.no_grad():
        member(member.inputs(torch.from_numpy(images(4, 1, px)).float()))
    return Pipeline([member], [1.0], flip=flip).eval()


def test_one_graph_says_of_all_kinds_of_input_what_torch_says(run: Run, tmp_path: Path) -> None:
    weights = [0.2] * len(INPUTS)
    predictor = predictor_of(run[0], list(INPUTS), weights, flip=True, validation=Path("none"), device=CPU, exact=True)
    parity = write_onnx(predictor.pipeline, 64, tmp_path / "model.onnx")
    assert parity.max_difference < 1e-5
    assert parity.slices == 16


@pytest.mark.slow
@pytest.mark.parametrize("backbone", PAPERS)
def test_the_papers_backbones_have_an_onnx_form(backbone: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(backbone, 256)
    with torch.inference_mode():
        answers = pipeline(torch.from_numpy(images(8, 1, 256)))
    assert answers.std(dim=0).min() > 1e-5  # a constant would agree with anything
    assert write_onnx(pipeline, 256, tmp_path / "model.onnx").max_difference <= 1e-4


def test_a_graph_of_another_model_is_told_apart(tmp_path: Path) -> None:
    one, other = pipeline_of("test_resnet", 32), pipeline_of("test_efficientnet", 32)
    write_onnx(one, 32, tmp_path / "model.onnx")
    assert compare(other, 32, tmp_path / "model.onnx").max_difference > 1e-3


def test_a_graph_of_another_model_is_told_apart_however_sure_both_are(tmp_path: Path) -> None:
    one, other = (pipeline_of(backbone, 32) for backbone in ("test_resnet", "test_efficientnet"))
    for pipeline in (one, other):
        last = [module for module in pipeline.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias.data -= 12
    write_onnx(one, 32, tmp_path / "model.onnx")
    parity = compare(other, 32, tmp_path / "model.onnx")
    assert parity.max_difference < 1e-4
    assert not parity.holds


def test_a_model_that_says_no_number_is_not_exported(tmp_path: Path) -> None:
    pipeline = pipeline_of("test_resnet", 32)
    for weights in pipeline.parameters():
        weights.data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="differ by nan"):
        write_onnx(pipeline, 32, tmp_path / "model.onnx")


def test_a_model_that_onnx_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    class Eigenvalues(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(inputs[:, 0]).real[:, :6]

    config = TrialConfig(backbone="test_resnet", batch_size=2, size=32, lr=0.01, epochs=1)
    member = Member(Eigenvalues(), config, Preprocessing(size=32, crop="series", hist_breaks={}))
    with pytest.raises(ConfigError, match="must have an ONNX form"):
        write_onnx(Pipeline([member], [1.0], flip=False), 32, tmp_path / "model.onnx")


def test_the_folder_predicts_what_the_trial_predicts(run: Run, exported: Path) -> None:
    hu = np.asarray(open_slices(run[1], 64).hu)[:40]
    predictor = load_predictor(run[0], "0001", ensemble=False, device=CPU)
    assert np.abs(ExportedModel(exported).predict(hu) - predictor.predict(hu)).max() < 1e-5


def test_neighbours_are_found_within_the_series(run: Run, tmp_path: Path) -> None:
    predictor = load_predictor(run[0], "0002", ensemble=False, device=CPU, exact=True)
    model = ExportedModel(export_model(run[0], predictor, None, tmp_path / "model").folder)
    hu = np.asarray(open_slices(run[1], 64).hu)[:4]
    assert model.record.depth == 3
    assert np.abs(model.predict(hu) - predictor.predict(hu)).max() < 1e-5
    assert model.predict(hu[:0]).shape == (0, 6)


def test_the_record_and_the_weights_are_the_trials(run: Run, exported: Path) -> None:
    record = read_record(exported)
    assert record.labels[-1] == "any"
    assert [window.width_hu for window in record.members[0].windows] == [80, 200, 2800]
    weights, own = (
        load_file(path) for path in (exported / "0001.safetensors", run[0].trial("0001") / "weights.safetensors")
    )
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    assert record.thresholds["any"]["specificity_90"] is not None


def test_the_card_tells_of_data_splits_metrics_use_and_limits(exported: Path) -> None:
    card = (exported / "MODEL_CARD.md").read_text()
    for heading in ("Intended use", "Model", "Data", "Splits", "Metrics", "Thresholds", "Limits", "Provenance"):
        assert f"# {heading}\n" in card
    assert "Not for clinical use" in card
    assert "45, 45, 45" in card  # patients, studies, series
    assert "optimistic" in card
    assert "The test fold is untouched" in card
    assert not any(text in card for text in ("None", " nan", "{{", str(exported.parent)))


def test_a_folder_that_holds_something_is_left_alone(run: Run, exported: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    predictor = load_predictor(run[0], "0000", ensemble=False, device=CPU, exact=True)
    with pytest.raises(ConfigError, match="new or empty folder"):
        export_model(run[0], predictor, run[1], exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_an_export_that_fails_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    predictor = predictor_of(run[0], ["0001"], [1.0], flip=False, validation=tmp_path / "none.parquet", device=CPU)
    with pytest.raises(DataError, match="cannot be read"):
        export_model(run[0], predictor, run[1], tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_changed_files_are_refused(exported: Path) -> None:
    for name, match in (("model.onnx", "was changed"), ("model.json", "form version|must be JSON")):
        whole = (exported / name).read_bytes()
        (exported / name).write_bytes(whole[:-9] + b"         " if name == "model.onnx" else b"[]")
        try:
            with pytest.raises((DataError, ConfigError), match=match):
                ExportedModel(exported)
        finally:
            (exported / name).write_bytes(whole)


def test_raw_dicom_is_predicted_without_torch_as_from_its_shards(run: Run, exported: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", 5, 6, 0, matrix=128, workers=1)
    (tmp_path / "cohort" / "dicom" / "notes.txt").write_text("no DICOM")
    shards = tmp_path / "shards"
    preprocess(tmp_path / "cohort" / "dicom", shards, size=64)
    code = (
        "import runpy, sys; sys.argv[0] = 'predict.py'\n"
        f"try: runpy.run_path({str(exported / 'predict.py')!r}, run_name='__main__')\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "cohort" / "dicom"),
        "--out",
        str(tmp_path / "predictions.csv"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120)
    assert ended.returncode == 0, ended.stderr
    modules = set(ended.stderr.split())
    assert not {"torch", "ichsearch.search", "ichsearch.train", "ray", "optuna"} & modules
    assert "30 slices" in ended.stdout
    assert "left out: not_dicom 1" in ended.stdout
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    found = np.array([[float(row[f"probability_{label}"]) for label in read_record(exported).labels] for row in rows])
    stored = open_slices(shards, 64)
    key, predictor = load_key(home_folder()), load_predictor(run[0], "0001", ensemble=False, device=CPU)
    at = pd.Index(stored.table["slice"]).get_indexer([key.hash("slice", row["slice"]) for row in rows])
    expected = predictor.predict(np.asarray(stored.hu))[at]
    assert len({row["series"] for row in rows}) == 5
    assert sorted(at) == list(range(30))
    assert np.abs(found - expected).max() < 1e-5


def test_the_verbs_choose_and_export_an_ensemble(run: Run, tmp_path: Path) -> None:
    chosen = ichsearch("ensemble", run[0].root, "--data", run[1])
    assert chosen.returncode == 0, chosen.stderr
    assert "vote" in chosen.stdout
    assert "mirror images: gain" in chosen.stdout
    done = ichsearch("export", run[0].root, "--ensemble", "--data", run[1], "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert "differs from torch by" in done.stdout
    members = json.loads((tmp_path / "model" / "model.json").read_text())["members"]
    assert sum(member["weight"] for member in members) == pytest.approx(1)
    names = {"model.onnx", "model.json", "MODEL_CARD.md", "predict.py", *(member["weights"] for member in members)}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names


def test_missing_libraries_are_named_before_any_work(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_deploy, "ONNX_LIBRARIES", ("onnx", "no_such_library"))
    done = ichsearch("export", run[0].root, "--out", tmp_path / "model")
    assert_refused(done, 4, "needs no_such_library", "ichsearch[export]")

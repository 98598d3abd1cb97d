"""The report's CT images: what they say of each slice, and where the model looked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from books import PARAMETERS, make_space
from runs import write_cohort_shards, write_run

from ichsearch.data.batches import Batches
from ichsearch.data.cache import open_slices
from ichsearch.data.split import Split
from ichsearch.files import read_json
from ichsearch.report.report_images import CPU, best_model, errors, predictions
from ichsearch.report.report_scores import curves_of
from ichsearch.report.run_data import RunData
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.config import TrialConfig
from ichsearch.train.lineage import METRICS, WEIGHTS
from ichsearch.train.steps import predict
from ichsearch.train.trial import run_trial


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort_shards(tmp_path_factory.mktemp("images") / "shards")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> RunData:
    folder = write_run(tmp_path_factory.mktemp("images") / "run", shards, make_space(trials=6, sampler="random"))
    return RunData(folder, shards)


def test_predictions_are_right_or_wrong_as_the_file_says(data: RunData) -> None:
    section = predictions(data)
    assert len(section.tiles) == 12
    given = data.predictions
    names = [str(name)[:12] for name in given.slices]
    seen = set()
    for tile in section.tiles:
        place = next(place for place, name in enumerate(names) if f"CT slice {name}:" in tile.alt)
        seen.add(given.of_patient[place])
        there = {label for label, is_there in zip(given.labels, given.positive[place], strict=True) if is_there}
        said = {label for label, p in zip(given.labels, given.probabilities[place], strict=True) if p > 0.5}
        assert {label.text for label in tile.below} == {*(there - {"any"})} or {"none"}
        assert all(label.right == (label.text in there or (label.text == "none" and not there)) for label in tile.above)
        assert all(label.right == (label.text in said or (label.text == "none" and not said)) for label in tile.below)


def test_the_worst_errors_are_shown_with_heat_one_a_patient(data: RunData) -> None:
    section = errors(data)
    assert "4 false alarms and 4 missed slices for any" in section.notes[0]
    assert "Grad-CAM for any, from maps of" in section.notes[1]
    assert all(tile.overlay for tile in section.tiles)
    curves = curves_of(data, "any")
    worst = float(curves.scores[~curves.positive].max())
    assert section.tiles[0].above[0].text == f"any {worst:.3f}"
    assert section.tiles[4].above[0].text == f"any {curves.scores[curves.positive].min():.3f}"


def test_the_model_that_is_looked_into_is_the_one_that_predicted(shards: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shards, make_space(trials=1, epochs=2))
    place = folder.trial("0000")
    (place / METRICS).unlink()
    data = RunData(folder, shards)
    config = TrialConfig.model_validate(data.records[0].config)
    split = Split.model_validate(read_json(folder.split))
    run_trial(config, open_slices(shards, config.size), split, place, device=CPU)
    inputs = Batches(data.slices, data.rows, config.recipe, CPU).evaluate()
    np.testing.assert_allclose(predict(best_model(data), inputs), data.predictions.probabilities, atol=1e-6)


def test_kept_weights_are_needed_for_heat(data: RunData, shards: Path, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(data.folder.root, tmp_path / "run"))
    (copy.trial(data.best.name) / WEIGHTS).unlink()
    section = errors(RunData(copy, shards))
    assert f"trials/{data.best.name}/weights.safetensors is not there" in section.notes[1]
    assert not any(tile.overlay for tile in section.tiles)


@pytest.mark.parametrize("channels", ["neighbours", "hist"])
def test_heat_is_that_of_the_inputs_that_the_model_saw(shards: Path, tmp_path: Path, channels: str) -> None:
    parameters = PARAMETERS | {"channels": channels}
    folder = write_run(tmp_path / "run", shards, make_space(parameters, trials=3))
    data = RunData(folder, shards)
    section = errors(data)
    assert all(tile.overlay for tile in section.tiles)
    whole = open_slices(shards, data.best_config.size)
    recipe = data.best_config.recipe
    streamed, mapped = (
        torch.cat([batch.clone() for batch in Batches(slices, data.rows, recipe, CPU).evaluate()])
        for slices in (data.slices, whole)
    )
    assert torch.equal(streamed, mapped)

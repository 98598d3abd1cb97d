"""Predictors: each says of raw HU what its trial said in training, and refuses what is not whole."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trained_runs import INPUTS, write_trained_run

from ichsearch.data.cache import open_slices
from ichsearch.deploy.ensemble_record import Ensemble, Member
from ichsearch.deploy.models import best_trial, load_predictor, predictor_of, series_neighbours
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json, write_json
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import FloatArray

CPU = torch.device("cpu")
Run = tuple[RunFolder, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_trained_run(tmp_path_factory.mktemp("trained"))


def said(folder: RunFolder, trial: str) -> pd.DataFrame:
    table = pd.read_parquet(folder.trial(trial) / "predictions.parquet")
    return table.set_index("slice").filter(like="probability_")


def predictions(run: Run, trial: str, *, flip: bool = False) -> FloatArray:
    """Of the validation slices, as they lie in the shards."""
    folder, shards = run
    predictor = predictor_of(folder, [trial], [1.0], flip=flip, validation=Path("none"), device=CPU)
    slices = open_slices(shards, predictor.preprocessing.size)
    rows = slices.table.index[slices.table["slice"].isin(said(folder, trial).index)].to_numpy()
    return predictor.predict(np.asarray(slices.hu), slices.neighbours)[rows]


@pytest.mark.parametrize("trial", INPUTS)
def test_a_predictor_says_of_stored_slices_what_its_trial_said(run: Run, trial: str) -> None:
    assert np.abs(predictions(run, trial) - said(run[0], trial).to_numpy()).max() < 2e-6


def test_slices_without_neighbours_given_are_one_series(run: Run) -> None:
    folder, shards = run
    predictor = load_predictor(folder, "0002", ensemble=False, device=CPU)
    slices = open_slices(shards, 64)
    first = slices.table["series"] == slices.table["series"].iloc[0]
    alone, whole = np.asarray(slices.hu)[first], np.asarray(slices.hu)
    assert predictor.needs_neighbours
    assert np.allclose(predictor.predict(alone), predictor.predict(whole, slices.neighbours)[first], atol=1e-6)
    shuffled = predictor.predict(alone[::-1].copy())[::-1]
    assert np.abs(shuffled - predictor.predict(alone)).max() > 1e-4  # below and above are told apart


def test_an_empty_series_has_no_probabilities(run: Run) -> None:
    predictor = load_predictor(run[0], "0002", ensemble=False, device=CPU)
    assert predictor.predict(np.empty((0, 64, 64), np.int16)).shape == (0, 6)
    assert series_neighbours(1).tolist() == [[0, 0, 0]]


def test_mirror_images_are_averaged(run: Run) -> None:
    folder, shards = run
    predictor = predictor_of(folder, ["0001"], [1.0], flip=True, validation=Path("none"), device=CPU)
    plain = load_predictor(folder, "0001", ensemble=False, device=CPU)
    hu = np.asarray(open_slices(shards, 64).hu)[:9]
    mirrored = hu[:, :, ::-1].copy()
    assert np.allclose(predictor.predict(hu), (plain.predict(hu) + plain.predict(mirrored)) / 2, atol=1e-6)
    assert np.allclose(predictor.predict(hu), predictor.predict(mirrored), atol=1e-6)


def test_an_ensemble_is_the_weighted_mean_of_its_members(run: Run) -> None:
    folder, shards = run
    members = (
        Member(trial="0000", count=1, weight=0.25, gain=None),
        Member(trial="0002", count=3, weight=0.75, gain=None),
    )
    ensemble = Ensemble(
        metric="auroc_any", members=members, flip=False, score=0.9, low=0.8, high=1.0, gain=None, flip_gain=None,
        steps=(), slices=1, patients=1,
    )  # fmt: skip
    shutil.copy(folder.trial("0000") / "predictions.parquet", folder.ensemble_predictions)
    write_json(folder.ensemble, ensemble.model_dump())
    together = load_predictor(folder, None, ensemble=True, device=CPU)
    slices = open_slices(shards, 64)
    one, other = (load_predictor(folder, trial, ensemble=False, device=CPU) for trial in ("0000", "0002"))
    hu, neighbours = np.asarray(slices.hu), slices.neighbours
    expected = 0.25 * one.predict(hu, neighbours) + 0.75 * other.predict(hu, neighbours)
    assert together.trials == ("0000", "0002")
    assert np.allclose(together.predict(hu, neighbours), expected, atol=1e-6)
    folder.ensemble.unlink()


def test_without_a_trial_named_the_best_is_taken(run: Run) -> None:
    assert load_predictor(run[0], None, ensemble=False, device=CPU).trials == (best_trial(run[0]),)


def test_what_is_not_there_is_refused_by_name(run: Run) -> None:
    folder, _ = run
    for trial in ("0099", "../run/trials/0000"):
        with pytest.raises(ConfigError, match="there are 0000, 0001"):
            load_predictor(folder, trial, ensemble=False)
    with pytest.raises(ConfigError, match="ichsearch ensemble RUN"):
        load_predictor(folder, None, ensemble=True)
    with pytest.raises(ConfigError, match="leave one out"):
        load_predictor(folder, "0000", ensemble=True)
    with pytest.raises(ConfigError, match="RUN must be the folder of a run"):
        load_predictor(RunFolder(folder.root / "trials"), None, ensemble=False)


def test_changed_weights_are_refused(run: Run) -> None:
    path = run[0].trial("0001") / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\1")
    try:
        with pytest.raises(DataError, match="was changed"):
            load_predictor(run[0], "0001", ensemble=False)
    finally:
        path.write_bytes(whole)


def test_changed_validation_predictions_give_no_thresholds(run: Run) -> None:
    path = run[0].trial("0001") / "predictions.parquet"
    whole = path.read_bytes()
    frame = pd.read_parquet(path)
    frame.assign(probability_any=1 - frame["probability_any"]).to_parquet(path)
    try:
        with pytest.raises(DataError, match=r"0001/predictions\.parquet must be as it was written"):
            load_predictor(run[0], "0001", ensemble=False)
    finally:
        path.write_bytes(whole)


def test_break_points_that_are_missing_are_said_to_be(run: Run) -> None:
    folder = run[0]
    known = folder.preprocessing.read_bytes()
    write_json(folder.preprocessing, read_json(folder.preprocessing) | {"hist_breaks": {}})
    try:
        with pytest.raises(DataError, match="channels: hist at 32 px"):
            load_predictor(folder, "0003", ensemble=False)
    finally:
        folder.preprocessing.write_bytes(known)


def test_an_older_run_needs_its_shards_to_tell_how_slices_were_made(run: Run) -> None:
    folder, shards = run
    known = folder.preprocessing.read_bytes()
    folder.preprocessing.unlink()
    try:
        with pytest.raises(ConfigError, match="--data"):
            load_predictor(folder, "0003", ensemble=False)
        assert load_predictor(folder, "0003", ensemble=False, shards=shards).preprocessing.hist_breaks[32]
    finally:
        folder.preprocessing.write_bytes(known)

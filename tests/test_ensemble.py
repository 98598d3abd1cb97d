"""Ensembles: votes that raise the score, gains paired over patients, mirror images seen by the models themselves."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_runs import add_judged_trial, draw_truth, predicted, scores_of
from spaces import write_space
from trained_runs import write_trained_run

from ichsearch.deploy.ensemble import choose_ensemble, ensemble_text
from ichsearch.deploy.ensemble_record import read_ensemble
from ichsearch.deploy.models import load_predictor
from ichsearch.deploy.stored_slices import predict_rows, stored_slices
from ichsearch.errors import DataError, NoTrialFinishedError
from ichsearch.search.resolved import save_space
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import load_space
from ichsearch.train.predictions import mean_of


def judged_run(root: Path, **skills: float) -> RunFolder:
    """Trials of which each knows as much as its skill says, with errors of its own."""
    folder, truth = RunFolder(root / "run"), draw_truth(60)
    folder.root.mkdir()
    save_space(load_space(write_space(root)), folder.space)
    for number, (name, skill) in enumerate(skills.items()):
        add_judged_trial(folder, name.removeprefix("t"), predicted(truth, skill, seed=number))
    return folder


def test_trials_with_errors_of_their_own_are_better_together(tmp_path: Path) -> None:
    folder = judged_run(tmp_path, t0000=1.0, t0001=1.0, t0002=1.0, t0003=0.0)
    chosen = choose_ensemble(folder, None)
    assert {member.trial for member in chosen.members} >= {"0000", "0001", "0002"} - {"0003"}
    assert sum(member.weight for member in chosen.members) == pytest.approx(1)
    assert chosen.gain is not None
    assert chosen.gain.low > 0
    for member in chosen.members[:3]:
        assert member.gain is not None
        assert member.gain.value > 0
    scores = [step.score for step in chosen.steps]
    assert scores == sorted(set(scores))
    assert chosen.flip is False
    assert chosen.flip_gain is None
    assert read_ensemble(folder) == chosen


def test_what_is_kept_is_the_mean_of_the_votes_and_has_its_score(tmp_path: Path) -> None:
    folder = judged_run(tmp_path, t0000=1.0, t0001=0.9, t0002=0.8)
    chosen = choose_ensemble(folder, None)
    tables = [
        pd.read_parquet(folder.trial(member.trial) / "predictions.parquet")
        for member in chosen.members
        for _ in range(member.count)
    ]
    kept = pd.read_parquet(folder.ensemble_predictions)
    pd.testing.assert_frame_equal(kept, mean_of(tables), atol=1e-6)
    assert scores_of(kept)["auroc_any"] == pytest.approx(chosen.score, abs=1e-4)


def test_a_copy_gains_nothing(tmp_path: Path) -> None:
    folder = judged_run(tmp_path, t0000=1.0)
    frame = pd.read_parquet(folder.trial("0000") / "predictions.parquet")
    add_judged_trial(folder, "0001", frame)
    chosen = choose_ensemble(folder, None)
    assert [(member.trial, member.gain) for member in chosen.members] == [("0000", None)]
    assert chosen.gain is None
    assert "the best trial alone" in " ".join(ensemble_text(chosen))


def test_a_lower_log_loss_is_a_gain(tmp_path: Path) -> None:
    folder, truth = RunFolder(tmp_path / "run"), draw_truth(60)
    folder.root.mkdir()
    space = load_space(write_space(tmp_path), ["metric=log_loss"])
    save_space(space, folder.space)
    for number in range(3):
        add_judged_trial(folder, f"000{number}", predicted(truth, 1.0, seed=number), metric="log_loss")
    chosen = choose_ensemble(folder, None)
    alone = min(
        scores_of(pd.read_parquet(path))["log_loss"] or 9 for path in folder.trials.glob("*/predictions.parquet")
    )
    assert chosen.gain is not None
    assert chosen.gain.value == pytest.approx(alone - chosen.score, abs=1e-6)
    assert chosen.gain.value > 0


def test_trials_of_other_slices_are_refused(tmp_path: Path) -> None:
    folder = judged_run(tmp_path, t0000=1.0)
    add_judged_trial(folder, "0001", predicted(draw_truth(20), 1.0))
    with pytest.raises(DataError, match="predict the same slices"):
        choose_ensemble(folder, None)


def test_without_weights_there_is_nothing_to_choose(tmp_path: Path) -> None:
    folder = judged_run(tmp_path, t0000=1.0)
    (folder.trial("0000") / "weights.safetensors").unlink()
    with pytest.raises(NoTrialFinishedError, match="weights were kept"):
        choose_ensemble(folder, None)


def test_the_ensembles_models_say_what_was_kept_of_it(tmp_path: Path) -> None:
    folder, shards = write_trained_run(tmp_path)
    folder.preprocessing.unlink()  # as older runs lack it
    chosen = choose_ensemble(folder, shards)
    assert chosen.flip_gain is not None
    assert chosen.flip == (chosen.flip_gain.value > 0)
    kept = pd.read_parquet(folder.ensemble_predictions)
    slices = stored_slices(shards)
    rows = pd.Index(slices.table["slice"]).get_indexer(kept["slice"])
    predictor = load_predictor(folder, None, ensemble=True, shards=shards)
    found = predict_rows(predictor, slices, np.asarray(rows, np.int64))
    assert np.abs(found - kept.filter(like="probability_").to_numpy()).max() < 1e-5
    assert scores_of(kept)["auroc_any"] == pytest.approx(chosen.score, abs=1e-6)

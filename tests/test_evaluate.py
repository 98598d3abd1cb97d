"""Models judged on labelled slices: as by hand, on nobody whom the run knows, the test fold only with a note."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from slice_sets import make_rows, write_shards
from test_cli import assert_refused, ichsearch
from trained_runs import STORED_PX, write_trained_run

from ichsearch.data.cache import open_slices
from ichsearch.data.split import TEST_FOLD, Split
from ichsearch.deploy.evaluate import evaluate, own_shards
from ichsearch.deploy.evaluation_record import Evaluation, evaluation_text
from ichsearch.deploy.models import load_predictor
from ichsearch.deploy.smoothing import neighbours_in, smoothed, smoothed_validation, smoothing_gains
from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json
from ichsearch.report.statistics import read_predictions, trial_statistics
from ichsearch.search.openings import read_openings
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import score
from ichsearch.train.predictions import scores_of

CPU = torch.device("cpu")
TRIAL = "0002"
KNOWN, NEW = 45, 25
Run = tuple[RunFolder, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_trained_run(tmp_path_factory.mktemp("trained"), trials=("0001", TRIAL))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images: of as many patients as the run has, who have their names, and of others, some without labels."""
    shards = tmp_path_factory.mktemp("others")
    rows = make_rows(patients=KNOWN + NEW, slices=4, size=STORED_PX, seed=7, unlabelled_patients=5)
    write_shards(shards, [row for row in rows if row["series_index"] or row["patient"] != "patient046"], STORED_PX)
    return shards


def judged(run: Run, shards: Path, **options: Any) -> tuple[Evaluation, pd.DataFrame]:
    predictor = load_predictor(run[0], TRIAL, ensemble=False, device=CPU)
    evaluation, path = evaluate(run[0], predictor, shards, **options)
    assert Evaluation.model_validate(read_json(path)) == evaluation
    return evaluation, pd.read_parquet(path.with_suffix(".parquet"))


def test_on_the_validation_patients_it_says_what_the_leaderboard_says(run: Run) -> None:
    evaluation, table = judged(run, run[1], part="validation")
    own = pd.read_parquet(run[0].trial(TRIAL) / "predictions.parquet")
    assert list(table["slice"]) == list(own["slice"])
    expected = trial_statistics(run[0], TRIAL).intervals
    assert evaluation.scores.keys() == expected.keys()
    for name, interval in expected.items():
        found = evaluation.scores[name]
        assert (found is None) == (interval is None)
        assert found is None or interval is None or np.allclose(found, interval, atol=1e-3), name
    for label, points in (("any", evaluation.slice_thresholds), ("subdural", evaluation.patient_thresholds)):
        for point in points[label].values():
            assert point is not None
            assert point.sensitivity is not None
            assert point.sensitivity.value == pytest.approx(point.chosen_sensitivity)
            assert point.specificity is not None
            assert point.specificity.value == pytest.approx(point.chosen_specificity)
    assert set(evaluation.patient_thresholds["any"].values()) == {None}  # every patient bleeds


def test_on_other_data_patients_whom_the_run_knows_are_left_out(run: Run, others: Path) -> None:
    evaluation, table = judged(run, others)
    known = Split.model_validate(read_json(run[0].split)).patients
    assert len(known) == evaluation.patients_left_out == KNOWN
    assert not set(table["patient"]) & set(known)
    assert (evaluation.patients, evaluation.slices) == (NEW - 5, 4 * (NEW - 5) - 1)
    own = scores_of(table)
    value = evaluation.scores["auroc_any"]
    assert value is not None
    assert value.value == pytest.approx(own["auroc_any"])
    assert value.low < value.value < value.high or value.value == value.high == 1
    assert not run[0].test_fold.exists()


def test_patients_of_another_key_are_recognised_by_their_images(run: Run, tmp_path: Path) -> None:
    rows = make_rows(patients=KNOWN, slices=4, size=STORED_PX)
    rows += [row for row in make_rows(patients=60, slices=4, size=STORED_PX, seed=7) if row["patient"] > "patient044"]
    renamed = [row | {"patient": f"other{row['patient']}"} for row in rows]
    write_shards(tmp_path, renamed, STORED_PX, key_id="another key")
    blind, _ = judged(run, tmp_path)
    assert (blind.patients_left_out, blind.other_key, blind.images_compared) == (0, True, False)
    assert "cannot be told from new ones" in " ".join(evaluation_text(blind))
    seeing, table = judged(run, tmp_path, run_shards=run[1])
    assert (seeing.patients_left_out, seeing.patients) == (KNOWN, 15)
    assert min(table["patient"]) == "otherpatient045"
    assert "were looked for by their images" in " ".join(evaluation_text(seeing))


def test_labels_of_whole_studies_are_said_to_be(run: Run, others: Path) -> None:
    evaluation, _ = judged(run, others)
    assert "every slice of a positive one" not in " ".join(evaluation_text(evaluation))
    of_studies = evaluation.model_copy(update={"label_level": "study"})
    assert "given per study: every slice of a positive one" in " ".join(evaluation_text(of_studies))


def test_thresholds_come_from_validation_alone(run: Run, others: Path) -> None:
    evaluation, table = judged(run, others)
    point = evaluation.slice_thresholds["any"]["youden"]
    assert point is not None
    assert point.sensitivity is not None
    assert point.specificity is not None
    positive, alarm = table["label_any"] == 1, table["probability_any"] >= point.threshold
    assert point.sensitivity.value == pytest.approx((alarm & positive).sum() / positive.sum())
    assert point.specificity.value == pytest.approx((~alarm & ~positive).sum() / (~positive).sum())
    validation = read_predictions(run[0].trial(TRIAL) / "predictions.parquet")
    said, truth = validation.probabilities[:, -1] >= point.threshold, validation.positive[:, -1]
    assert point.chosen_sensitivity == pytest.approx(said[truth].mean())


def test_neighbours_without_a_label_are_looked_at(run: Run, others: Path) -> None:
    """Trial 0002 sees the slice below and above; smoothing averages over them, labelled or not."""
    plain, table = judged(run, others)
    smooth, averaged = judged(run, others, smooth=True)
    assert smooth.smoothed
    assert not plain.smoothed
    slices, predictor = open_slices(others, STORED_PX), load_predictor(run[0], TRIAL, ensemble=False, device=CPU)
    of_all = predictor.predict(np.asarray(slices.hu), slices.neighbours)
    rows = pd.Index(slices.table["slice"]).get_indexer(table["slice"].to_list())
    assert np.allclose(table.filter(like="probability_"), of_all[rows], atol=1e-6)
    expected = smoothed(of_all, slices.neighbours)[rows]
    assert np.allclose(averaged.filter(like="probability_"), expected, atol=1e-6)


def test_the_test_fold_is_opened_with_a_note(run: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run[0].root, folder.root)
    command = ["ichsearch", "evaluate", "run"]
    evaluation, table = judged((folder, run[1]), run[1], part="test", command=command)
    split = Split.model_validate(read_json(folder.split))
    assert {split.patients[patient] for patient in table["patient"]} == {TEST_FOLD}
    assert evaluation.part == "test"
    (opening,) = read_openings(folder)
    assert (opening.command, opening.trials) == ("ichsearch evaluate run", [TRIAL])
    judged((folder, run[1]), run[1], part="test", command=command)
    assert len(read_openings(folder)) == 2


def test_a_model_is_never_judged_on_what_it_learned_from(run: Run) -> None:
    with pytest.raises(ConfigError, match="these are the run's own data; --split test opens"):
        judged(run, run[1])
    assert not run[0].test_fold.exists()


def test_slices_that_cannot_be_judged_on_are_refused(run: Run, others: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --split out"):
        judged(run, others, part="test")
    write_shards(tmp_path / "small", make_rows(patients=12, slices=4, size=32), 32)
    with pytest.raises(ConfigError, match="--size 64 --crop series, but have --size 32"):
        judged(run, tmp_path / "small")
    write_shards(tmp_path / "known", make_rows(patients=30, slices=3, size=STORED_PX, seed=9), STORED_PX)
    with pytest.raises(DataError, match="of 90 labelled slices all are of patients that it does"):
        judged(run, tmp_path / "known")


def test_a_label_of_one_class_has_no_score(run: Run, tmp_path: Path) -> None:
    rows = make_rows(patients=KNOWN + 9, slices=4, size=STORED_PX, seed=3)
    write_shards(tmp_path, [row | {"epidural": 0} for row in rows], STORED_PX)
    evaluation, _ = judged(run, tmp_path)
    assert evaluation.scores["auroc_epidural"] is None
    for of_label in evaluation.slice_thresholds["epidural"].values():
        assert of_label is None or of_label.sensitivity is None
    assert evaluation.positive_slices["epidural"] == 0


def test_neighbours_are_found_in_any_order_and_gaps_are_none() -> None:
    table = pd.DataFrame({"series": ["b", "a", "b", "a", "b"], "series_index": [2, 0, 1, 1, 5]})
    assert neighbours_in(table).tolist() == [[2, 0, 0], [1, 1, 3], [2, 2, 0], [1, 3, 3], [4, 4, 4]]


def test_the_gain_of_smoothing_is_that_of_the_scores(run: Run) -> None:
    path = run[0].trial(TRIAL) / "predictions.parquet"
    old, new = read_predictions(path), smoothed_validation(path, None)
    gains = smoothing_gains(path, None, "auroc_any")
    assert set(gains) == {"auroc_any", "log_loss"}
    values = [
        score(one.positive.astype(float), one.probabilities, one.labels, one.of_patient.astype(object))
        for one in (new, old)
    ]
    assert gains["auroc_any"].value == pytest.approx(values[0]["auroc_any"] - values[1]["auroc_any"])  # type: ignore[operator]
    assert gains["log_loss"].value == pytest.approx(values[1]["log_loss"] - values[0]["log_loss"])  # type: ignore[operator]
    assert gains["log_loss"].low <= gains["log_loss"].value <= gains["log_loss"].high


def test_an_older_run_needs_its_shards_to_smooth(run: Run, tmp_path: Path) -> None:
    path = run[0].trial(TRIAL) / "predictions.parquet"
    pd.read_parquet(path).drop(columns=["series", "series_index"]).to_parquet(tmp_path / "old.parquet")
    with pytest.raises(ConfigError, match="too old to tell"):
        smoothed_validation(tmp_path / "old.parquet", None)
    old, new = smoothed_validation(tmp_path / "old.parquet", run[1]), smoothed_validation(path, None)
    assert np.array_equal(old.probabilities, new.probabilities)


def test_the_runs_own_shards_need_not_be_named_twice(run: Run, others: Path) -> None:
    assert own_shards(run[0], run[1], None) == run[1].resolve()
    assert own_shards(run[0], others, None) is None


def test_the_verb_prints_and_keeps_an_evaluation(run: Run, others: Path) -> None:
    done = ichsearch("evaluate", run[0].root, "--trial", TRIAL, "--data", others, "--smooth")
    assert done.returncode == 0, done.stderr
    assert f"{KNOWN} patients are left out" in done.stdout
    assert "specificity_90" in done.stdout
    (path,) = run[0].evaluations.glob("*-all-smoothed.json")
    assert json.loads(path.read_text())["trials"] == [TRIAL]
    assert_refused(ichsearch("evaluate", run[0].root, "--data", run[1]), 4, "--split test")

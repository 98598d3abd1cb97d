"""Rules that see no image: fitted on training patients, joined by slice, judged on the trials' slices."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from judged_runs import add_judged_trial
from slice_sets import Row, make_rows, split_of, write_shards

from ichsearch.data.cache import open_slices
from ichsearch.data.split import VALIDATION_FOLD
from ichsearch.data.tasks import Task, task_columns, task_labels
from ichsearch.errors import DataError
from ichsearch.files import read_json, write_json
from ichsearch.labels import LABELS, SUBTYPES
from ichsearch.report.baseline_rules import METADATA, RULES, WHERE, position_baseline
from ichsearch.report.leaderboard import read_leaderboard
from ichsearch.report.ranking import Ranking, rank_trials
from ichsearch.report.summary import summarise, summary_text
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.schema import metadata_schema
from ichsearch.train.metrics import Metric
from ichsearch.train.setup import parts_of


def test_the_position_baseline_is_the_prevalence_in_a_twentieth_drawn_to_the_mean() -> None:
    position = np.array([0.0, 0.01, 0.049, 0.05, 0.5, 1.0], np.float32)
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 1], [0, 0], [1, 0]], np.float32)
    overall = np.array([3 / 6, 1 / 6])
    predicted = position_baseline(position, labels, np.array([0.02, 0.07, 0.3, 0.97, 1.0], np.float32))
    expected = [
        (np.array([2, 0]) + 10 * overall) / 13,  # the first bin has 3 slices
        (np.array([0, 1]) + 10 * overall) / 11,
        overall,  # nobody trained there
        (np.array([1, 0]) + 10 * overall) / 11,
        (np.array([1, 0]) + 10 * overall) / 11,  # 1 belongs to the last bin
    ]
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)


def test_a_position_is_in_the_same_bin_however_it_was_rounded() -> None:
    position = np.arange(101) / 100
    labels = np.arange(101)[:, None] % 3 == 0
    expected = position_baseline(position, labels.astype(np.float32), position)
    for rounded in (position.astype(np.float32), position.astype(np.float32).astype(np.float64), position - 1e-8):
        np.testing.assert_array_equal(position_baseline(rounded, labels.astype(np.float32), rounded), expected)
    assert len(np.unique(expected)) > 1


def signal_rows(patients: int = 60) -> list[Row]:
    """Slices whose tube current tells whether they bleed, in some; the header says nothing else."""
    rows = make_rows(patients=patients, slices=6, size=32, unlabelled_patients=2)
    rng = np.random.default_rng(0)
    for row in rows:
        row["tube_current_ma"] = None if rng.random() < 0.2 else 100.0 * (row["any"] or 0) + rng.normal(200, 20)
    return rows


class Run:
    """A run folder with one trial on real shards; its model is as good as `skill` says."""

    def __init__(
        self, root: Path, rows: list[Row], *, skill: float = 0.8, task: Task = "multilabel", metric: Metric
    ) -> None:
        self.folder, self.shards, self.task = RunFolder(root / "run"), root / "shards", task
        write_shards(self.shards, rows, 32)
        slices = open_slices(self.shards, 32)
        self.split = split_of(slices)
        write_json(self.folder.split, self.split.model_dump())
        self.parts = parts_of(slices, self.split, 0.0, task)
        table = slices.table.iloc[self.parts.validation]
        frame = table[["slice", "patient"]].reset_index(drop=True)
        truth = slices.labels[self.parts.validation][:, task_columns(task)]
        for column, label in enumerate(task_labels(task)):
            frame[f"label_{label}"] = truth[:, column].astype(np.int8)
            frame[f"probability_{label}"] = (0.5 + skill * (truth[:, column] - 0.5)).astype(np.float32)
        self.slices, self.frame = slices, frame
        add_judged_trial(self.folder, "0000", frame, task=task, metric=metric)

    def rank(self) -> Ranking:
        return rank_trials(self.folder, self.shards)

    def predictions(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder.baseline(name))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    return Run(tmp_path, signal_rows(), metric="auroc_any")


def test_baselines_stand_in_the_form_of_a_trial_on_the_same_slices(run: Run) -> None:
    ranking = run.rank()
    assert list(ranking.baselines) == ["prevalence", "position", "metadata", "position_metadata"]
    for name in ranking.baselines:
        frame = run.predictions(name)
        assert list(frame.columns) == list(run.frame.columns)
        same = ["slice", "patient", *(f"label_{label}" for label in LABELS)]
        pd.testing.assert_frame_equal(frame[same], run.frame[same], check_dtype=False)


def test_the_prevalence_and_the_position_are_those_of_the_training_patients(run: Run) -> None:
    run.rank()
    training, position = run.slices.labels[run.parts.train], run.slices.relative_position
    prevalence, of_position = (
        run.predictions(name)[[f"probability_{label}" for label in LABELS]].to_numpy()
        for name in ("prevalence", "position")
    )
    np.testing.assert_allclose(prevalence, np.tile(training.mean(axis=0), (len(prevalence), 1)), rtol=1e-6)
    expected = position_baseline(position[run.parts.train], training, position[run.parts.validation])
    np.testing.assert_allclose(of_position, expected, rtol=1e-6)


def test_the_forest_finds_what_the_header_tells(run: Run) -> None:
    baselines = run.rank().baselines
    assert baselines["metadata"].value > 0.85
    assert baselines["position_metadata"].value > 0.85
    assert baselines["prevalence"].value == 0.5


def test_the_forest_is_joined_by_slice_not_by_row(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slices in shards of another order: the same numbers, though every row number has changed."""
    first = run.rank()
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "other-cache"))
    rows = signal_rows()
    other = Run(tmp_path / "other", [*rows[180:], *rows[:180]], metric="auroc_any")
    second = other.rank()
    assert second.baselines["metadata"].value == pytest.approx(first.baselines["metadata"].value, abs=0.05)
    assert first.baselines["position"].value == pytest.approx(second.baselines["position"].value, abs=1e-6)


def test_what_validation_patients_have_is_not_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header tells the truth of validation and test patients alone: whoever learnt from them would know it."""
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    rows = make_rows(patients=60, slices=6, size=32)
    plain = Run(tmp_path / "plain", rows, metric="auroc_any")
    for row in rows:
        judged = plain.split.patients[row["patient"]] <= VALIDATION_FOLD
        row["tube_current_ma"] = 100.0 + 100.0 * (judged and row["any"])
    told = Run(tmp_path / "told", rows, metric="auroc_any")
    assert told.rank().baselines["metadata"].value < 0.7


def test_a_model_that_does_not_beat_them_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    run = Run(tmp_path, signal_rows(), skill=0.8, metric="auroc_any")
    rng = np.random.default_rng(0)
    guess = run.frame.copy()
    for label in LABELS:
        guess[f"probability_{label}"] = rng.random(len(guess)).astype(np.float32)
    add_judged_trial(run.folder, "0001", guess)
    ranking = run.rank()
    assert set(ranking.trials["0000"].beats) == set(RULES)
    assert ranking.trials["0001"].beats == ()
    table = read_leaderboard(run.folder).set_index("trial")
    assert table.loc["0000", "beats_baselines"]
    assert not table.loc["0001", "beats_baselines"]
    assert table.loc[list(RULES), "beats_baselines"].isna().all()


def test_baselines_are_rows_without_a_rank(run: Run) -> None:
    run.rank()
    table = read_leaderboard(run.folder).set_index("trial")
    rules = table.loc[list(RULES)]
    assert (rules["status"] == "baseline").all()
    assert rules[["rank", "place", "tied", "p_holm", "backbone", "seconds"]].isna().all(axis=None)
    assert rules[["score", "low", "high", "log_loss", "log_loss_low", "auroc_any", "difference"]].notna().all(axis=None)
    assert table["score"].is_monotonic_decreasing, "they stand among the trials"
    assert table.loc["0000", ["rank", "place"]].tolist() == [1, 1]


def test_the_summary_names_the_best_rule(run: Run) -> None:
    summary = summarise(run.folder, run.shards)
    assert summary.rival is not None
    assert summary.rival.name in ("metadata", "position_metadata")
    assert summary.rival.difference == pytest.approx(summary.score - summary.rival.score)
    assert summary.rival.low <= summary.rival.difference <= summary.rival.high
    assert "it beats them all" in summary_text(summary)
    unsure = summary_text(summary._replace(unbeaten=("position", "metadata")))
    assert "it is NOT shown to beat position, metadata" in unsure


def test_less_loss_beats_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    run = Run(tmp_path, signal_rows(), skill=0.9, metric="log_loss")
    ranking = run.rank()
    assert set(ranking.trials["0000"].beats) == set(RULES)
    assert all(rule.difference > 0 for rule in ranking.baselines.values())
    assert "log_loss 0.051" in summary_text(summarise(run.folder, None))


@pytest.mark.parametrize(("task", "metric"), [("any", "auroc_any"), ("positives", "accuracy_multi")])
def test_they_answer_the_trials_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task, metric: Metric
) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    run = Run(tmp_path, signal_rows(), task=task, metric=metric)
    run.rank()
    for name in RULES:
        frame = run.predictions(name)
        assert list(frame.columns) == list(run.frame.columns)
        assert len(frame) == len(run.parts.validation)
    fitted = read_json(run.folder.baselines / "baselines.json")["fitted_on"]
    assert fitted["slices"] == len(run.parts.train)


def test_they_are_kept_and_their_features_listed(run: Run) -> None:
    run.rank()
    written = {path.name: path.stat().st_mtime_ns for path in run.folder.baselines.iterdir()}
    run.rank()
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.baselines.iterdir()} == written
    saved: dict[str, Any] = read_json(run.folder.baselines / "baselines.json")
    assert saved["baselines"]["metadata"]["features"] == list(METADATA)
    assert saved["fitted_on"]["patients"] == run.slices.table["patient"].iloc[run.parts.train].nunique()


def test_the_features_are_all_of_the_frame_but_identity_and_truth() -> None:
    left_out = {"slice", "patient", "patient_known", "study", "series", "stored_hash", *LABELS}
    assert {*WHERE, *METADATA} - {"relative_position"} == set(metadata_schema(32).names) - left_out
    assert not set(WHERE) & set(METADATA)


def test_other_data_are_refused(run: Run, tmp_path: Path) -> None:
    write_shards(tmp_path / "others", make_rows(patients=30, seed=5), 32)
    with pytest.raises(DataError, match=r"data of the run.*--data"):
        rank_trials(run.folder, tmp_path / "others")


def test_a_subtype_that_the_fold_lacks_is_undefined_for_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    rows = signal_rows()
    for row in rows:
        if row["any"]:
            row.update({label: int(label == "subdural") for label in SUBTYPES})
    run = Run(tmp_path, rows, metric="auroc_any")
    run.rank()
    table = read_leaderboard(run.folder)
    assert len(table) == 1 + len(RULES)
    assert table["auroc_epidural"].isna().all()
    assert table["auroc_subdural"].notna().all()

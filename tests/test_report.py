"""Reports: the leaderboard's form and order, the rule that sees no image, and how sure a difference is."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from sklearn.metrics import log_loss, roc_auc_score
from slice_sets import as_slice_set, make_rows, split_of, write_shards

from ichsearch.data.cache import open_slices
from ichsearch.data.tasks import Task
from ichsearch.errors import NoTrialFinishedError
from ichsearch.files import write_json
from ichsearch.labels import LABELS, SUBTYPES
from ichsearch.report import bootstrap
from ichsearch.report.baselines import position_baseline
from ichsearch.report.bootstrap import (
    Interval,
    auroc_difference,
    auroc_interval,
    log_loss_interval,
    patient_auroc_interval,
    weighted_auroc,
)
from ichsearch.report.leaderboard import COLUMNS, METRICS, as_cell, read_leaderboard, write_leaderboard
from ichsearch.report.lr_plot import draw_curve
from ichsearch.report.summary import summarise, summary_text
from ichsearch.search.run_folder import RunFolder, TrialRecord
from ichsearch.train.config import InputConfig, TrialConfig
from ichsearch.train.lr_finder import read_curve
from ichsearch.train.metrics import Metric, score
from ichsearch.train.setup import parts_of
from ichsearch.train.trial import TrialResult

STABLE_COLUMNS = (
    "rank,trial,status,reason,metric,score,log_loss,accuracy_multi,auroc_epidural,auroc_intraparenchymal,"
    "auroc_intraventricular,auroc_subarachnoid,auroc_subdural,auroc_any,average_precision_epidural,"
    "average_precision_intraparenchymal,average_precision_intraventricular,average_precision_subarachnoid,"
    "average_precision_subdural,average_precision_any,sensitivity_at_90_any,sensitivity_at_95_any,"
    "patient_sensitivity_at_90_any,patient_sensitivity_at_95_any,calibration_error_any,patient_auroc_any,auroc_mean,"
    "patient_auroc_mean,task,backbone,batch_size,size,channels,head,augment,augmentations,min_brain,imbalance,"
    "label_smoothing,weight_decay,clip_norm,precision,lr_schedule,rise,start_divisor,end_divisor,lr_spread,frozen_epochs,lr,"
    "lr_factor,lr_suggestion,weights,parent,epochs,epochs_trained,restarted,best_epoch,seconds,images_per_s,micro_batch,"
    "memory_mb,parameters_m,checkpoint"
)


def add_trial(
    folder: RunFolder,
    name: str,
    value: float | None,
    *,
    metric: Metric = "auroc_any",
    reason: str = "",
    weights: str = "scratch",
    scores: dict[str, float | None] | None = None,
    task: Task = "multilabel",
) -> None:
    """Leave the files of a trial: finished with `value`, or failed for `reason` when that is None."""
    config = TrialConfig(backbone="resnet18", batch_size=16, size=32, epochs=3, lr=0.004, metric=metric, task=task)
    folder.write_record(
        TrialRecord(
            trial=name,
            status="failed" if value is None else "running",
            reason=reason,
            parameters={"lr_factor": 2.0},
            config=config.model_dump(),
            lr_suggestion=0.002,
            weights=weights,
            epochs=config.epochs,
        )
    )
    if value is not None:
        metrics = scores or dict.fromkeys(METRICS, 0.5) | {metric: value}
        result = TrialResult(
            value, 2, metrics, seconds=12.3456, images_per_s=100.0, parameters_m=11.2, micro_batch=16, epochs_trained=3
        )
        write_json(folder.trial(name) / "metrics.json", {"epochs": [], "result": result.__dict__})
        (folder.trial(name) / "weights.safetensors").touch()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def read_back(folder: RunFolder) -> pd.DataFrame:
    write_leaderboard(folder)
    return pd.read_csv(folder.leaderboard)


def test_the_columns_are_stable() -> None:
    assert ",".join(COLUMNS) == STABLE_COLUMNS


def test_pandas_reads_numbers_as_numbers(folder: RunFolder) -> None:
    add_trial(folder, "00001", 0.875)
    table = read_back(folder)
    assert ",".join(table.columns) == STABLE_COLUMNS
    row = table.iloc[0]
    assert (row["rank"], row["score"], row["auroc_any"], row["lr"], row["batch_size"]) == (1, 0.875, 0.875, 0.004, 16)
    assert (row["lr_factor"], row["lr_suggestion"], row["best_epoch"], row["epochs"]) == (2.0, 0.002, 2, 3)
    assert (row["status"], row["weights"], row["checkpoint"]) == (
        "finished",
        "scratch",
        "trials/00001/weights.safetensors",
    )
    assert table["rank"].dtype == np.int64


def test_a_trial_whose_weights_were_not_kept_has_no_checkpoint(folder: RunFolder) -> None:
    add_trial(folder, "00001", 0.875)
    (folder.trial("00001") / "weights.safetensors").unlink()
    assert read_back(folder)["checkpoint"].isna().all()


@pytest.mark.parametrize(("metric", "order"), [("auroc_any", ["b", "c", "a"]), ("log_loss", ["a", "c", "b"])])
def test_the_best_trial_comes_first_in_both_directions(folder: RunFolder, metric: Metric, order: list[str]) -> None:
    for name, value in [("a", 0.2), ("b", 0.9), ("c", 0.4)]:
        add_trial(folder, name, value, metric=metric)
    table = read_leaderboard(folder)
    assert table["trial"].tolist() == order
    assert table["rank"].tolist() == [1, 2, 3]


def test_equal_scores_share_a_rank(folder: RunFolder) -> None:
    for name, value in [("a", 0.5), ("b", 0.9), ("c", 0.9)]:
        add_trial(folder, name, value)
    table = read_leaderboard(folder)
    assert list(zip(table["trial"], table["rank"], strict=True)) == [("b", 1), ("c", 1), ("a", 3)]


def test_a_failed_trial_comes_last_with_its_reason_and_no_rank(folder: RunFolder) -> None:
    add_trial(folder, "00001", None, reason="diverged: the loss is not finite in epoch 1", metric="log_loss")
    add_trial(folder, "00002", 0.7, metric="log_loss")
    add_trial(folder, "00003", 0.6, metric="log_loss")
    table = read_back(folder)
    assert table["trial"].tolist() == [3, 2, 1]
    last = table.iloc[-1]
    assert (last["status"], last["reason"]) == ("failed", "diverged: the loss is not finite in epoch 1")
    assert last[["rank", "score", "auroc_any", "seconds", "checkpoint"]].isna().all()
    assert last["backbone"] == "resnet18"


def test_a_run_of_failed_trials_only_has_no_rank(folder: RunFolder) -> None:
    add_trial(folder, "a", None, reason="out_of_memory")
    add_trial(folder, "b", None, reason="diverged")
    table = read_back(folder)
    assert table["trial"].tolist() == ["a", "b"]
    assert table["rank"].isna().all()


def test_a_run_without_trials_has_a_heading_only(folder: RunFolder) -> None:
    table = read_back(folder)
    assert len(table) == 0
    assert ",".join(table.columns) == STABLE_COLUMNS


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_starts_a_formula(folder: RunFolder, start: str) -> None:
    evil = f'{start}HYPERLINK("http://x","a, b")'
    add_trial(folder, "a", None, reason=evil, weights=evil)
    write_leaderboard(folder)
    with folder.leaderboard.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["reason"] == row["weights"] == f"'{evil}"


def test_harmless_cells_stay_as_they_are() -> None:
    assert [as_cell(text) for text in ("", "diverged", "a=b", "scratch (-1)")] == [
        "",
        "diverged",
        "a=b",
        "scratch (-1)",
    ]


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


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_weighted_auroc_is_that_of_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    truth = rng.random(80) < 0.4
    scores = rng.integers(levels, size=80) + truth  # with 3 levels nearly all scores are tied
    of_patient = rng.permutation(np.arange(80) % 30)
    weights = rng.integers(0, 4, (25, 30)).astype(np.float64)
    expected = [roc_auc_score(truth, scores, sample_weight=row[of_patient]) for row in weights]
    np.testing.assert_allclose(weighted_auroc(truth, scores, of_patient)(weights), expected, rtol=1e-12)


def test_the_weighted_auroc_of_one_class_is_not_a_number() -> None:
    weights = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], np.float64)
    truth = np.array([True, True, False, False])
    result = weighted_auroc(truth, np.array([0.9, 0.1, 0.5, 0.2]), np.arange(4))(weights)
    assert np.isnan(result[:2]).all()
    assert result[2] == 1


def cohort(patients: int, seed: int = 0) -> dict[str, Any]:
    """Slices of patients: truth, scores that know it well, a baseline that hardly does, and patient names."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(patients * 10) < 0.4).astype(np.float64)
    return {
        "truth": truth,
        "scores": truth + rng.normal(0, 0.8, len(truth)) + np.repeat(rng.normal(0, 0.5, patients), 10),
        "baseline": 0.2 * truth + rng.normal(0, 1, len(truth)),
        "patients": np.repeat([f"p{number:03d}" for number in range(patients)], 10),
    }


def difference(data: dict[str, Any], seed: int = 0) -> Interval:
    interval = auroc_difference(**data, seed=seed)
    assert interval is not None
    return interval


def test_the_interval_is_round_the_difference_of_the_aurocs() -> None:
    data = cohort(40)
    interval = difference(data)
    value = roc_auc_score(data["truth"], data["scores"]) - roc_auc_score(data["truth"], data["baseline"])
    assert interval.value == pytest.approx(value)
    assert 0 < interval.low < value < interval.high < 1
    assert interval.resamples == 2000


def test_the_interval_is_the_same_each_time() -> None:
    assert difference(cohort(15)) == difference(cohort(15))
    assert difference(cohort(15), seed=1) != difference(cohort(15), seed=2)


def test_fewer_patients_give_a_wider_interval() -> None:
    def width(patients: int) -> float:
        interval = difference(cohort(patients))
        return interval.high - interval.low

    assert width(6) > width(24) > width(96)
    assert width(6) > 2 * width(96)


def test_more_slices_of_the_same_patients_make_it_no_surer() -> None:
    data = cohort(12)
    tenfold = {name: np.tile(values, 10) for name, values in data.items()}
    assert difference(tenfold) == pytest.approx(difference(data))


def test_nothing_differs_from_itself() -> None:
    data = cohort(10)
    assert difference(data | {"baseline": data["scores"]})[:3] == (0, 0, 0)


def test_resamples_of_one_class_are_left_out() -> None:
    data = cohort(5)
    data["truth"] = (data["patients"] == "p000").astype(np.float64)  # a resample without this patient has one class
    interval = difference(data)
    assert interval.resamples == pytest.approx(2000 * (1 - 0.8**5), rel=0.1)
    assert np.isfinite([interval.low, interval.high]).all()


def resampled(data: dict[str, Any], statistic: Callable[[list[int]], float]) -> tuple[float, float]:
    """The percentile interval of a statistic of row numbers, resample by resample, patients drawn with repetition."""
    names = np.unique(data["patients"])
    rows_of = [np.flatnonzero(data["patients"] == name).tolist() for name in names]
    rng = np.random.default_rng(0)
    values = []
    for counts in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=bootstrap.RESAMPLES):
        values.append(statistic([row for patient, count in enumerate(counts) for row in rows_of[patient] * count]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that scikit-learn can go through them one by one."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)


@pytest.mark.usefixtures("few_resamples")
def test_the_interval_of_a_slice_auroc_is_that_of_resamples_drawn_one_by_one() -> None:
    data = cohort(12)
    interval = auroc_interval(data["truth"], data["scores"], data["patients"])
    expected = resampled(data, lambda rows: float(roc_auc_score(data["truth"][rows], data["scores"][rows])))
    assert interval is not None
    assert interval.value == pytest.approx(roc_auc_score(data["truth"], data["scores"]))
    assert interval[1:] == pytest.approx((*expected, 200))


@pytest.mark.usefixtures("few_resamples")
def test_the_interval_of_the_log_loss_is_that_of_resamples_drawn_one_by_one() -> None:
    data = cohort(9)
    truth = np.stack([data["truth"], data["truth"][::-1]], axis=1)
    predicted = 1 / (1 + np.exp(-np.stack([data["scores"], data["baseline"]], axis=1)))

    def loss(rows: list[int]) -> float:
        subtype, whole = (log_loss(truth[rows, i], predicted[rows, i], labels=[0, 1]) for i in range(2))
        return float(subtype + 2 * whole) / 3

    interval = log_loss_interval(truth, predicted, ("subdural", "any"), data["patients"])
    assert interval is not None
    assert interval.value == pytest.approx(loss(list(range(90))))
    assert interval[1:] == pytest.approx((*resampled(data, loss), 200))


@pytest.mark.usefixtures("few_resamples")
def test_the_interval_of_a_patient_auroc_resamples_whole_patients() -> None:
    data = cohort(30)
    data["truth"] *= np.repeat(np.arange(30) % 2, 10)  # every second patient is healthy
    interval = patient_auroc_interval(data["truth"], data["scores"], data["patients"])
    truth = data["truth"].reshape(30, 10).max(axis=1)
    tops = np.sort(data["scores"].reshape(30, 10), axis=1)[:, -3:].mean(axis=1)
    each = {"patients": np.unique(data["patients"])}
    expected = resampled(each, lambda rows: float(roc_auc_score(truth[rows], tops[rows])))
    assert interval is not None
    assert interval.value == pytest.approx(roc_auc_score(truth, tops))
    assert interval[1:] == pytest.approx((*expected, 200))


def test_one_class_has_no_interval() -> None:
    data = cohort(5)
    for truth in (np.zeros(50), np.ones(50)):
        assert auroc_difference(**data | {"truth": truth}) is None
        assert auroc_interval(truth, data["scores"], data["patients"]) is None
        assert patient_auroc_interval(truth, data["scores"], data["patients"]) is None


def test_the_curve_is_drawn_as_a_png(tmp_path: Path) -> None:
    config = InputConfig(backbone="resnet18", batch_size=16, size=64)
    lrs = np.logspace(-7, 1, 100)
    curve = read_curve(config, lrs.tolist(), ((np.log10(lrs) + 2) ** 2 + 0.3).tolist(), 100)
    draw_curve(curve, tmp_path / "curve.png")
    picture = imread(tmp_path / "curve.png")
    assert picture.shape == (630, 1050, 4)
    assert picture[..., :3].std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_curve_that_ended_at_once_is_drawn_too(tmp_path: Path, points: int) -> None:
    config = InputConfig(backbone="resnet18", batch_size=16, size=64)
    draw_curve(read_curve(config, [1e-7, 1e-6][:points], [0.7, 3.0][:points], 100), tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png").shape == (630, 1050, 4)


def test_the_summary_sets_the_best_trial_beside_the_position(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    rows = make_rows(patients=45, slices=6, size=32, unlabelled_patients=2)
    write_shards(tmp_path / "shards", rows, 32)
    slices = open_slices(tmp_path / "shards", 32)
    split = split_of(slices)
    write_json(folder.split, split.model_dump())
    parts = parts_of(slices, split, 0.0)
    truth = slices.labels[parts.validation]
    probabilities = 0.1 + 0.8 * truth
    add_trial(folder, "worse", 0.6)
    table = slices.table.iloc[parts.validation]
    scores = score(truth, probabilities, LABELS, table["patient"].to_numpy(np.object_))
    add_trial(folder, "best", 1.0, scores=scores)
    predictions = pd.DataFrame({"slice": table["slice"].to_numpy(), "patient": table["patient"].to_numpy()})
    for column, label in enumerate(LABELS):
        predictions[f"probability_{label}"] = probabilities[:, column]
    predictions.to_parquet(folder.trial("best") / "predictions.parquet")

    summary = summarise(folder, tmp_path / "shards")
    assert (summary.trial, summary.score, summary.slices) == ("best", 1.0, len(truth))
    assert summary.compared is not None
    assert (summary.compared.label, summary.compared.auroc) == ("any", 1.0)
    assert summary.patients == table["patient"].nunique()
    position = as_slice_set(rows, 32).relative_position
    baseline = position_baseline(position[parts.train], slices.labels[parts.train], position[parts.validation])
    expected = roc_auc_score(truth[:, 5], baseline[:, 5])
    assert summary.compared.position_auroc == pytest.approx(expected)
    assert summary.compared.difference.value == pytest.approx(1 - expected)
    assert (folder.root / "summary.json").is_file()
    assert "it beats a rule that sees no image" in summary_text(summary)
    unsure = summary.compared._replace(difference=summary.compared.difference._replace(low=-0.01))
    assert "is not shown to beat" in summary_text(summary._replace(compared=unsure))


@pytest.mark.parametrize("kinds", [5, 1])
def test_the_summary_of_subtypes_judges_the_most_frequent_or_none(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: int
) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))
    rows = make_rows(patients=45, slices=6, size=32)
    for row in rows if kinds == 1 else []:  # one subtype only: nothing to tell apart
        row.update({label: int(label == "subdural" and bool(row["any"])) for label in SUBTYPES})
    write_shards(tmp_path / "shards", rows, 32)
    slices = open_slices(tmp_path / "shards", 32)
    split = split_of(slices)
    write_json(folder.split, split.model_dump())
    parts = parts_of(slices, split, 0.0, "positives")
    table, truth = slices.table.iloc[parts.validation], slices.labels[parts.validation][:, :5]
    scores = score(truth, 0.1 + 0.8 * truth, SUBTYPES, table["patient"].to_numpy(np.object_))
    add_trial(folder, "best", 1.0, metric="accuracy_multi", scores=scores, task="positives")
    predictions = pd.DataFrame({"slice": table["slice"].to_numpy(), "patient": table["patient"].to_numpy()})
    for column, label in enumerate(SUBTYPES):
        predictions[f"label_{label}"], predictions[f"probability_{label}"] = truth[:, column], truth[:, column]
    predictions.to_parquet(folder.trial("best") / "predictions.parquet")

    summary = summarise(folder, tmp_path / "shards")

    assert (folder.root / "summary.json").is_file()
    assert "accuracy_multi 1.000" in summary_text(summary)
    if kinds == 1:
        assert summary.compared is None
        assert "nothing to compare it with" in summary_text(summary)
    else:
        assert summary.compared is not None
        assert truth[:, SUBTYPES.index(summary.compared.label)].sum() == truth.sum(axis=0).max()


def test_a_run_without_a_finished_trial_has_no_summary(folder: RunFolder, tmp_path: Path) -> None:
    add_trial(folder, "a", None, reason="diverged")
    with pytest.raises(NoTrialFinishedError):
        summarise(folder, tmp_path / "shards")

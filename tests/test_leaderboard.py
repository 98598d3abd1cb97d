"""The leaderboard's form and order: stable columns, numbers as numbers, nothing that a spreadsheet would run."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from judged_runs import add_judged_trial, add_trial, draw_truth, predicted
from rich.console import Console
from test_cli import ichsearch

from ichsearch.errors import ConfigError
from ichsearch.files import write_json
from ichsearch.report.leaderboard import COLUMNS, as_cell, read_leaderboard, write_leaderboard
from ichsearch.report.leaderboard_table import as_objects, as_table
from ichsearch.report.pareto import pareto_front
from ichsearch.report.ranking import rank_trials
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import Metric

STABLE_COLUMNS = (
    "rank,place,trial,status,reason,metric,score,low,high,difference,difference_low,difference_high,p_holm,tied,"
    "beats_baselines,confirmed,confirmed_mean,confirmed_sd,test_score,test_low,test_high,log_loss,log_loss_low,log_loss_high,accuracy_multi,accuracy_multi_low,accuracy_multi_high,"
    "auroc_epidural,auroc_intraparenchymal,auroc_intraventricular,auroc_subarachnoid,auroc_subdural,auroc_any,"
    "auroc_any_low,auroc_any_high,average_precision_epidural,average_precision_intraparenchymal,"
    "average_precision_intraventricular,average_precision_subarachnoid,average_precision_subdural,"
    "average_precision_any,average_precision_any_low,average_precision_any_high,"
    "sensitivity_at_90_any,sensitivity_at_90_any_low,sensitivity_at_90_any_high,"
    "sensitivity_at_95_any,sensitivity_at_95_any_low,sensitivity_at_95_any_high,"
    "patient_sensitivity_at_90_any,patient_sensitivity_at_95_any,calibration_error_any,"
    "patient_auroc_any,patient_auroc_any_low,patient_auroc_any_high,auroc_mean,auroc_mean_low,auroc_mean_high,"
    "patient_auroc_mean,patient_auroc_mean_low,patient_auroc_mean_high,"
    "task,split,backbone,batch_size,size,channels,head,augment,augmentations,min_brain,imbalance,"
    "label_smoothing,weight_decay,clip_norm,precision,lr_schedule,rise,start_divisor,end_divisor,lr_spread,frozen_epochs,lr,"
    "lr_factor,lr_suggestion,weights,parent,epochs,epochs_trained,restarted,best_epoch,seconds,chain_seconds,images_per_s,micro_batch,"
    "memory_mb,parameters_m,checkpoint"
)


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


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\t-", "\uff1d"])
def test_no_cell_starts_a_formula(folder: RunFolder, start: str) -> None:
    evil = f'{start}HYPERLINK("http://x","a, b")'
    add_trial(folder, "a", None, reason=evil, weights=evil)
    write_leaderboard(folder)
    with folder.leaderboard.open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["reason"] == row["weights"] == f"'{evil}"
    assert read_leaderboard(folder).loc[0, "reason"] == evil, "only a spreadsheet needs the apostrophe"


def test_harmless_cells_stay_as_they_are() -> None:
    assert [as_cell(text) for text in ("", "diverged", "a=b", "scratch (-1)")] == [
        "",
        "diverged",
        "a=b",
        "scratch (-1)",
    ]


@pytest.fixture
def ranked(folder: RunFolder) -> RunFolder:
    """A good trial, its like, and one that knows nothing; nobody has asked for baselines."""
    truth = draw_truth(60)
    for name, skill in [("0000", 1.5), ("0001", 0.0), ("0002", 1.45)]:
        add_judged_trial(folder, name, predicted(truth, skill, alike=0.5, seed=int(name)))
    rank_trials(folder, None)
    return folder


def test_until_a_run_is_ranked_the_rank_is_the_place_and_intervals_are_empty(folder: RunFolder) -> None:
    add_judged_trial(folder, "0000", predicted(draw_truth(20), 1.0))
    table = read_back(folder)
    assert table[["rank", "place"]].iloc[0].tolist() == [1, 1]
    assert (
        table[["low", "high", "difference", "p_holm", "tied", "beats_baselines", "auroc_any_low"]].isna().all(axis=None)
    )


def test_trials_that_cannot_be_told_from_the_best_share_its_rank(ranked: RunFolder) -> None:
    table = read_back(ranked)
    assert table["rank"].tolist() == [1, 1, 3]
    assert table["place"].tolist() == [1, 2, 3]
    assert table["tied"].tolist() == [True, True, False]
    assert table["p_holm"].isna().tolist() == [True, False, False]
    assert table["difference"].iloc[0] == 0
    assert (table["difference_high"].iloc[2]) < 0
    assert ((table["low"] < table["score"]) & (table["score"] < table["high"])).all()
    assert (table["auroc_any_low"] == table["low"]).all()
    assert table["beats_baselines"].isna().all(), "nothing is said about baselines that there are not"


def test_a_ranking_of_other_trials_is_not_shown(ranked: RunFolder) -> None:
    add_judged_trial(ranked, "0003", predicted(draw_truth(60), 2.0, seed=9))
    table = read_leaderboard(ranked)
    assert table["rank"].tolist() == table["place"].tolist() == [1, 2, 3, 4]
    assert table["trial"].iloc[0] == "0003"
    assert table["difference"].isna().all()
    assert table["low"].notna().tolist() == [False, True, True, True], "what has been computed is shown"


def front(**columns: list[Any]) -> list[bool]:
    table = pd.DataFrame({"metric": "auroc_any", "status": "finished", **columns})
    return list(pareto_front(table, list(columns)))


def test_the_pareto_front_is_what_nobody_beats_in_everything() -> None:
    assert front(log_loss=[0.1, 0.2, 0.3, 0.2], seconds=[9, 5, 6, 5.0]) == [True, True, False, True]
    assert front(auroc_any=[0.9, 0.8, 0.7], seconds=[9.0, 9.0, 1.0]) == [True, False, True]
    assert front(score=[0.9, 0.8], parameters_m=[9.0, 1.0]) == [True, True]
    assert front(log_loss=[0.1, np.nan, 0.2], seconds=[9.0, 1.0, 9.0]) == [True, False, False]


def test_baselines_and_failed_trials_are_on_no_front() -> None:
    table = pd.DataFrame(
        {"metric": "auroc_any", "status": ["finished", "baseline", "failed"], "auroc_any": [0.5, 0.9, 0.8]}
    )
    assert list(pareto_front(table, ["auroc_any"])) == [True, False, False]


@pytest.mark.parametrize("column", ["speed", "backbone"])
def test_a_front_needs_columns_of_numbers(ranked: RunFolder, column: str) -> None:
    with pytest.raises(ConfigError, match=f"{column}.*seconds"):
        pareto_front(read_leaderboard(ranked), ["log_loss", column])


def shown(board: pd.DataFrame, *more: str) -> str:
    printed = Console(width=200, record=True, file=io.StringIO())
    printed.print(as_table(board, more))
    return printed.export_text()


def test_the_table_shows_ranks_intervals_and_reasons(ranked: RunFolder) -> None:
    add_trial(ranked, "0003", None, reason="[red]out_of_memory[/]")
    rank_trials(ranked, None)
    text = shown(read_leaderboard(ranked), "log_loss")
    lines = {words[1]: line for line in text.splitlines() if len(words := line.split()) > 3}
    assert lines["0002"].split()[0] == "1"
    assert lines["0001"].split()[0] == "3"
    assert re.search(r"0\.\d{3} +0\.\d{3} to 0\.\d{3} +-0\.\d{3} +<?0\.0", lines["0001"])
    assert "failed [red]out_of_memory[/]" in text, "what a trial says is no markup"
    assert text.splitlines()[1].split()[-3:] == ["log_loss", "epochs", "chain_seconds"]


def test_an_empty_leaderboard_is_a_table_too(folder: RunFolder) -> None:
    assert "rank" in shown(read_leaderboard(folder))


def test_rows_are_objects_whose_empty_cells_are_null(ranked: RunFolder) -> None:
    rows = as_objects(read_leaderboard(ranked))
    assert [row["rank"] for row in rows] == [1, 1, 3]
    assert rows[0]["p_holm"] is None
    assert rows[0]["tied"] is True
    assert rows[0]["score"] == read_leaderboard(ranked)["score"].iloc[0]
    json.dumps(rows, allow_nan=False)


def test_the_verb_ranks_prints_and_filters(ranked: RunFolder) -> None:
    refused = ichsearch("leaderboard", ranked.root)
    assert refused.returncode == 4, "a folder without a space is no run"
    assert "RUN must be the folder of a run" in refused.stderr
    ranked.space.touch()
    write_json(ranked.split, {"seed": 0, "fingerprint": "", "patients": {}, "unreliable": {}})
    ranked.ranking.unlink()
    done = ichsearch("leaderboard", ranked.root, "--pareto", "score,seconds", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["trial"] for row in told["rows"]] == [told["summary"]["trial"]], "all trials took the same time"
    assert told["summary"]["tied"] == ["0002" if told["summary"]["trial"] == "0000" else "0000"]
    assert ranked.ranking.is_file()
    assert len(pd.read_csv(ranked.leaderboard)) == 3

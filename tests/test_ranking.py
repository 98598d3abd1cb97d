"""Who shares the first rank, who beats the baselines, and that neither is said too lightly."""

from pathlib import Path

import pandas as pd
import pytest
from judged_runs import add_judged_trial, add_trial, draw_truth, predicted

from ichsearch.errors import DataError, NoTrialFinishedError
from ichsearch.report import statistics
from ichsearch.report.leaderboard import read_leaderboard
from ichsearch.report.ranking import Ranking, known_ranking, rank_trials
from ichsearch.report.statistics import trial_statistics
from ichsearch.report.summary import summarise, summary_text
from ichsearch.search.run_folder import RunFolder
from ichsearch.train.metrics import Metric


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def rank(folder: RunFolder, *skills: float, patients: int = 60, metric: Metric = "auroc_any", seed: int = 0) -> Ranking:
    """Rank trials of these skills; `0000` is the first."""
    truth = draw_truth(patients, seed=seed)
    for number, skill in enumerate(skills):
        frame = predicted(truth, skill, seed=1000 * seed + number, alike=0.7)
        add_judged_trial(folder, f"{number:04d}", frame, metric=metric)
    return rank_trials(folder, None)


@pytest.mark.parametrize("metric", ["auroc_any", "log_loss", "patient_auroc_any", "average_precision_mean"])
def test_like_trials_are_tied_and_a_poor_one_is_not(folder: RunFolder, metric: Metric) -> None:
    ranking = rank(folder, 1.0, 0.98, -0.5, metric=metric, patients=150)
    assert set(ranking.tied) == {"0000", "0001"}
    poor = ranking.trials["0002"]
    assert poor.p is not None
    assert poor.p_holm is not None
    assert poor.p <= poor.p_holm < 0.05
    assert (poor.difference > 0) == (metric == "log_loss")
    assert not poor.difference_low <= 0 <= poor.difference_high


def test_the_best_is_told_from_nobody_by_itself(folder: RunFolder) -> None:
    ranking = rank(folder, 1.0)
    best = ranking.trials["0000"]
    assert (ranking.best, best.tied, best.p, best.p_holm) == ("0000", True, None, None)
    assert best.difference == best.difference_low == best.difference_high == 0


def test_equal_predictions_are_tied_whatever_they_are(folder: RunFolder) -> None:
    frame = predicted(draw_truth(30), 1.0)
    for name in ("a", "b"):
        add_judged_trial(folder, name, frame)
    ranking = rank_trials(folder, None)
    assert (ranking.best, ranking.tied, ranking.trials["b"].p) == ("a", ["a", "b"], 1.0)


def test_too_few_patients_show_nothing(folder: RunFolder) -> None:
    ranking = rank(folder, 3.0, -3.0, patients=7, seed=2)
    assert not ranking.reliable
    assert ranking.tied == ["0000", "0001"]
    assert "needs at least 8 validation patients" in summary_text(summarise(folder, None))


def test_a_ranking_is_kept_and_the_same_each_time(folder: RunFolder, tmp_path: Path) -> None:
    ranking = rank(folder, 1.0, 0.8, 0.2)
    written = folder.ranking.stat().st_mtime_ns
    assert rank_trials(folder, None) == known_ranking(folder) == ranking
    assert folder.ranking.stat().st_mtime_ns == written, "computed again"
    again = rank(RunFolder(tmp_path / "again"), 1.0, 0.8, 0.2)
    assert again == ranking
    for trial in ranking.trials:
        kept = [RunFolder(tmp_path / name).statistics(trial).read_bytes() for name in ("run", "again")]
        assert kept[0] == kept[1]


def test_new_predictions_are_judged_anew(folder: RunFolder) -> None:
    before = rank(folder, 1.0, 0.8)
    old = trial_statistics(folder, "0001")
    add_judged_trial(folder, "0001", predicted(draw_truth(60), 2.5))
    assert known_ranking(folder) is None
    ranking = rank_trials(folder, None)
    assert (before.best, ranking.best) == ("0000", "0001")
    assert trial_statistics(folder, "0001").intervals != old.intervals


def test_statistics_are_read_not_computed_while_nothing_has_changed(folder: RunFolder) -> None:
    rank(folder, 1.0)
    path = folder.statistics("0000")
    path.write_text(path.read_text().replace('"value": ', '"value": 7'))
    interval = trial_statistics(folder, "0000").intervals["auroc_any"]
    assert interval is not None
    assert interval.value > 7
    old = path.read_text().replace(f'"version": {statistics.VERSION}', '"version": 0')
    assert old != path.read_text()
    path.write_text(old)
    interval = trial_statistics(folder, "0000").intervals["auroc_any"]
    assert interval is not None
    assert interval.value < 1


def test_a_run_without_a_finished_trial_is_not_ranked(folder: RunFolder) -> None:
    add_trial(folder, "a", None, reason="diverged")
    with pytest.raises(NoTrialFinishedError):
        rank_trials(folder, None)


def test_a_finished_trial_without_predictions_is_named_and_left_out(folder: RunFolder) -> None:
    rank(folder, 1.0, 0.5, 0.4)
    (folder.trial("0000") / "predictions.parquet").write_bytes(b"no Parquet")
    (folder.trial("0002") / "predictions.parquet").unlink()
    summary = summarise(folder, None)
    assert (summary.trial, summary.unreadable) == ("0001", ("0000", "0002"))
    assert "predictions cannot be read: 0000, 0002" in summary_text(summary)
    board = read_leaderboard(folder).set_index("trial")
    assert board.loc["0001", "place"] == 1
    assert board.loc[["0000", "0002"], "place"].isna().all()
    assert set(board.loc[["0000", "0002"], "reason"]) == {"predictions cannot be read"}
    (folder.trial("0001") / "predictions.parquet").unlink()
    with pytest.raises(DataError, match=r"0000/predictions.parquet"):
        rank_trials(folder, None)


def test_predictions_that_were_changed_after_the_trial_are_left_out(folder: RunFolder) -> None:
    rank(folder, 1.0, 0.5)
    predicted(draw_truth(60), 3.0).to_parquet(folder.trial("0001") / "predictions.parquet", index=False)
    summary = summarise(folder, None)
    assert (summary.trial, summary.unreadable) == ("0000", ("0001",))


def test_trials_of_other_slices_are_not_compared(folder: RunFolder) -> None:
    add_judged_trial(folder, "a", predicted(draw_truth(20), 1.0))
    other = predicted(draw_truth(20), 0.5)
    add_judged_trial(folder, "b", other.assign(slice=other["slice"] + "x"))
    with pytest.raises(DataError, match=r"b/predictions.parquet"):
        rank_trials(folder, None)


def test_the_summary_says_who_cannot_be_told_from_the_best(folder: RunFolder) -> None:
    best = rank(folder, 1.0, 0.98, -0.5, patients=150).best
    text = summary_text(summarise(folder, None))
    assert f"best trial {best} (resnet18): auroc_any 0." in text
    assert "1 of 2 cannot be told from it and share its rank" in text
    assert "rules that see no image: not judged yet" in text
    assert "so its score is optimistic" in text
    assert pd.read_csv(folder.leaderboard)["rank"].tolist() == [1, 1, 3]


def test_the_summary_of_one_trial_and_of_a_clear_winner(folder: RunFolder, tmp_path: Path) -> None:
    rank(folder, 2.0)
    assert "none has finished" in summary_text(summarise(folder, None))
    clear = RunFolder(tmp_path / "clear")
    rank(clear, 2.0, -1.0, patients=150)
    assert "it is better than all 1" in summary_text(summarise(clear, None))

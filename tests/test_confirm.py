"""The best trials are replayed from fresh seeds, go on after an interruption, and open the test fold on record."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from searches import Driver, outlive, private_ray
from sklearn.metrics import roc_auc_score
from slice_sets import make_rows, write_shards
from spaces import write_space
from test_cli import assert_refused, ichsearch

from ichsearch.data.cache import open_slices
from ichsearch.data.split import FOLDS, Split
from ichsearch.errors import AlreadyRunningError
from ichsearch.files import read_json, write_json
from ichsearch.report.confirmation import confirmation_text, out_of_fold
from ichsearch.search.confirm import confirm_run
from ichsearch.search.confirmed import best_trials
from ichsearch.search.events import Event
from ichsearch.search.lease import lease
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.runner import run_search
from ichsearch.search.space_file import load_space
from ichsearch.search.stages import Watchers
from ichsearch.train.config import TrialConfig
from ichsearch.train.trial import run_trial

pytestmark = pytest.mark.usefixtures("ray_local")

SPACE = """\
name: tiny
task: any
trials: 4
epochs: 2
pretrained: no
schedule: SCHEDULE
promotion: {eta: 2, first_epochs: 1}
resources: {cpus_per_trial: 2}
parameters:
  backbone: test_resnet
  batch_size: 8
  size: 32
  channels: hu
  lr: {float: [0.005, 0.05], log: true}
"""
PATIENTS, SLICES = 15, 4
Confirm = Callable[..., list[Event]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, make_rows(patients=PATIENTS, slices=SLICES), 32)
    return folder


def search(folder: Path, shards: Path, schedule: str) -> Path:
    """A run that has ended, the best of it promoted."""
    space = load_space(write_space(folder, SPACE.replace("SCHEDULE", schedule)))
    run = RunFolder(folder / "run")
    run_search(space, shards, run, address=None, extend=False, command=[], watchers=watchers([].append))
    return run.root


@pytest.fixture(scope="module")
def searched(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which each trial had a cycle of its own."""
    return search(tmp_path_factory.mktemp("searched"), shards, "per_rung")


@pytest.fixture(scope="module")
def confirmed(searched: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, of which two trials were confirmed from two seeds by the command."""
    run = Path(shutil.copytree(searched, tmp_path_factory.mktemp("confirmed") / "run"))
    done = ichsearch("confirm", run, "--data", shards, "--top", "2", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> RunFolder:
    """A copy of the ended run."""
    return RunFolder(Path(shutil.copytree(searched, tmp_path / "run")))


@pytest.fixture
def again(confirmed: Path, tmp_path: Path) -> RunFolder:
    """A copy of the confirmed run."""
    return RunFolder(Path(shutil.copytree(confirmed, tmp_path / "again")))


def confirm(
    folder: RunFolder, shards: Path, *, hear: Callable[[Event], None] = lambda event: None, **options: Any
) -> list[Event]:
    """Confirm by the function that the command calls; what was told."""
    told: list[Event] = []

    def tell(event: Event) -> None:
        told.append(event)
        hear(event)

    confirm_run(folder, shards, options, address=None, command=["ichsearch", "confirm"], watchers=watchers(tell))
    return told


def watchers(tell: Callable[[Event], None]) -> Watchers:
    return Watchers(tell, lambda stage, done, total: None, lambda folder: None, lambda curve, path: None)


def table(folder: RunFolder) -> pd.DataFrame:
    return pd.read_csv(folder.confirmed, dtype={"trial": str})


def written(folder: RunFolder, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.root.glob(pattern)}


def test_the_best_trial_of_each_configuration_is_confirmed(confirmed: Path) -> None:
    folder = RunFolder(confirmed)
    scores = {
        record.trial: read_json(folder.trial(record.trial) / "metrics.json")["result"]["score"]
        for record in folder.records()
    }
    best = best_trials(folder, "auroc_any", top=100)
    assert scores[best[0]] == max(scores.values())
    lines = [{record.parent, record.trial} for record in folder.records() if record.parent]
    assert lines
    assert all(len(line & set(best)) == 1 for line in lines), "a promoted trial and its parent are one configuration"
    assert sorted(table(folder)["replay"]) == sorted(f"{trial}-seed{seed}" for trial in best[:2] for seed in (1, 2))


@pytest.fixture
def worker_threads() -> Iterator[None]:
    """As many as a trial's worker has: sums depend on how they are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("worker_threads")
@pytest.mark.parametrize("schedule", ["per_rung", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_replay_is_the_whole_chain_from_another_seed(
    schedule: str, searched: Path, shards: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    run = RunFolder(shutil.copytree(searched, root) if schedule == "per_rung" else search(tmp_path, shards, schedule))
    child = next(record for record in run.records() if record.parent)
    parent = str(child.parent)
    win(run, child.trial)
    confirm(run, shards, top=1, seeds=1)
    before: Path | None = None
    for trial in (parent, child.trial):
        config = TrialConfig.model_validate(read_json(run.trial(trial) / "config.json") | {"seed": 1})
        alone = tmp_path / f"{trial}-seed1"
        run_trial(config, open_slices(shards, 32), split(run), alone, parent=before, device=torch.device("cpu"))
        for name in ("predictions.parquet", "config.json", "lineage.json"):
            assert (run.replay(f"{trial}-seed1") / name).read_bytes() == (alone / name).read_bytes(), name
        before = alone
    assert not (run.replay(f"{parent}-seed1") / "weights.safetensors").exists(), "nothing goes on from there"
    assert read_json(run.replay(f"{child.trial}-seed1") / "lineage.json")["parent"] == f"{parent}-seed1"


def win(folder: RunFolder, trial: str) -> None:
    """Make a trial the best of its run."""
    path = folder.trial(trial) / "metrics.json"
    metrics = read_json(path)
    metrics["result"]["score"] = 2.0
    write_json(path, metrics)


def split(folder: RunFolder) -> Split:
    return Split.model_validate(read_json(folder.split))


def test_the_test_fold_is_scored_by_each_seed_and_their_mean(confirmed: Path, shards: Path) -> None:
    folder = RunFolder(confirmed)
    rows = table(folder)
    slices = open_slices(shards, 32).table
    held_out = set(slices["slice"][split(folder).fold_of(slices) == 0])
    assert held_out
    for trial, replays in rows.groupby("trial"):
        tables = [pd.read_parquet(folder.replay(name) / "held_out.parquet") for name in replays["replay"]]
        assert all(set(one["slice"]) == held_out and len(one) == len(held_out) for one in tables)
        mean = pd.read_parquet(folder.test_predictions(str(trial)))
        expected = sum(one["probability_any"].astype(float) for one in tables) / len(tables)
        pd.testing.assert_series_equal(mean["probability_any"].astype(float), expected, atol=1e-7)
    scores = [read_json(folder.replay(name) / "held_out.json")["auroc_any"] for name in rows["replay"]]
    assert rows["held_out_score"].tolist() == pytest.approx(scores)


def test_the_leaderboard_shows_fresh_seeds_and_the_test_fold(confirmed: Path) -> None:
    folder = RunFolder(confirmed)
    rows = table(folder)
    board = pd.read_csv(folder.leaderboard, dtype={"trial": str}).set_index("trial")
    for trial, replays in rows.groupby("trial"):
        row = board.loc[str(trial)]
        assert row["confirmed"] == len(replays)
        assert row["confirmed_mean"] == pytest.approx(replays["score"].mean())
        assert row["confirmed_sd"] == pytest.approx(replays["score"].std())
        mean = pd.read_parquet(folder.test_predictions(str(trial)))
        assert row["test_score"] == pytest.approx(roc_auc_score(mean["label_any"], mean["probability_any"]))
        assert np.isnan(row["test_low"]), "the test fold has too few patients for an interval"
        assert np.isnan(row["test_high"])
    columns = ["confirmed", "confirmed_mean", "confirmed_sd", "test_score", "test_low", "test_high"]
    assert board.drop(index=rows["trial"].unique())[columns].isna().all(axis=None)
    text = confirmation_text(folder)
    assert len(text.splitlines()) == 3
    assert "from 2 fresh seeds" in text
    assert "95 %" not in text


def test_the_opening_is_on_record_with_its_command(confirmed: Path, shards: Path) -> None:
    folder = RunFolder(confirmed)
    (opening,) = read_json(folder.test_fold)
    assert opening["command"] == f"ichsearch confirm {confirmed} --data {shards} --top 2 --seeds 2"
    assert sorted(opening["trials"]) == sorted(set(table(folder)["trial"]))
    assert pd.Timestamp(opening["when"]).tz is not None


def test_again_nothing_is_trained_or_opened(again: RunFolder, shards: Path) -> None:
    before = written(again, "confirm/*/*") | written(again, "test_fold.json")
    told = confirm(again, shards, top=2, seeds=2)
    assert written(again, "confirm/*/*") | written(again, "test_fold.json") == before
    assert [event.kind for event in told] == ["connecting", "confirming"]
    assert "all replays are done" in told[1].line


def test_another_seed_spares_the_earlier_ones_and_opens_the_test_fold_again(again: RunFolder, shards: Path) -> None:
    before, first = written(again, "confirm/*/held_out.parquet"), read_json(again.test_fold)
    told = confirm(again, shards, top=1, seeds=3)
    now = written(again, "confirm/*/held_out.parquet")
    assert {path: now[path] for path in before} == before
    assert len(now) == len(before) + 1
    openings = read_json(again.test_fold)
    assert openings[:1] == first
    assert [len(openings), openings[1]["trials"]] == [2, best_trials(again, "auroc_any", top=1)]
    (opened,) = [event for event in told if event.kind == "test_fold"]
    assert "it was opened 1 time before" in opened.line


class StoppedError(Exception):
    """Stands for whatever ends a driver."""


def stop_at(kind: str, number: int = 1) -> Callable[[Event], None]:
    seen: list[Event] = []

    def hear(event: Event) -> None:
        seen.extend([event] * (event.kind == kind))
        if len(seen) == number:
            raise StoppedError

    return hear


def test_a_stopped_confirmation_goes_on_to_the_same_numbers(run: RunFolder, confirmed: Path, shards: Path) -> None:
    with pytest.raises(StoppedError):
        confirm(run, shards, hear=stop_at("replayed", 2), top=2, seeds=2)
    ended = [record.name for record in run.replays()]
    before = {name: written(run, f"confirm/{name}/*") for name in ended}
    assert len(ended) == 2
    assert not run.test_fold.exists()
    confirm(run, shards, top=2, seeds=2)
    for name in ended:
        assert before[name].items() <= written(run, f"confirm/{name}/*").items(), "trained twice"
    left_out = ["seconds"]
    pd.testing.assert_frame_equal(
        table(run).drop(columns=left_out), table(RunFolder(confirmed)).drop(columns=left_out), check_exact=True
    )
    for path in confirmed.glob("confirm/*-test.parquet"):
        assert (run.confirm / path.name).read_bytes() == path.read_bytes()


def test_the_record_comes_before_the_first_look(run: RunFolder, shards: Path) -> None:
    with pytest.raises(StoppedError):
        confirm(run, shards, hear=stop_at("test_fold"), top=1, seeds=1)
    assert len(read_json(run.test_fold)) == 1
    assert not list(run.confirm.glob("**/held_out*"))
    assert not list(run.confirm.glob("*.parquet"))
    confirm(run, shards, top=1, seeds=1)
    assert len(read_json(run.test_fold)) == 2, "the second command looks, the first one may have"


def test_out_of_fold_predictions_hold_every_slice_once(run: RunFolder, shards: Path) -> None:
    confirm(run, shards, top=1, seeds=1, folds=True)
    (trial,) = best_trials(run, "auroc_any", top=1)
    assert table(run)["fold"].tolist() == list(range(FOLDS))
    whole = pd.read_parquet(run.out_of_fold_predictions(trial))
    assert sorted(whole["slice"]) == sorted(open_slices(shards, 32).table["slice"])
    score = out_of_fold(run, trial, "auroc_any")
    assert score is not None
    assert score.value == pytest.approx(table(run)["held_out_score"].mean())
    assert score.low <= score.value <= score.high
    for fold, name in zip(table(run)["fold"], table(run)["replay"], strict=True):
        folds = split(run).patients
        judged = {folds[patient] for patient in pd.read_parquet(run.replay(name) / "predictions.parquet")["patient"]}
        held_out = {folds[patient] for patient in pd.read_parquet(run.replay(name) / "held_out.parquet")["patient"]}
        assert (held_out, judged) == ({fold}, {(fold + 1) % FOLDS})


def test_a_replay_that_diverges_is_told_and_opens_nothing(run: RunFolder, shards: Path) -> None:
    for record in run.records():
        hopeless = record.config | {"lr": 100.0, "weight_decay": 1.0, "epochs": 30, "epochs_before": 0}
        run.write_record(record.model_copy(update={"config": hopeless | {"cycle_epochs": None}}))
    arguments = ["confirm", run.root, "--data", shards, "--top", "1", "--seeds", "1"]
    done = ichsearch(*arguments)
    assert_refused(done, 5, "at least one replay must finish", "diverged")
    assert "failed    diverged" in done.stdout
    assert table(run)["reason"].tolist() == ["diverged"]
    assert not run.test_fold.exists()
    assert "all replays are done" in ichsearch(*arguments).stdout


def test_a_run_whose_space_says_so_confirms_at_its_end(shards: Path, tmp_path: Path) -> None:
    content = SPACE.replace("SCHEDULE", "per_rung").replace("trials: 4", "trials: 1")
    space = write_space(tmp_path, content + "confirm: {top: 1, seeds: 1}\n")
    arguments = ["run", "--space", space, "--data", shards, "--out", tmp_path / "run"]
    done = ichsearch(*arguments)
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "run")
    assert table(folder)["replay"].tolist() == ["0000-seed1"]
    assert read_json(folder.test_fold)[0]["command"].startswith("ichsearch run --space")
    assert "the test fold is untouched" not in done.stdout
    events = [json.loads(line) for line in ichsearch(*arguments, "--json").stdout.splitlines()]
    assert [event["openings"] for event in events if event["event"] == "test_fold"] == [1]


def test_what_cannot_be_confirmed_is_refused(run: RunFolder, shards: Path, tmp_path: Path) -> None:
    assert_refused(ichsearch("confirm", tmp_path / "none", "--data", shards), 4, "RUN must be the folder of a run")
    assert_refused(ichsearch("confirm", run.root), 4, "data of your own", "--data")
    write_shards(tmp_path / "others", make_rows(patients=PATIENTS, slices=SLICES, seed=1), 32)
    assert_refused(ichsearch("confirm", run.root, "--data", tmp_path / "others"), 4, "was made on others")
    with lease(run.root), pytest.raises(AlreadyRunningError):
        confirm(run, shards)
    shutil.rmtree(run.trials)
    assert_refused(ichsearch("confirm", run.root, "--data", shards), 5, "needs a finished trial")
    assert not run.confirm.exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_confirmation(shards: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path, SPACE.replace("SCHEDULE", "per_rung") + "confirm: {top: 2, seeds: 2}\n")
    with private_ray():
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert Driver(["--space", space, "--data", shards, "--out", whole], whole).end() == 0
        first = Driver(["--space", space, "--data", shards, "--out", killed], tmp_path / "first")
        assert first.wait_for(lambda: len(first.events("replayed")) == 2)
        outlive(first.kill(), 10.0)  # Ray's own helpers may live for a minute; a replay's worker does not
        before = written(RunFolder(killed), "confirm/*/weights.safetensors")
        second = Driver(["--space", space, "--data", shards, "--out", killed], tmp_path / "second")
        assert second.end() == 0, second.said
    assert before.items() <= written(RunFolder(killed), "confirm/*/weights.safetensors").items()
    assert len(second.events("replayed")) <= 2
    left_out = ["seconds"]
    expected, found = (table(RunFolder(run)).drop(columns=left_out) for run in (whole, killed))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)

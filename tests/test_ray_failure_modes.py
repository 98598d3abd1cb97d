"""What Ray Tune with its OptunaSearch does wrong, and ichsearch does not.

1. A loss that is no number goes on, and its Optuna trial stays RUNNING for ever: here, and `test_guard.py`.
2. Trials that fail teach the sampler nothing: `test_book.py::test_the_sampler_steers_away_from_what_fails`,
   `test_proposals.py::test_a_kind_that_always_fails_gets_less_than_its_share`.
3. Scores of short trials are told as if they were of long ones, and nobody is promoted: here.
4. Rungs are forgotten when a run goes on: `test_search_kills.py`, whose runs end with the same promotions.
5. New keys and more trials are refused: `test_search_extend.py`; a run's folder is unpickled: here.
6. Damaged files let a run begin anew: a journal here, a checkpoint in
   `test_trial.py::test_a_torn_newest_checkpoint_costs_a_step_and_no_bit`. Two drivers mix their results:
   `test_search_extend.py::test_a_second_driver_is_refused_while_the_first_one_runs`.
7. A full disk is a crash of the driver: here. Ctrl+C ends with 0: `test_cli.py::test_ctrl_c_going_on_and_extending`.
"""

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from searches import SPACE, one_by_one, private_ray, results, write_tiny_shards
from spaces import write_space
from test_cli import ichsearch

from ichsearch.search.journal import OUTCOME, open_storage
from ichsearch.search.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("ray_local")

RAYS_FILES: Final = (
    "tuner.pkl", "trainable.pkl", "experiment_state-2026-01-01_00-00-00.json", "params.pkl", "params.json", "error.pkl",
    "searcher-state-2026-01-01_00-00-00.pkl", "search_gen_state-2026-01-01_00-00-00.json", "_dict_checkpoint.pkl",
    "basic-variant-state-2026-01-01_00-00-00.json", ".tune_metadata", "trial_metadata.json", ".validate_storage_marker",
)  # fmt: skip
"""What `Tuner.restore` and its searchers look for in a run's folder and in its trials'."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Path:  # noqa: ARG001
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


class Run:
    """A search that has ended, and the command that goes on with it."""

    def __init__(self, root: Path, command: list[str | Path]) -> None:
        self.root, self.command = root, command

    def copy(self, folder: Path) -> "Run":
        shutil.copytree(self.root, folder)
        return Run(folder, [*self.command[:-1], folder])

    def start(self, *more: str) -> str:
        done = ichsearch(*self.command, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def studies(self) -> dict[int, list[FrozenTrial]]:
        """The trials of each rung's study, as anybody reads them who has Optuna."""
        storage = open_storage(self.root / "journal.log")
        found = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
        return {study.user_attrs["epochs"]: study.get_trials() for study in found}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    space = write_space(folder, one_by_one(SPACE, cores=2))
    made = Run(folder / "run", ["run", "--space", space, "--data", shards, "--out", folder / "run"])
    made.start()
    return made


def test_a_loss_that_is_no_number_ends_its_trial_at_once_and_is_told(shards: Path, tmp_path: Path) -> None:
    content = """\
name: diverging
strategy: grid
trials: 2
epochs: 10
pretrained: no
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, weight_decay: 1, lr: {choice: [0.01, 100]}}
"""
    made = Run(
        tmp_path / "run",
        ["run", "--space", write_space(tmp_path, content), "--data", shards, "--out", tmp_path / "run"],
    )
    assert "failed    diverged" in made.start()
    good, bad = made.studies()[10]
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert bad.constraints == {"runs": 1.0}
    assert bad.user_attrs[OUTCOME]["reason"] == "diverged"
    trained = json.loads((made.root / "trials" / "0001" / "metrics.json").read_text())["epochs"]
    assert len(trained) < 5


def test_a_rung_holds_scores_of_its_own_length_and_its_best_go_on(run: Run) -> None:
    rungs = run.studies()
    assert sorted(rungs) == [1, 2, 4]
    trials = sorted((trial for rung in rungs.values() for trial in rung), key=lambda trial: trial.user_attrs["trial"])
    assert len(trials) == 12
    for epochs, rung in rungs.items():
        for trial in rung:
            assert trial.state == TrialState.COMPLETE
            assert trial.user_attrs["epochs"] == trial.user_attrs["config"]["epochs"] == epochs
            assert trial.value == result_of(run, trial)["score"]
            assert trial.user_attrs[OUTCOME]["best_epoch"] == result_of(run, trial)["best_epoch"] <= epochs
    promoted: list[str] = []
    for number, trial in enumerate(trials):
        if parent := trial.user_attrs["parent"]:
            before = [rival for rival in trials[:number] if rival.user_attrs["trial"] not in promoted]
            lower = [rival for rival in before if rival.user_attrs["epochs"] < trial.user_attrs["epochs"]]
            chosen = next(rival for rival in lower if rival.user_attrs["trial"] == parent)
            rivals = [rival for rival in lower if rival.user_attrs["epochs"] == chosen.user_attrs["epochs"]]
            assert chosen.value == max(rival.value or 0.0 for rival in rivals)
            promoted.append(parent)
    assert len(promoted) >= 3


def result_of(run: Run, trial: FrozenTrial) -> dict[str, Any]:
    path = RunFolder(run.root).trial(trial.user_attrs["trial"]) / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text())["result"]
    return found


class _Evil:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self._canary, "dead")


def test_nothing_in_a_runs_folder_is_unpickled(run: Run, tmp_path: Path) -> None:
    canary, planted = tmp_path / "canary", run.copy(tmp_path / "run")
    canary.write_text("alive")
    evil = pickle.dumps(_Evil(canary))
    as_json = json.dumps({"_type": "CLOUDPICKLE_FALLBACK", "value": evil.hex()}).encode()
    folders = [planted.root, *planted.root.glob("trials/*"), planted.root / "trials" / "0000" / "checkpoint_000000"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for name in RAYS_FILES:
            (folder / name).write_bytes(as_json if name.endswith(".json") else evil)
    planted.start("--extend", "--trials", "14")
    assert len(results(planted.root)) == 14
    assert canary.read_text() == "alive"
    pickle.loads(evil)  # noqa: S301 - our own
    assert canary.read_text() == "dead", "the canary would have died"


@pytest.mark.parametrize(
    "share", [pytest.param(0.0, marks=pytest.mark.slow), 0.35, pytest.param(0.8, marks=pytest.mark.slow)]
)
def test_a_journal_that_lost_its_end_forgets_no_trial(run: Run, tmp_path: Path, share: float) -> None:
    """What the journal does not know any more is asked for again, and found finished in its folder."""
    cut = run.copy(tmp_path / "run")
    content = (cut.root / "journal.log").read_bytes()
    (cut.root / "journal.log").write_bytes(content[: int(share * len(content))])
    before = weights_written(cut.root)
    cut.start()
    pd.testing.assert_frame_equal(results(cut.root), results(run.root), check_exact=True)
    assert weights_written(cut.root) == before, "trained again"


def weights_written(root: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("trials/*/metrics.json")}


def test_a_full_disk_ends_with_7_and_the_run_goes_on_when_there_is_room(shards: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    space = write_space(tmp_path, one_by_one(SPACE.replace("trials: 12", "trials: 5")))
    command = [
        sys.executable,
        "-c",
        "from ichsearch.cli import main; main()",
        "run",
        "--space",
        space,
        "--data",
        shards,
    ]
    search = shlex.join(map(str, [*command, "--out", disk / "run"]))
    script = f"""
mount -t tmpfs -o size=3m none {disk} || exit 99
{search}; echo code $?
{search}; echo code $?
mount -o remount,size=64m none {disk}
{search}; echo code $?
cp {disk}/run/leaderboard.csv {tmp_path}
"""
    with private_ray():
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode in (1, 99):
        pytest.skip("no disk of our own can be mounted here")
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 7", "code 7", "code 0"], done.stderr
    assert re.search(r"run on \S+ is full: [\d,]+ bytes free, up to [\d,]+ needed by each trial", done.stderr), (
        done.stderr
    )
    assert "Traceback" not in done.stderr
    assert list(results(tmp_path)["status"]) == ["finished"] * 5

"""A finished run goes on with more trials or a changed space, and reuses what it knows; other runs are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from searches import SPACE, Driver, one_by_one, private_ray, results, write_tiny_shards
from spaces import write_space
from test_cli import assert_refused, ichsearch

from ichsearch.search.run_folder import RunFolder

TRIALS, MORE = 8, 12

pytestmark = pytest.mark.usefixtures("ray_local")
BASE = one_by_one(SPACE, cores=2).replace("trials: 12", f"trials: {TRIALS}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Path:  # noqa: ARG001
    return write_tiny_shards(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has all its trials."""
    folder = tmp_path_factory.mktemp("finished")
    done = ichsearch("run", "--space", write_space(folder, BASE), "--data", shards, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


class Extended:
    """A copy of the finished run, and what became of it."""

    def __init__(self, finished: Path, shards: Path, folder: Path, content: str) -> None:
        self.before, self.run = results(finished), folder / "run"
        shutil.copytree(finished, self.run)
        self._times = written(finished)
        self._command = ["run", "--space", write_space(folder, content), "--data", shards, "--out", self.run]
        refused = ichsearch(*self._command)
        assert_refused(refused, 4, "--extend", "in the run", "asked for")
        assert written(self.run) == self._times, "a refused run left traces"
        self.refused = refused.stderr
        done = ichsearch(*self._command, "--extend")
        assert done.returncode == 0, done.stderr
        self.table = results(self.run)

    @property
    def new(self) -> pd.DataFrame:
        """The trials that came after, in the order of their ids."""
        return self.table[~self.table["trial"].isin(self.before["trial"])].sort_values("trial", ignore_index=True)

    def assert_reused(self) -> None:
        """The earlier trials are as they were: their rows, and their files but for weights that had to go."""
        kept = self.table[self.table["trial"].isin(self.before["trial"])].sort_values("trial", ignore_index=True)
        compared = ["difference", "difference_low", "difference_high", "p_holm", "tied", "beats_baselines"]
        left_out = ["rank", "place", "checkpoint", *compared]
        expected = self.before.sort_values("trial", ignore_index=True)
        pd.testing.assert_frame_equal(kept.drop(columns=left_out), expected.drop(columns=left_out), check_exact=True)
        now = written(self.run)
        trials = {path: at for path, at in self._times.items() if path.startswith("trials/")}
        assert all(now[path] == at for path, at in trials.items() if path in now), "trained or told again"
        assert {Path(path).name for path in trials if path not in now} <= {"weights.safetensors"}
        curves = {path: at for path, at in self._times.items() if path.startswith("lr_finder/")}
        assert all(now[path] == at for path, at in curves.items()), "the LR finder ran again"

    def assert_learnt(self) -> None:
        """The best of the earlier trials of 4 epochs is the first that goes on to the 8 that are asked for now."""
        top = self.before[self.before["epochs"] == 4].sort_values(["place", "trial"])
        assert len(top) >= 2
        longest = self.new[self.new["epochs"] == 8]
        assert longest["parent"].iloc[0] == top["trial"].iloc[0]

    def assert_asked_for(self, name: str, value: object) -> None:
        """The trial that the space names is the first of the new ones."""
        assert tuple(self.new.loc[0, ["epochs", name]]) == (1, value)


def written(root: Path) -> dict[str, int]:
    """When each file of a run was written last."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("run.lock", "lease.json")
    }


@pytest.fixture
def extended(finished: Path, shards: Path, tmp_path: Path) -> Callable[[str], Extended]:
    return lambda content: Extended(finished, shards, tmp_path, content)


def longer(*replacements: tuple[str, str]) -> str:
    return changed(("epochs: 4", "epochs: 8"), *replacements)


def changed(*replacements: tuple[str, str]) -> str:
    content = BASE.replace(f"trials: {TRIALS}", f"trials: {MORE}")
    for old, new in replacements:
        assert old in content
        content = content.replace(old, new)
    return content


def test_more_trials(extended: Callable[[str], Extended]) -> None:
    run = extended(changed())
    assert f"trials: {TRIALS} in the run, {MORE} asked for" in run.refused
    run.assert_reused()
    assert len(run.new) == MORE - TRIALS
    tried = [str(record.config) for record in RunFolder(run.run).records() if record.parent is None]
    assert len(set(tried)) == len(tried), "whoever knows nothing begins with the same again"


@pytest.mark.slow
def test_a_longer_full_length(extended: Callable[[str], Extended]) -> None:
    run = extended(longer())
    assert "epochs: 4 in the run, 8 asked for" in run.refused
    run.assert_reused()
    run.assert_learnt()


def test_a_new_backbone(extended: Callable[[str], Extended]) -> None:
    space = longer(("test_efficientnet]", "test_efficientnet, test_convnext]"))
    run = extended(space + first("backbone: test_convnext"))
    assert "test_convnext" in run.refused
    run.assert_reused()
    run.assert_learnt()
    run.assert_asked_for("backbone", "test_convnext")
    assert (run.run / "lr_finder" / "test_convnext-batch8-32px-hu-linear-multilabel.json").is_file()


@pytest.mark.slow
def test_a_wider_range_of_rates(extended: Callable[[str], Extended]) -> None:
    run = extended(longer(("[0.3, 3.0]", "[0.03, 30.0]")) + first("lr: 0.05"))
    assert "0.03" in run.refused
    run.assert_reused()
    run.assert_learnt()
    run.assert_asked_for("lr_factor", 0.05)


@pytest.mark.slow
def test_a_new_axis(extended: Callable[[str], Extended]) -> None:
    """The earlier trials had the parameter's default."""
    run = extended(
        longer(("  lr: {", "  label_smoothing: {float: [0.0, 0.2]}\n  lr: {")) + first("label_smoothing: 0.1")
    )
    assert "label_smoothing" in run.refused
    run.assert_reused()
    run.assert_learnt()
    run.assert_asked_for("label_smoothing", 0.1)


def first(values: str) -> str:
    return f"first_trials: [{{{values}}}]\n"


@pytest.mark.parametrize(
    "option", ["metric=log_loss", "seed=4", "split_seed=1", "lr_finder.steps=30", "pretrained=auto", "task=any"]
)
def test_what_results_depend_on_cannot_change(finished: Path, shards: Path, tmp_path: Path, option: str) -> None:
    before = written(finished)
    arguments = ["--space", write_space(tmp_path, BASE), "--data", shards, "--out", finished, "--extend", "-o", option]
    name, _, value = option.partition("=")
    assert_refused(ichsearch("run", *arguments), 4, f"{name}: ", f", {value} asked for", "another --out")
    assert written(finished) == before


def test_other_data_are_refused(finished: Path, tmp_path: Path) -> None:
    before, other = written(finished), write_tiny_shards(tmp_path, seed=1)
    arguments = ["--space", write_space(tmp_path, BASE), "--data", other, "--out", finished, "--extend"]
    assert_refused(ichsearch("run", *arguments), 4, "other data", "another --out")
    assert written(finished) == before


def test_a_second_driver_is_refused_while_the_first_one_runs(shards: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path, one_by_one(SPACE).replace("trials: 12", "trials: 200"))
    arguments = ["--space", space, "--data", shards, "--out", tmp_path / "run"]
    with private_ray():
        first = Driver(arguments, tmp_path / "first")
        assert first.wait_for(lambda: bool(first.events("started"))), first.said
        second = Driver(arguments, tmp_path / "second")
        assert second.end() == 8
        assert "already running" in second.said
        assert not second.events()
        ended = len(first.events("finished"))
        assert first.wait_for(lambda: len(first.events("finished")) > ended), "the first one was disturbed"
        assert first.interrupt() == 130


def test_a_time_that_is_spent_is_refused_at_once(finished: Path, shards: Path, tmp_path: Path) -> None:
    before = written(finished)
    arguments = ["--space", write_space(tmp_path, BASE), "--data", shards, "--out", finished, "--extend"]
    assert_refused(ichsearch("run", *arguments, "--time", "1s"), 4, "time counts over all starts", "of 1 s are spent")
    assert written(finished) == before

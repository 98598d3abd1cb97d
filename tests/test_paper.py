"""Paper files: published runs done again at their own length, the leaky split of the paper marked wherever it shows."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from slice_sets import make_rows, write_shards
from spaces import SMALL, write_space

from ichsearch.cli import main
from ichsearch.data.cache import open_slices
from ichsearch.data.split import make_split
from ichsearch.deploy.models import load_predictor
from ichsearch.errors import ConfigError
from ichsearch.files import read_json, write_json
from ichsearch.report import bootstrap
from ichsearch.report.paper_page import PAGE, write_paper
from ichsearch.report.paper_results import differences, judged_runs
from ichsearch.report.report import policy
from ichsearch.search.confirm import confirm_run
from ichsearch.search.paper import Length, is_paper, load_paper, scaled
from ichsearch.search.paper_runs import not_reproduced, plan_of, read_plan
from ichsearch.search.run_folder import RunFolder
from ichsearch.search.space_file import find_space, load_space
from ichsearch.search.stages import Watchers
from ichsearch.shards.manifest import read_manifest
from ichsearch.train.setup import parts_of

TINY = """\
name: tiny
all:
  metric: accuracy_multi
  pretrained: no
  parameters: {backbone: test_resnet, batch_size: 16, size: 32, channels: hu, head: concat_pool, lr: 0.01}
runs:
  binary:
    reported: 0.889
    leaky: true
    space: {task: any, epochs: 4}
  slower:
    reported: 0.8891
    space: {task: any, epochs: 2, parameters: {lr: 0.001}}
  greedy:
    reported: 0.9131
    space: {task: positives, epochs: 2, parameters: {batch_size: 4000}}
"""
EVIL = "<script>window.canary=1</script>"


class Done(NamedTuple):
    code: int
    events: list[dict[str, Any]]
    said: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def ichsearch(*arguments: str | Path) -> Done:
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["ichsearch", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    lines = out.getvalue().splitlines()
    return Done(code, [json.loads(line) for line in lines if line.startswith('{"event"')], err.getvalue())


class Ran(NamedTuple):
    file: Path
    shards: Path
    root: Path
    first: Done

    def again(self) -> Done:
        return ichsearch(
            "run", "--json", "--space", self.file, "--data", self.shards, "--out", self.root, "--scale", "0.5"
        )


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """What is tested here is who is compared with whom, not intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 200)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Ran:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("paper")
    write_shards(folder / "shards", make_rows(patients=60, slices=4), 32)
    ran = Ran(write_space(folder, TINY, "tiny.yaml"), folder / "shards", folder / "run", Done(0, [], ""))
    return ran._replace(first=ran.again())


def test_the_shipped_file_has_the_papers_runs_each_once() -> None:
    assert is_paper(find_space("paper.yaml"))
    paper = load_paper(find_space("paper.yaml"))
    assert {run.entry: (run.reported, *run.paper) for run in paper.runs} == {
        "binary-scratch": (0.8890, 10, 0, 256, 256),
        "binary-pretrained": (0.8891, 10, 5, 256, 256),
        "multilabel-resnet50": (0.9131, 6, 0, 64, 256),
        "multilabel-resnet50-fp16": (0.9191, 9, 0, 64, 256),
        "multilabel-resnet101": (0.9164, 14, 0, 64, 256),
        "multilabel-densenet121": (0.9180, 19, 0, 64, 256),
        "multilabel-alexnet": (0.8900, 16, 0, 16, 256),
    }
    assert [run.name for run in paper.runs if run.leaky] == ["binary-pretrained-leaky", "multilabel-resnet50-leaky"]
    for run in paper.runs:
        (drawn,) = run.space.grid()
        assert (run.space.trials, run.space.epochs, run.space.split) == (
            1,
            run.paper.epochs,
            "slice" if run.leaky else "patient",
        )
        assert (drawn["head"], drawn["min_brain"], drawn["augmentations"]) == (
            "concat_pool",
            0.02,
            "flip+rotation+blur",
        )
        assert drawn["lr_schedule"] == ("fine_tune" if run.paper.frozen_epochs else "one_cycle")
        assert run.here == run.paper


def test_an_option_changes_what_is_done_here_not_what_the_paper_did() -> None:
    paper = load_paper(find_space("paper.yaml"), ["all.parameters.size=64"])
    assert {(run.paper.size, run.here.size) for run in paper.runs} == {(256, 64)}
    assert all(run.space.sizes() == [64] for run in paper.runs)


@pytest.mark.parametrize(
    ("paper", "scale", "here"),
    [
        (Length(10, 5, 256, 256), 1.0, Length(10, 5, 256, 256)),
        (Length(10, 5, 256, 256), 0.5, Length(5, 2, 128, 160)),
        (Length(10, 5, 256, 256), 0.1, Length(2, 1, 24, 64)),
        (Length(19, 0, 64, 256), 0.1, Length(2, 0, 16, 64)),
        (Length(6, 0, 64, 256), 0.01, Length(1, 0, 16, 64)),
        (Length(16, 0, 8, 32), 0.25, Length(4, 0, 8, 32)),
    ],
)
def test_a_scale_shortens_and_shrinks_as_far_as_is_sensible(paper: Length, scale: float, here: Length) -> None:
    assert scaled(paper, scale) == here


WRONG = {
    "unknown key": ("all:", "al:", r":2: .*unknown key 'al'; known: name, all, runs"),
    "unknown key of a run": ("    leaky: true", "    leeky: true", r":9: .*unknown key 'leeky'; known: reported"),
    "no run": (TINY[TINY.index("runs:") :], "runs: {}\n", r":6: runs: .*at least 1"),
    "no figure": ("    reported: 0.889\n", "", r":7: runs.binary.reported: Field required"),
    "a figure in percent": ("reported: 0.889\n", "reported: 88.9\n", r":8: .*less than or equal to 1, but got '88.9'"),
    "several configurations": ("size: 32", "size: {choice: [32, 64]}", r":5: .*one configuration, but binary has 2"),
    "its own split": (
        "space: {task: any, epochs: 4}",
        "space: {task: any, split: slice}",
        r":10: .*split is not for a",
    ),
    "its own name": ("  pretrained: no", "  name: mine", r":4: .*name is not for a paper file to say"),
    "a space that is wrong": ("epochs: 4", "epochs: four", r":10: epochs: must be .*got 'four'"),
    "a run's parameter": ("lr: 0.001", "lrr: 0.001", r":13: parameters.lrr: unknown parameter"),
    "parameters that are none": (
        "parameters: {lr: 0.001}",
        "parameters: 3",
        r":13: parameters: .*must be keys and values",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_paper_file_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    old, new, message = WRONG[case]
    path = write_space(tmp_path, TINY.replace(old, new, 1), "paper.yaml")
    with pytest.raises(ConfigError) as caught:
        load_paper(path)
    assert re.match(re.escape(str(path)) + message, str(caught.value), re.DOTALL), caught.value


def test_options_reach_all_runs_or_one(tmp_path: Path) -> None:
    path = write_space(tmp_path, TINY)
    paper = load_paper(path, ["all.parameters.size=64", "runs.slower.space.epochs=3"])
    assert [(run.space.epochs, run.here.size) for run in paper.runs] == [(4, 64), (4, 64), (3, 64), (2, 64)]


def test_a_space_of_ones_own_may_not_leak(tmp_path: Path) -> None:
    path = write_space(tmp_path, f"{SMALL}split: slice\n")
    assert load_space(path).split == "slice", "a run of a paper file is read back"
    with pytest.raises(ConfigError, match=r"space.yaml:18: split: .*say patient \(only a run of a paper file"):
        load_space(path, may_leak=False)
    for verb in (["run", "--space", path, "--out", tmp_path / "run"], ["validate", path]):
        assert ichsearch(*verb).code == 4
    with pytest.raises(ConfigError, match="split slice has none; remove confirm"):
        load_space(write_space(tmp_path, f"{SMALL}split: slice\nconfirm: {{top: 1}}\n"))


def test_what_is_for_the_other_kind_of_file_is_refused(tmp_path: Path) -> None:
    space, paper = write_space(tmp_path), write_space(tmp_path, TINY, "paper.yaml")
    assert "--scale is for a paper file" in ichsearch("run", "--space", space, "--scale", "0.5").said
    for option in (["--trials", "3"], ["--time", "1h"], ["--extend"]):
        assert "says itself how long" in ichsearch("run", "--space", paper, *option).said
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "holds other files" in ichsearch("run", "--space", paper, "--out", tmp_path / "other").said


def test_each_run_is_a_run_folder_and_one_that_fails_does_not_end_the_others(ran: Ran) -> None:
    done = ran.first
    assert done.code == 0, done.said
    assert [event["run"] for event in done.of("paper_run")] == ["binary", "binary-leaky", "slower", "greedy"]
    assert [event["reason"] for event in done.of("failed")] == ["batch_larger_than_data"]
    assert done.events[-1]["event"] == "done"
    for name in ("binary", "binary-leaky", "slower"):
        assert (ran.root / name / "report.html").is_file()
        assert len(pd.read_csv(ran.root / name / "leaderboard.csv")) == 5, "a trial and four rules"
    plan = read_plan(ran.root)
    assert [run.here.epochs for run in plan.runs] == [2, 2, 1, 1]


def test_a_reduced_run_says_first_that_it_is_no_reproduction(ran: Ran) -> None:
    (event,) = ran.first.of("paper")
    assert not event["reproduction"]
    assert [line.split()[1] for line in event["why"]] == ["runs", "data"]
    assert "NO REPRODUCTION" in ran.first.said
    assert "run 1 of 4: binary · epochs 4 → 2" in ran.first.said
    verdict = re.findall(r"<p>(.*?)</p>", (ran.root / PAGE).read_text())
    assert verdict[0] == "This is no reproduction of the paper."
    assert "scaled by 0.5" in verdict[1]
    assert "not RSNA 2019&#39;s full training set" in verdict[2]


def test_all_of_rsna_at_full_length_may_be_one(ran: Ran) -> None:
    manifest = read_manifest(ran.shards)
    counts = manifest.counts.model_copy(update={"positives": manifest.counts.positives | {"any": 97_102}})
    full = manifest.model_copy(update={"counts": counts})
    assert not not_reproduced(plan_of(load_paper(ran.file), full.fingerprint), full)
    changed = plan_of(load_paper(ran.file, ["all.parameters.batch_size=12"]), full.fingerprint)
    assert "changed by options" in not_reproduced(changed, full)[0]


def test_a_figure_is_the_trials_own_and_stands_beside_predicting_nothing(ran: Ran) -> None:
    table = pd.read_csv(ran.root / "paper.csv", index_col="run")
    assert list(table.index) == ["binary", "slower", "greedy"]
    result = read_json(ran.root / "binary" / "trials" / "0000" / "metrics.json")["result"]
    given = pd.read_parquet(ran.root / "binary" / "trials" / "0000" / "predictions.parquet")
    row = table.loc["binary"]
    assert row["accuracy"] == pytest.approx(result["metrics"]["accuracy_multi"])
    assert row["accuracy"] == pytest.approx(((given["probability_any"] > 0.5) == (given["label_any"] == 1)).mean())
    assert row["all_zero"] == pytest.approx((given["label_any"] == 0).mean())
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert row["minus_all_zero"] == pytest.approx(row["accuracy"] - row["all_zero"])
    assert (row["slices"], row["patients"]) == (len(given), given["patient"].nunique())
    assert (row["reported"], row["epochs_paper"], row["epochs"]) == (0.889, 4, 2)
    assert table.loc["greedy", "status"] == "failed: batch_larger_than_data"
    assert table.loc["slower":, "leaky_accuracy"].isna().all()


def test_whether_two_runs_differ_is_paired_over_patients(ran: Ran) -> None:
    judged = judged_runs(ran.root, read_plan(ran.root))
    assert set(judged) == {"binary", "binary-leaky", "slower"}
    (pair,) = differences(judged)
    assert (pair.first, pair.second, pair.reliable) == ("binary", "slower", True)
    assert pair.interval.value == pytest.approx(judged["binary"].accuracy.value - judged["slower"].accuracy.value)
    assert pair.shown == (pair.p_holm < 0.05)


def test_leaky_is_said_wherever_its_figures_stand(ran: Ran) -> None:
    folder, honest = RunFolder(ran.root / "binary-leaky"), RunFolder(ran.root / "binary")
    assert (folder.leaks, honest.leaks) == (True, False)
    assert set(pd.read_csv(folder.leaderboard)["split"]) == {"slice, leaky"}
    assert set(pd.read_csv(honest.leaderboard)["split"]) == {"patient"}
    assert pd.read_csv(folder.leaderboard)["low"].isna().all(), "no interval over patients that were trained on"
    assert (read_json(folder.summary)["leaky"], read_json(honest.summary)["leaky"]) == (True, False)
    assert "LEAKY: split by slice" in folder.report.read_text()
    assert "leaky" not in honest.report.read_text().lower()
    metrics = [event["metric"] for event in ran.first.of("finished")]
    assert metrics == ["accuracy_multi", "leaky accuracy_multi", "accuracy_multi"]
    assert [event["leaky"] for event in ran.first.of("data")] == [False, True, False, False]
    assert re.search(r"0\.\d+ leaky|1\.000 leaky", ran.first.said)
    assert re.search(r"\d leaky \(nothing", (ran.root / PAGE).read_text())


def test_a_leaky_run_has_patients_on_both_sides_and_no_image_twice(ran: Ran) -> None:
    slices = open_slices(ran.shards, 32)
    split = make_split(slices.table, slices.fingerprint, 0, "slice")
    parts = parts_of(slices, split, 0.0)
    patients = slices.table["patient"].to_numpy()
    assert set(patients[parts.train]) & set(patients[parts.validation])
    assert not set(parts.train) & set(parts.validation)


def test_a_leaky_run_is_neither_confirmed_nor_put_to_use(ran: Ran) -> None:
    folder = RunFolder(ran.root / "binary-leaky")
    silent = Watchers(lambda event: None, lambda *given: None, lambda run: None, lambda curve, path: None)
    with pytest.raises(ConfigError, match=r"needs a fold of new patients, but the split of .* is leaky"):
        confirm_run(folder, ran.shards, {}, address=None, command=[], watchers=silent)
    for trial in (None, "0000"):
        with pytest.raises(ConfigError, match=r"is leaky: by slice; take the run by patient"):
            load_predictor(folder, trial, ensemble=False)


def test_the_page_says_what_is_done_otherwise_and_needs_nothing_else(ran: Ran) -> None:
    text = (ran.root / PAGE).read_text()
    for said in ("72", "25,206", "share one crop box", "never joined", "Joined, it scores", "split by slice", "Holm"):
        assert said in text
    lost = sum(row["brain_share"] < 0.2 and row["any"] == 1 for row in make_rows(patients=60, slices=4))
    assert f"20 % would lose {lost}, 2 % loses {lost}" in text
    assert not re.search(r"https?:|src=\"//|url\(|@import", text)
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    assert style
    assert script
    assert policy(style[1], script[1]).replace("'", "&#39;") in text


def test_the_same_command_trains_nothing_twice(ran: Ran) -> None:
    before = {path: path.stat().st_mtime_ns for path in ran.root.glob("*/trials/*/*") if path.is_file()}
    (ran.root / PAGE).unlink()
    done = ran.again()
    assert done.code == 0, done.said
    assert not done.of("started")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (ran.root / PAGE).is_file()
    (ran.root / PAGE).unlink()
    assert ichsearch("report", ran.root, "--data", ran.shards).code == 0
    assert (ran.root / PAGE).is_file()
    refused = ichsearch("run", "--space", ran.file, "--data", ran.shards, "--out", ran.root)
    assert refused.code == 4
    assert "holds other runs (scale, runs differ)" in refused.said


def test_text_of_a_run_is_escaped_on_the_page(ran: Ran) -> None:
    folder = RunFolder(ran.root / "greedy")
    path = folder.trial("0000") / "trial.json"
    known = read_json(path)
    write_json(path, known | {"reason": EVIL})
    text = write_paper(ran.root, ran.shards).page.read_text()
    write_json(path, known)
    assert EVIL not in text
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in text

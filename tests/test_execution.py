"""The command as a program sees it, what goes on beside the trials, and how a stuck process ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.search.book import Standing
from ichsearch.search.gauges import Gauges
from ichsearch.search.throttle import Throttled
from ichsearch.search.watchdog import ended_when_hung, explain_hang, hangs_after_s, has_hung

ICHSEARCH = str(Path(sys.executable).parent / "ichsearch")
SPACE = """\
name: two
trials: 2
epochs: 40
pretrained: no
resources: {cpus_per_trial: 1}
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: {float: [0.001, 0.01]}}
"""
OURS = ("starting Ray", "run two", "slices by patient", "unreliable", "test_resnet:", "trial 000", "best trial",
        "other trials", "rules that see no image", "chosen on", "report:", "all trials are done", "leaderboard:",
        "to go on:")  # fmt: skip
STANDING = Standing(1, 0, 1, 2, ("0000", 0.5), 1.0, None, 1.0, None, None, "")


def test_a_killed_worker_costs_no_trial_and_json_is_all_that_is_on_stdout(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    arguments = ["--space", write_space(tmp_path, SPACE), "--data", tmp_path / "shards", "--out", tmp_path / "run"]
    command = [ICHSEARCH, "run", *map(str, arguments), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        os.kill(trial_process(driver.pid), signal.SIGKILL)
        out, err = driver.communicate()
    assert driver.returncode == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    kinds = [item["event"] for item in told]
    assert [kinds.count(kind) for kind in ("opened", "data", "weights", "started", "finished")] == [1, 1, 1, 2, 2]
    last = told[-1]
    assert (last["event"], last["exit_code"], last["counts"]["finished"]) == ("done", 0, 2)
    assert last["best"]["score"] == max(item["score"] for item in told if item["event"] == "finished")
    assert list(pd.read_csv(last["leaderboard"])["status"]).count("finished") == 2
    strange = [line for line in err.splitlines() if line and not line.startswith(OURS)]
    assert not strange, "Ray, Optuna or a warning has a say"


def trial_process(driver: int) -> int:
    """The first process below `driver` that shows a trial in its title."""
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s:
        for title in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if title.read_text().startswith("ray::test_resnet-b8-40ep-") and driver in ancestors(title.parent):
                    return int(title.parent.name)
        time.sleep(0.02)
    raise AssertionError("no trial began")


def ancestors(process: Path) -> Iterator[int]:
    while (parent := int((process / "stat").read_text().rpartition(")")[2].split()[1])) > 1:
        yield parent
        process = process.parent / str(parent)


def test_work_that_is_often_due_is_done_now_and_then() -> None:
    done: list[float] = []
    work = Throttled(lambda: done.append(time.monotonic()), least_pause_s=0.2)
    work.tick()
    assert not done
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        work.ask()
        work.tick()
    assert len(done) == 3
    work.now()
    assert len(done) == 4


def test_work_that_takes_long_is_done_seldom() -> None:
    done: list[int] = []

    def slowly() -> None:
        done.append(1)
        time.sleep(0.1)

    work = Throttled(slowly, least_pause_s=0.0)
    for _ in range(50):
        work.ask()
        work.tick()
        time.sleep(0.01)
    assert len(done) == 1


@pytest.mark.usefixtures("ray_local")
def test_gauges_do_not_mind_that_nobody_exports_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # a second run in the same process
            gauges = Gauges("two")
            gauges.show(STANDING, 100.0)
            gauges.show(Standing(0, 0, 0, 2, None, 0.0, None, 0.0, None, None, ""), 0.0)


def test_a_stuck_process_ends_and_says_where(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from ichsearch.search.watchdog import ended_when_hung
def stuck():
    time.sleep(60)
with ended_when_hung(Path({str(tmp_path)!r}), 0.3):
    stuck()
"""
    began_s = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert time.monotonic() - began_s < 30
    assert has_hung(tmp_path)
    explain_hang(tmp_path)
    assert "in stuck" in (tmp_path / "error.txt").read_text()
    assert not has_hung(tmp_path)


def test_a_process_that_fails_after_its_stacks_were_written_has_not_hung(tmp_path: Path) -> None:
    def work() -> None:
        time.sleep(1.5)
        assert has_hung(tmp_path), "a driver elsewhere would see it"
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"), ended_when_hung(tmp_path, 2.0):
        work()
    assert not has_hung(tmp_path)


def test_a_process_that_is_in_time_leaves_no_trace(tmp_path: Path) -> None:
    with ended_when_hung(tmp_path / "trial", hangs_after_s(0.0)):
        assert not has_hung(tmp_path / "trial")
    assert not list((tmp_path / "trial").iterdir())
    with ended_when_hung(tmp_path / "without limit", float("inf")):
        pass
    assert not (tmp_path / "without limit").exists()

"""What a run says: lines for a person, objects for a program, and the command that goes on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ichsearch.cli_events import RunPrinter, next_command
from ichsearch.errors import NoTrialFinishedError, Terminated
from ichsearch.search import console, events
from ichsearch.search.book import Done, Standing, Started
from ichsearch.search.durations import duration_text
from ichsearch.search.journal import Place
from ichsearch.search.run_folder import TrialRecord
from ichsearch.train.config import TrialConfig
from ichsearch.train.trial import TrialResult

STANDING = Standing(
    finished=7, failed=1, running=2, trials=20, best=("0003", 0.9014), spent_s=3_600.0, time_s=28_800.0,
    device_s=7_200.0, device_limit_s=86_400.0, eta_s=300.0, done="",
)  # fmt: skip
RESULT = TrialResult(0.8731, 3, {"auroc_any": 0.8731}, 75.0, 812.4, 11.2, 32, 4)
COMMAND = ["ichsearch", "run", "--space", "my space.yaml", "--out", "runs/a"]


def trial(parent: str | None = None) -> Started:
    config = TrialConfig(backbone="resnet18", batch_size=32, size=64, lr=0.0123, epochs=4)
    record = TrialRecord(
        trial="0007",
        status="running",
        parameters={"backbone": "resnet18", "augment": 0.3127, "lr_factor": 1.2},
        config=config.model_dump(),
        lr_suggestion=0.01,
        weights="scratch",
        epochs=4,
        parent=parent,
    )
    return Started(record, config, Place("study", 7))


def test_a_trial_says_what_it_tries_and_a_promoted_one_where_it_comes_from() -> None:
    assert (
        console.started_line(trial()) == "trial 0007 started   4 epochs · resnet18 · batch 32 · augment 0.31 · lr 0.012"
    )
    assert (
        console.started_line(trial("0002"))
        == "trial 0007 promoted  4 epochs, from trial 0002 · resnet18 · batch 32 · augment 0.31 · lr 0.012"
    )


def test_an_end_says_how_good_how_far_and_how_long() -> None:
    assert console.ended_line(trial(), RESULT, "", STANDING, "auroc_any") == (
        "trial 0007 finished  auroc_any 0.873 (epoch 3 of 4) in 75 s, 812 images/s · best 0.901 (trial 0003) · "
        "8 of 20 · about 5 min to go · 7 h of time left · 22 device hours left"
    )
    nothing_known = replace(STANDING, best=None, time_s=None, device_limit_s=None, eta_s=None)
    assert (
        console.ended_line(trial(), None, "diverged", nothing_known, "auroc_any")
        == "trial 0007 failed    diverged · 8 of 20"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.031, "0.031 s"), (9, "9 s"), (59.4, "59 s"), (90, "90 s"), (150, "2.5 min"), (750, "12 min"),
        (3_599, "60 min"), (3_900, "1 h 5 min"), (28_800, "8 h"), (86_399, "24 h"), (190_000, "2 d 5 h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_what_the_time_budget_will_end_says_once_how_long_it_goes_on() -> None:
    assert console.standing_parts(replace(STANDING, spent_s=28_260.0, eta_s=540.0))[2:] == [
        "9 min of time left",
        "22 device hours left",
    ]
    assert console.standing_parts(replace(STANDING, time_s=None, device_limit_s=None))[2:] == ["about 5 min to go"]


def test_objects_hold_the_facts_and_where_the_run_stands() -> None:
    told = json.loads(events.ended(trial(), RESULT, "", STANDING, "auroc_any").as_json())
    assert (told["event"], told["trial"], told["score"], told["best_epoch"]) == ("finished", "0007", 0.8731, 3)
    assert told["best"] == {"trial": "0003", "score": 0.9014}
    assert told["counts"] == {"finished": 7, "failed": 1, "running": 2, "trials": 20}
    assert (told["time_s"], told["device_limit_s"], told["eta_s"]) == (28_800.0, 86_400.0, 300.0)
    begun = json.loads(events.started(trial("0002")).as_json())
    assert (begun["parent"], begun["epochs"], begun["parameters"]["lr_factor"]) == ("0002", 4, 1.2)


@pytest.mark.parametrize(
    ("done", "tail"),
    [
        ("trials", "--time=8h --extend --trials 40"),
        ("time", "--trials 20 --extend --time 57600s"),
        ("device_hours", "--trials 20 --time=8h --extend --device-hours 48"),
        ("exhausted", "--trials 20 --time=8h --extend   (with a larger space)"),
    ],
)
def test_the_next_command_gives_the_run_more_of_what_it_lacked(done: Done, tail: str) -> None:
    given = [*COMMAND, "--trials", "20", "--time=8h", "--json", "--extend"]
    shown = "ichsearch run --space 'my space.yaml' --out runs/a"
    assert next_command(given, replace(STANDING, done=done)) == f"{shown} {tail}"


def printer(*, as_json: bool) -> tuple[RunPrinter, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, highlight=False, soft_wrap=True) for file in (out, err)]
    return RunPrinter(*consoles, COMMAND, as_json=as_json), out, err


def test_a_person_reads_lines_on_stdout_and_nothing_in_them_is_markup() -> None:
    shown, out, err = printer(as_json=False)
    shown.tell(events.ended(trial(), None, "odd [bold] reason", STANDING, "auroc_any"))
    assert out.getvalue().startswith("trial 0007 failed    odd [bold] reason · best 0.901")
    assert not err.getvalue()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (NoTrialFinishedError("all 3 failed"), 5),
        (ValueError("odd"), 1),
    ],
)
def test_the_last_object_says_how_the_run_ended(error: BaseException, code: int) -> None:
    shown, out, err = printer(as_json=True)
    with pytest.raises(type(error)), shown.ending(Path("runs/a/leaderboard.csv"), "auroc_any"):
        shown.tell(events.ended(trial(), RESULT, "", STANDING, "auroc_any"))
        raise error
    last = json.loads(out.getvalue().splitlines()[-1])
    assert (last["event"], last["exit_code"], last["leaderboard"]) == ("done", code, "runs/a/leaderboard.csv")
    assert last["best"] == {"trial": "0003", "score": 0.9014}
    assert ("To go on:\n  ichsearch run" in err.getvalue()) == (code in (130, 143))


def test_a_run_that_is_refused_before_it_begins_prints_no_object() -> None:
    shown, out, _ = printer(as_json=True)
    with pytest.raises(NoTrialFinishedError), shown.ending(Path("leaderboard.csv"), "auroc_any"):
        raise NoTrialFinishedError("refused")
    assert not out.getvalue()


def test_the_end_names_the_reason_the_leaderboard_and_the_next_command() -> None:
    shown, out, _ = printer(as_json=False)
    standing = replace(STANDING, finished=19, done="trials")
    shown.close(Path("runs/a/leaderboard.csv"), "auroc_any", standing)
    assert out.getvalue() == (
        "all trials are done: 20 trials, 1 of them without a score\nleaderboard: runs/a/leaderboard.csv\n"
        "to go on: ichsearch run --space 'my space.yaml' --out runs/a --extend --trials 40\n"
    )

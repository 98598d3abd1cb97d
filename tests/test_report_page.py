"""The report of a run: its sections say what the files say, it needs nothing else, and no text in it comes alive."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from books import make_space
from runs import rewrite_predictions, write_cohort_shards, write_run

from ichsearch.cli import main
from ichsearch.data.tasks import Task
from ichsearch.errors import ConfigError, NoTrialFinishedError
from ichsearch.report import bootstrap
from ichsearch.report.page import Row, Section
from ichsearch.report.provenance import note_command, noting, read_commands
from ichsearch.report.report import SECTIONS, drawn_at_the_end, policy, shards_of, write_report
from ichsearch.report.report_confirm import confirmation
from ichsearch.report.report_facts import failures, provenance
from ichsearch.report.report_leaderboard import leaderboard
from ichsearch.report.report_scores import calibration, confusion, discrimination, scanners
from ichsearch.report.report_search import cost, search
from ichsearch.report.report_training import _points, learning_curves, learning_rates
from ichsearch.report.run_data import RunData
from ichsearch.report.summary import summarise
from ichsearch.search.events import Event
from ichsearch.search.openings import note_opening
from ichsearch.search.run_folder import ReplayRecord, RunFolder
from ichsearch.train.lineage import PREDICTIONS
from ichsearch.train.metrics import Metric

TRIALS = 24
COMMAND = "ichsearch report runs/small"


class Page(HTMLParser):
    """Start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> None:
    """What is tested here are pages, not intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort_shards(tmp_path_factory.mktemp("page") / "shards")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> RunFolder:
    folder = write_run(tmp_path_factory.mktemp("page") / "run", shards, make_space(trials=TRIALS, sampler="random"))
    note_command(folder, ["ichsearch", "run", "--space", "my space.yaml"])
    write_report(folder, shards, [COMMAND])
    return folder


@pytest.fixture
def copy(folder: RunFolder, tmp_path: Path) -> RunFolder:
    """The run, to be changed."""
    shutil.copytree(folder.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def data(folder: RunFolder, shards: Path) -> RunData:
    return RunData(folder, shards)


@pytest.fixture(scope="module")
def text(folder: RunFolder) -> str:
    return folder.report.read_text()


def cells(section: Section, table: int = 0) -> list[list[str]]:
    return [[str(cell.shown) for cell in row.cells] for row in section.tables[table].rows]


def row_of(section: Section, name: str, table: int = 0) -> Row:
    return next(row for row in section.tables[table].rows if row.cells[0].shown == name)


def test_the_page_has_every_section_with_a_sentence(text: str) -> None:
    ids = [attributes["id"] for attributes in Page(text).all("section")]
    assert len(ids) == len(set(ids)) == len(SECTIONS) + 1
    assert text.count('<p class="look">') == len(ids)
    assert text.lower().count("not for clinical use") >= 2
    assert "best trial" in text


def test_it_needs_no_other_file_and_no_network(text: str) -> None:
    assert not re.search(r"https?:|src=\"//|url\(|@import", re.sub(r"base64,[^\"]+", "", text))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "form"}
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))


def test_nothing_is_styled_or_runs_but_what_the_policy_names(text: str) -> None:
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    assert style
    assert script
    said = next(attributes["content"] for attributes in Page(text).all("meta") if "http-equiv" in attributes)
    assert said == policy(style[1], script[1])
    assert "unsafe" not in said
    names = {name for _, attributes in Page(text).tags for name in attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_every_picture_says_what_it_shows(text: str) -> None:
    page = Page(text)
    assert all(image["alt"] for image in page.all("img"))
    drawn = page.all("svg")
    assert len(drawn) > 40
    assert all(one.get("aria-label") or one.get("aria-hidden") == "true" for one in drawn)
    assert all(attributes.get("scope") for attributes in page.all("th"))


def test_the_same_run_gives_the_same_bytes(folder: RunFolder, shards: Path, text: str) -> None:
    assert write_report(folder, shards, [COMMAND]).read_text() == text


def test_without_shards_it_is_drawn_as_far_as_that_goes(copy: RunFolder) -> None:
    text = write_report(copy, None, [COMMAND]).read_text()
    assert text.count("Missing: the shards are not at hand; name them with --data.") == 3
    assert len(Page(text).all("section")) == len(SECTIONS) + 1


def test_the_leaderboard_lists_what_has_a_score_with_its_interval(data: RunData) -> None:
    section = leaderboard(data)
    names = [row[0] for row in cells(section)]
    rules = {"prevalence", "position", "metadata", "position_metadata"}
    assert set(names) == {*data.finished, *rules}
    best = row_of(section, data.best.name)
    assert best.style == "tied"
    assert best.trial == data.best.name
    assert f"{data.best.result.score:.3f}, from" in best.cells[4].shown
    assert all(row_of(section, rule).style == "baseline" and not row_of(section, rule).trial for rule in rules)
    by_name = data.leaderboard.set_index("trial")
    assert [row[5] for row in cells(section)] == [f"{by_name.loc[name, 'difference']:+.3f}" for name in names]


def test_what_was_not_confirmed_says_how_to(data: RunData) -> None:
    assert "Not confirmed yet: the best score is the luckiest of 22" in confirmation(data).notes[0]


def test_replays_and_the_test_fold_stand_beside_the_search(copy: RunFolder, shards: Path) -> None:
    data = RunData(copy, shards)
    best, other = data.ranked[0], data.ranked[1]
    for seed, source in ((1, best), (2, other)):
        record = ReplayRecord(trial=best.name, seed=seed, fold=0, status="finished")
        shutil.copytree(copy.trial(source.name), copy.replay(record.name))
        copy.write_replay(record)
    copy.write_replay(ReplayRecord(trial=best.name, seed=3, fold=0, status="failed", reason="crashed"))
    copy.write_replay(ReplayRecord(trial=other.name, seed=1, fold=0, status="failed", reason="crashed"))
    shutil.copy(copy.trial(other.name) / "predictions.parquet", copy.test_predictions(best.name))
    note_opening(copy, ["ichsearch", "confirm", "run"], [best.name])

    section = confirmation(RunData(copy, shards))

    row, second = cells(section)  # in the order of the search
    assert [row[0], second[0]] == [best.name, other.name]
    assert second[3:] == ["0", "–", "–", "–", "–"]
    scores = [best.result.score, other.result.score]
    expected = [f"{best.result.score:.3f}", "2", f"{np.mean(scores):.3f}", f"{np.std(scores, ddof=1):.3f}"]
    assert row[2:6] == expected
    assert row[6].startswith(f"{other.result.score:.3f} [")
    assert row[7] == "–"
    text = write_report(copy, shards, []).read_text()
    assert "the test fold was opened 1 time, see test_fold.json" in text
    assert "untouched" not in text
    assert f"by “ichsearch confirm run”, for trials {best.name}." in section.notes[0]
    assert section.notes[1].startswith("Replays that failed: 2;")


def test_the_rungs_tell_how_many_trials_were_promoted(data: RunData) -> None:
    promoted = sum(trial.record.parent is not None for trial in data.finished.values())
    assert promoted > 2
    assert f"; {promoted} promoted." in search(data).figures[1].caption


def test_the_front_holds_the_best_and_the_cheapest(data: RunData) -> None:
    spent = {name: sum(one.result.seconds for one in data.chain(name)) for name in data.finished}
    front = cost(data).figures[0].caption
    assert data.best.name in front
    cheapest = [name for name in data.finished if spent[name] == min(spent.values())]
    assert max(cheapest, key=lambda name: data.finished[name].result.score) in front


def test_a_learning_curve_goes_through_all_parents(data: RunData) -> None:
    trial = next(one for one in data.ranked if len(list(data.chain(one.name))) == 3)
    assert [epoch for epoch, _ in _points(data, trial, "train_loss")] == list(range(1, 10))
    assert [figure.caption for figure in learning_curves(data).figures] == [
        "Loss while training",
        "Validation log loss",
        "Validation score",
    ]


def test_every_curve_of_the_lr_finder_is_drawn(data: RunData) -> None:
    figures = learning_rates(data).figures
    assert len(figures) == len(data.curves) == 3
    for figure, curve in zip(figures, data.curves, strict=True):
        assert f"taken {curve.lr:.2g}" in figure.caption
        assert len(figure.legend) == 1 + len(curve.suggestions)


def test_confusion_has_the_metrics_sensitivity_and_counts_every_slice(data: RunData) -> None:
    section = confusion(data)
    for percent, table in ((90, 1), (95, 2)):
        for label in data.best_config.labels:
            row = row_of(section, label, table)
            assert row.cells[6].value == pytest.approx(data.best.result.metrics[f"sensitivity_at_{percent}_{label}"])
            assert row.cells[7].value is not None
            assert float(row.cells[7].value) >= percent / 100 - 1e-9
            assert sum(float(cell.value or 0) for cell in row.cells[2:6]) == len(data.predictions.slices)


def test_calibration_and_curves_are_drawn_for_every_label(data: RunData) -> None:
    assert len(discrimination(data).figures) == 12
    assert [figure.caption for figure in calibration(data).figures] == list(data.best_config.labels[::-1])


def test_scanners_are_told_apart_and_few_patients_get_no_interval(data: RunData) -> None:
    stored = cells(scanners(data))
    assert [row[0] for row in stored] == [
        "12 bit, unsigned, intercept -1024",
        "12 bit, unsigned, intercept 0",
        "16 bit, signed, intercept -1024",
    ]
    assert sum(int(row[1]) for row in stored) == len(data.predictions.slices)
    assert {row[5] for row in stored} == {"–"}  # of nine patients
    (upright, tilted) = sorted(cells(scanners(data), 2), key=lambda row: row[0] != "upright")
    assert upright[0] == "upright"
    assert "tilted" in tilted[0]


@pytest.mark.parametrize(
    ("task", "metric"), [("any", "log_loss"), ("positives", "accuracy_multi"), ("multilabel", "patient_auroc_mean")]
)
def test_every_task_and_either_direction_gets_a_page(shards: Path, tmp_path: Path, task: Task, metric: Metric) -> None:
    space = make_space(trials=6, sampler="random", task=task, metric=metric)
    data = RunData(write_run(tmp_path / "run", shards, space), shards)
    text = write_report(data.folder, shards, []).read_text()
    assert len(Page(text).all("section")) == len(SECTIONS) + 1
    scores = [trial.result.score for trial in data.ranked]
    assert scores == sorted(scores, reverse=metric != "log_loss")
    assert len(discrimination(data).figures) == 2 * len(data.best_config.labels)


def test_one_trial_is_enough(shards: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shards, make_space(trials=1))
    text = write_report(folder, shards, []).read_text()
    assert "Missing: every trial has the same parameters." in text
    assert "the importance of parameters needs 20 finished trials" in text.lower()


def test_a_label_without_a_positive_slice_is_undefined_not_a_number(copy: RunFolder, shards: Path) -> None:
    for name in RunData(copy, shards).finished:
        frame = pd.read_parquet(copy.trial(name) / PREDICTIONS)
        frame["label_epidural"] = np.int8(0)
        rewrite_predictions(copy.trial(name), frame)
    summarise(copy, None)
    data = RunData(copy, shards)
    assert "Undefined, the validation slices are all of one kind: epidural." in discrimination(data).notes
    assert [cell.shown for cell in row_of(confusion(data), "epidural", 1).cells] == ["epidural", *["undefined"] * 8]
    assert "epidural" not in [figure.caption for figure in calibration(data).figures]


def test_failures_are_listed_with_their_reason(data: RunData) -> None:
    section = failures(data)
    assert len(section.tables[0].rows) == TRIALS - len(data.finished) > 0
    assert {row[1] for row in cells(section)} == {"diverged"}
    assert sum(int(row[2]) for row in cells(section, 1)) == len(section.tables[0].rows)


def test_it_says_on_what_and_by_which_commands_it_was_made(data: RunData) -> None:
    section = provenance(data, [COMMAND])
    assert section.commands[0].startswith("ichsearch run --space 'my space.yaml'   # 20")
    assert section.commands[1] == COMMAND
    facts = dict(cells(section))
    assert facts["fingerprint of the shards"] == data.manifest.fingerprint
    assert facts["patients to validate on"] == "9"
    environment = dict(cells(section, 1))
    assert environment["torch"]
    assert environment["ray"]


def test_a_command_is_kept_once_a_run_has_begun(tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path), []
    tell = noting(told.append, folder, ["ichsearch", "run"])
    tell(Event("data", "", {}))
    assert read_commands(folder) == []
    tell(Event("opened", "", {}))
    tell(Event("confirming", "", {}))  # a run that confirms its best is one command
    noting(told.append, folder, ["ichsearch", "confirm"])(Event("confirming", "", {}))
    assert [entry["command"] for entry in read_commands(folder)] == ["ichsearch run", "ichsearch confirm"]
    assert len(told) == 4


def test_the_command_draws_the_page_and_stands_on_it(
    copy: RunFolder, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.report.unlink()
    monkeypatch.setattr("sys.argv", ["ichsearch", "report", str(copy.root), "--data", str(shards)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert f"{copy.report}: open it in a browser" in capsys.readouterr().out
    drawn = copy.report.read_text()
    assert f"ichsearch report {copy.root} --data {shards}\n" in drawn


def test_shards_are_those_that_the_run_is_on(folder: RunFolder, shards: Path, tmp_path: Path) -> None:
    assert shards_of(folder, shards) == shards.resolve()
    assert shards_of(folder, None) is None
    other = write_cohort_shards(tmp_path / "other", patients=20)
    with pytest.raises(ConfigError, match="must be the shards that the run is on"):
        shards_of(folder, other)
    with pytest.raises(ConfigError, match="must be the folder of a run"):
        shards_of(RunFolder(tmp_path), None)


def test_a_run_without_a_finished_trial_has_no_report(copy: RunFolder, shards: Path) -> None:
    for path in copy.trials.glob("*/metrics.json"):
        path.unlink()
    with pytest.raises(NoTrialFinishedError):
        write_report(copy, shards, [])


def test_a_report_that_cannot_be_drawn_costs_no_run(copy: RunFolder, shards: Path) -> None:
    curve = next(copy.lr_finder.glob("*.json"))
    curve.write_text(json.dumps({"config": "damaged"}))
    said = drawn_at_the_end(copy, shards)
    assert said.startswith("the report could not be drawn (ValidationError")
    assert f"ichsearch report {copy.root}" in said

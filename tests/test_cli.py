"""The command line as a user meets it: every wrong input gets one clear message and its exit code, and no traceback."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
from spaces import SMALL, write_space

from ichsearch.cli import main
from ichsearch.phantom import write_cohort
from ichsearch.shards.preprocess import preprocess

ICHSEARCH = str(Path(sys.executable).parent / "ichsearch")


pytestmark = pytest.mark.usefixtures("ray_local")


def ichsearch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has the libraries and a Ray session already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["ichsearch", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "phantom"
    write_cohort(folder, 12, 6, 0, matrix=128, workers=1)
    return folder


@pytest.fixture(scope="session")
def shards(cohort: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("shards") / "shards"
    preprocess(cohort / "dicom", folder, labels=cohort / "stage_2_train.csv", size=64)
    return folder


def test_help_imports_neither_torch_nor_ray() -> None:
    code = "import sys; from ichsearch.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "ray", "numpy", "pandas", "pydicom", "optuna", "timm", "pyarrow"}


def test_an_unknown_option_is_a_usage_error() -> None:
    assert ichsearch("run", "--spice", "x").returncode == 2
    assert ichsearch("preprocess", ".", "--out", "x", "--crop", "round").returncode == 2


def test_an_empty_folder_is_not_the_working_folder(cohort: Path, shards: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        for arguments in (
            ["preprocess", "", "--out", "x"],
            ["preprocess", cohort / "dicom", "--out", ""],
            ["inspect", ""],
            ["inspect", shards, "--out", ""],
            ["phantom", "", "--patients", "1"],
        ):
            assert_refused(ichsearch(*arguments), 4, "a folder must have a name")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_ends_with_7(cohort: Path) -> None:
    assert_refused(ichsearch("preprocess", cohort / "dicom", "--out", "x" * 300), 7, "File name too long")


@pytest.mark.parametrize(
    "option", ["--seed=-1", f"--seed={2**31}", "--patients=0", "--patients=100001", "--slices=0", "--slices=257"]
)
def test_absurd_numbers_of_a_phantom_are_a_usage_error(tmp_path: Path, option: str) -> None:
    assert ichsearch("phantom", tmp_path / "out", option).returncode == 2
    assert not (tmp_path / "out").exists()


def test_a_phantom_or_a_page_is_not_written_to_a_store(shards: Path) -> None:
    for arguments in (["phantom", "s3://bucket/a"], ["inspect", shards, "--out", "s3://bucket/a"]):
        assert_refused(ichsearch(*arguments), 4, "must be on a disk")


@pytest.mark.parametrize("make", ["missing", "empty", "rubbish"])
def test_a_folder_without_slices_ends_with_3_and_writes_nothing(tmp_path: Path, make: str) -> None:
    dicom, out = tmp_path / "dicom", tmp_path / "shards"
    if make != "missing":
        dicom.mkdir()
    if make == "rubbish":
        (dicom / "a.dcm").write_text("<html>")
    done = ichsearch("preprocess", dicom, "--out", out)
    assert_refused(done, 3, "DICOM_DIR")
    assert str(dicom) not in done.stderr  # a folder may have a patient's name
    assert not out.exists()


def test_labels_that_contradict_themselves_end_with_3_naming_the_line(cohort: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    text = (cohort / "stage_2_train.csv").read_text()
    first = text.splitlines()[1]
    labels.write_text(text + first[:-1] + ("0" if first.endswith("1") else "1") + "\n")
    done = ichsearch("preprocess", cohort / "dicom", "--labels", labels, "--out", tmp_path / "shards")
    assert_refused(done, 3, f"line {len(text.splitlines()) + 1} contradicts")
    assert not (tmp_path / "shards").exists()


def test_a_typo_in_a_space_ends_with_4_and_its_line(tmp_path: Path) -> None:
    space = write_space(tmp_path, SMALL.replace("test_resnet,", "resnet81,"))
    done = ichsearch("run", "--space", space, "--out", tmp_path / "run")
    assert_refused(done, 4, f"{space}:8", "did you mean resnet18")
    assert not (tmp_path / "run").exists()


def test_data_that_are_no_shards_end_with_3_and_write_nothing(tmp_path: Path) -> None:
    done = ichsearch("run", "--space", write_space(tmp_path), "--data", tmp_path, "--out", tmp_path / "run")
    assert_refused(done, 3, "manifest.json")
    assert not (tmp_path / "run").exists()


def test_an_out_with_other_files_ends_with_4_and_leaves_them(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    done = ichsearch("run", "--space", write_space(tmp_path), "--data", shards, "--out", tmp_path / "run")
    assert_refused(done, 4, "other files")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_ctrl_c_going_on_and_extending(shards: Path, tmp_path: Path) -> None:
    space, run = write_space(tmp_path, SMALL.replace("epochs: 2", "epochs: 6")), tmp_path / "run"
    command = ["run", "--space", str(space), "--data", str(shards), "--out", str(run)]
    printed = interrupt_after_a_trial(command)
    assert f"ichsearch run --space {space}" in printed
    finished = {path: path.stat().st_mtime_ns for path in run.glob("trials/*/weights.safetensors")}
    assert finished

    done = ichsearch(*command)
    assert done.returncode == 0, done.stderr
    assert "rules that see no image: the best, " in done.stdout
    table = trials_of(run)
    assert sorted(table["trial"]) == ["0000", "0001", "0002"]
    assert list(table["status"]) == ["finished"] * 3
    assert list(table["place"]) == sorted(table["place"])
    assert all((run / checkpoint).is_file() for checkpoint in table["checkpoint"])
    assert all(path.stat().st_mtime_ns == modified for path, modified in finished.items()), "trained twice"

    other = write_space(tmp_path, SMALL, "other.yaml")
    refused = ichsearch("run", "--space", other, "--data", shards, "--out", run)
    assert_refused(refused, 4, "epochs: 6 in the run, 2 asked for")
    assert_refused(ichsearch(*command, "--trials", "4"), 4, "--extend")
    extended = ichsearch(*command, "--trials", "4", "--extend")
    assert extended.returncode == 0, extended.stderr
    assert len(trials_of(run)) == 4
    assert f"report: {run / 'report.html'}" in extended.stdout

    page = (run / "report.html").read_text()
    assert page.count("ichsearch run --space") == 3 + 1  # three starts that began, and how to do it again


def test_a_report_of_no_run_ends_with_4(tmp_path: Path) -> None:
    assert_refused(ichsearch("report", tmp_path), 4, "must be the folder of a run")
    assert not list(tmp_path.iterdir())


def trials_of(run: Path) -> pd.DataFrame:
    """The leaderboard without the baselines."""
    table = pd.read_csv(run / "leaderboard.csv", dtype={"trial": str})
    return table[table["status"] != "baseline"]


def interrupt_after_a_trial(command: list[str]) -> str:
    """Ctrl+C half a second after the first trial has finished; what the run printed from then on."""
    driver = subprocess.Popen([ICHSEARCH, *command], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with driver:
        assert driver.stdout is not None
        seen = ""
        while "finished" not in seen:
            line = driver.stdout.readline()
            assert line, f"the run ended before a trial did: {seen}"
            seen += line
        time.sleep(0.5)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
        rest = driver.stdout.read()
    assert driver.returncode == 130
    return rest


def test_a_run_whose_time_has_no_room_for_any_trial_ends_with_5_and_says_so(shards: Path, tmp_path: Path) -> None:
    arguments = ["--space", write_space(tmp_path), "--data", shards, "--out", tmp_path / "run", "--time", "0.01s"]
    assert_refused(ichsearch("run", *arguments), 5, "none has ended: the time budget has no room", "--extend")


def test_a_run_of_which_every_trial_fails_ends_with_5_and_their_reason(shards: Path, tmp_path: Path) -> None:
    content = """\
name: hopeless
trials: 1
epochs: 30
pretrained: no
parameters: {backbone: test_resnet, batch_size: 8, size: 32, lr: 100, weight_decay: 1}   # weights grow 99-fold a step
"""
    run = tmp_path / "run"
    done = ichsearch("run", "--space", write_space(tmp_path, content), "--data", shards, "--out", run)
    assert_refused(done, 5, "diverged")
    assert list(pd.read_csv(run / "leaderboard.csv")["reason"]) == ["diverged"]
    assert "is not finite" in (run / "trials" / "0000" / "error.txt").read_text()

"""The README's commands run as they are written, and its tree is the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    match = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, marker
    return match[1]


def test_the_commands_for_your_own_data_run_as_written(tmp_path: Path, ichsearch_home: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block("mine.yaml"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "ICHSEARCH_HOME": str(ichsearch_home)}
    for command in block("runnable").strip().splitlines():
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    status = list(pd.read_csv(tmp_path / "runs/mine/leaderboard.csv")["status"])
    assert (status.count("finished"), status.count("baseline"), len(status)) == (2, 4, 6)
    written = {path.name for path in (tmp_path / "runs/mine").iterdir()}
    promised = set(re.findall(r"^  ([\w.]+)/? ", README.split("runs/mine/\n")[1].split("```")[0], re.MULTILINE))
    of_other_verbs = {"confirm", "test_fold.json", "ensemble.json", "ensemble.parquet", "evaluations"}
    assert promised - of_other_verbs <= written
    assert {path.suffix for path in (tmp_path / "lr_finder").iterdir()} == {".json", ".png"}


def test_the_tree_names_every_file_once() -> None:
    listed = re.findall(r"([\w.]+\.(?:py|yaml))(?= |$)", README.split("## The tree")[1], re.MULTILINE)
    files = [
        path.name
        for folder in ("ichsearch", "search_spaces")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") and path.name != "__init__.py"
    ]
    assert sorted(listed) == sorted(files)


def test_every_fault_names_tests_that_there_are_and_which_are_slow() -> None:
    rows = README.split("### What a run outlives")[1].split("\n## ")[0].splitlines()
    named = [found for row in rows for found in re.findall(r"`(\w+)`: `(\w+)`(\*?)", row)]
    assert len(named) > 20
    for file, test, star in named:
        before, found, _ = (ROOT / "tests" / f"test_{file}.py").read_text().partition(f"\ndef test_{test}(")
        assert found, f"{file}: {test}"
        assert ("pytest.mark.slow" in before.rpartition("\n\n\n")[2]) == bool(star), f"{file}: {test}"


def test_the_test_command_is_what_ci_runs() -> None:
    assert ".venv/bin/pytest" in block("test command")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()

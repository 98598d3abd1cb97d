"""Nothing from outside runs code, steers a terminal, or learns the cluster's token."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from searches import private_ray
from test_cli import ichsearch

from ichsearch.cli_events import RunPrinter
from ichsearch.errors import ConfigError
from ichsearch.model.weights import obtain_weights
from ichsearch.report.leaderboard_table import as_table
from ichsearch.search.events import Event
from ichsearch.terminal import literal

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]\r\u202e"
"""Retitles the window, clears the screen, colours, turns the direction of reading."""
SESSION = """
import contextlib, json, os, urllib.error, urllib.request
from pathlib import Path
import ray
from ichsearch.shards.ray_session import ray_session

def work():
    return os.getpid()

def answer(address):
    try:
        return urllib.request.urlopen(address + "/api/version").status
    except urllib.error.HTTPError as error:
        return error.code

with ray_session() as dashboard:
    ray.get(ray.remote(work).remote())
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            lines.append(path.read_bytes())
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    told = {"dashboard": dashboard, "status": answer(dashboard), "mode": token.stat().st_mode & 0o777,
            "argv": any(token.read_bytes() in line for line in lines)}
print(json.dumps(told))
"""


class Evil:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self._canary, "dead")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.write_text("alive")
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("place", ["source", "run"])
def test_no_file_of_weights_is_unpickled(tmp_path: Path, canary: Path, suffix: str, form: str, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir()
    path = folder / f"test_resnet{suffix if place == 'source' else '.safetensors'}"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(canary), protocol=2))
    else:
        torch.save({"state_dict": Evil(canary)}, path)
    with pytest.raises(ConfigError, match="unreadable"):
        obtain_weights("test_resnet", "require", tmp_path / "run", tmp_path / "source")
    assert canary.read_text() == "alive"
    if form == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301 - our own
    else:
        with path.open("rb") as file:
            torch.load(file, weights_only=False)
    assert canary.read_text() == "dead", "the canary would have died"


def test_the_token_of_a_private_cluster_is_asked_for_and_nowhere_to_be_seen(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    with private_ray():
        environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", SESSION], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["dashboard"].startswith("http://127.0.0.1:")
        assert (told["status"], told["mode"], told["argv"]) == (401, 0o600, False)
        secret = token.read_bytes()
        logs = [path for path in Path(os.environ["RAY_TMPDIR"]).rglob("*") if path.is_file()]
        assert len(logs) > 10
        assert not [path for path in logs if secret in path.read_bytes()]
        assert secret not in (done.stdout + done.stderr).encode()


def is_plain(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\x9b\r\u202e")


def test_what_is_printed_literally_steers_no_terminal() -> None:
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, color_system=None, width=200).print(literal(f"a{EVIL}\tb\nc"))
    assert is_plain(shown.getvalue())
    assert "\\x1b]0;owned\\x07" in shown.getvalue()
    assert "[red]" in shown.getvalue()
    assert "\nc" in shown.getvalue()


def test_an_event_and_a_table_steer_no_terminal() -> None:
    out, err = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, width=300) for file in (out, err)]
    RunPrinter(*consoles, ["ichsearch"], as_json=False).tell(Event("failed", f"trial failed {EVIL}", {}))
    board = pd.DataFrame({name: [float("nan")] for name in ("rank", "score", "low", "high", "difference", "p_holm")})
    board = board.assign(trial=EVIL, backbone=EVIL, status="failed", reason=EVIL, metric=f"auroc{EVIL}", tied=None)
    board = board.assign(
        beats_baselines=None, confirmed_mean=None, split="patient", test_score=None, epochs=1, chain_seconds=1.0
    )
    consoles[0].print(as_table(board))
    assert "owned" in out.getvalue()
    assert is_plain(out.getvalue())


@pytest.mark.usefixtures("ray_local")
def test_names_of_files_and_backbones_steer_no_terminal(tmp_path: Path) -> None:
    space = tmp_path / f"{EVIL.replace('/', '')}.yaml"
    space.write_text('name: a\nparameters: {backbone: "resnet\\e[31m18", batch_size: 8, size: 32, lr: 0.1}\n')
    for arguments in (
        ["run", "--space", space, "--out", tmp_path / "run"],
        ["preprocess", tmp_path / EVIL, "--out", tmp_path / "out"],
        ["leaderboard", tmp_path / EVIL],
        ["inspect", tmp_path / EVIL],
    ):
        done = ichsearch(*arguments)
        assert done.returncode in (3, 4), done.stderr
        assert is_plain(done.stdout + done.stderr), arguments[0]

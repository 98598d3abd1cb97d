"""SIGINT and SIGTERM end a command within seconds in every stage, nothing of it goes on, and the same command does."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from searches import SPACE, is_running, one_by_one, private_ray, results, write_tiny_shards
from spaces import write_space

from ichsearch import cli_signals
from ichsearch.shards.ray_session import _signals_kept

SOON_S: Final = 10.0
"""Within which a command must have ended after the first signal, and what it has started after that."""
CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Command:
    """One start of the command in a process of its own, watched."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self._printed = folder / "printed"
        with self._printed.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from ichsearch.cli import main; main()", *map(str, arguments)],
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    def wait_for(self, words: str, more_s: float = 0.0) -> None:
        while words not in self.printed:
            assert self.process.poll() is None, self.printed
            time.sleep(0.02)
        time.sleep(more_s)

    def stop(self, *signals: signal.Signals) -> int:
        """Send signals, a moment apart; the exit code."""
        below = relatives()
        assert self.process.poll() is None, self.printed
        began_s = time.monotonic()
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
            time.sleep(0.3)
        code = self.process.wait(timeout=60)
        assert time.monotonic() - began_s < SOON_S
        assert below
        assert not left(), "processes go on"
        assert "Traceback" not in self.printed
        assert "*** SIG" not in self.printed, "Ray's dump"
        assert "o go on:\n  ichsearch " in self.printed
        return code


def relatives() -> list[int]:
    """All processes that have the private folder of Ray in their environment, save this one."""
    marker, found = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def left() -> list[int]:
    """Those that have not ended a few seconds after their command has."""
    until_s = time.monotonic() + SOON_S
    while (pids := [pid for pid in relatives() if is_running(pid)]) and time.monotonic() < until_s:
        time.sleep(0.1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, ray_local: Path) -> Iterator[Path]:  # noqa: ARG001 - for the shards
    """A folder with shards, the cohort that they are of, and a space; what is started below has a Ray of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder)
    write_space(folder, one_by_one(SPACE), "space.yaml")
    with private_ray():
        yield folder


def run_command(tiny: Path, out: Path) -> list[str | Path]:
    return ["run", "--space", tiny / "space.yaml", "--data", tiny / "shards", "--out", out]


def test_sigterm_ends_trials_with_143_and_a_second_signal_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    arguments = run_command(tiny, tmp_path / "run")
    command = Command(tmp_path, *arguments)
    command.wait_for("finished")
    assert command.stop(signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == 143
    assert json.loads((tmp_path / "run" / "lease.json").read_text())["released"]
    assert "finished" in set(results(tmp_path / "run")["status"])


@pytest.mark.slow
@pytest.mark.parametrize("number", list(CODES), ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("words", "more_s"),
    [("starting Ray", 0.0), ("starting Ray", 0.7), ("starting Ray", 1.5), ("starting Ray", 2.5), ("LR finder:", 0.3),
     ("started ", 0.5)],
)  # fmt: skip
def test_a_run_is_stopped_in_every_stage_and_goes_on(
    tiny: Path, tmp_path: Path, number: signal.Signals, words: str, more_s: float
) -> None:
    arguments = run_command(tiny, tmp_path / "run")
    command = Command(tmp_path, *arguments)
    command.wait_for(words, more_s)
    assert command.stop(number) == CODES[number]
    again = Command(tmp_path, *arguments)
    again.wait_for("finished")
    assert again.stop(number) == CODES[number]


@pytest.mark.slow
@pytest.mark.parametrize("number", list(CODES), ids=lambda number: number.name)
def test_a_preprocessing_and_a_confirmation_are_stopped_and_go_on(
    tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    made = ["preprocess", tiny / "cohort" / "dicom", "--out", tmp_path / "shards"]
    command = Command(tmp_path, *made)
    command.wait_for("headers:")
    assert command.stop(number) == CODES[number]
    assert Command(tmp_path, *made).process.wait() == 0

    searched = [*run_command(tiny, tmp_path / "run"), "--trials", "1"]
    assert Command(tmp_path, *searched).process.wait() == 0
    confirmed = ["confirm", tmp_path / "run", "--data", tiny / "shards", "--seeds", "2"]
    command = Command(tmp_path, *confirmed)
    command.wait_for("confirming")
    assert command.stop(number) == CODES[number]
    assert Command(tmp_path, *confirmed).process.wait() == 0


def test_a_process_that_hangs_while_it_ends_is_ended_with_the_signals_code() -> None:
    code = """
import signal, sys, time
from ichsearch import cli_signals
from ichsearch.shards.ray_session import _signals_kept
cli_signals.GRACE_S = 0.3
sys.argv = ["ichsearch", "run", "--out", "my run"]
with cli_signals.stopped_by_signals():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)  # nobody hears it
        time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr.endswith("To go on:\n  ichsearch run --out 'my run'\n")
    assert cli_signals.GRACE_S < SOON_S


class Clumsy:
    """As what Python does at a fork or in a destructor: an exception in it is printed and forgotten."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("act", [Clumsy, lambda: signal.raise_signal(signal.SIGTERM)], ids=["forgotten", "raised"])
def test_sigterm_is_not_lost_while_ray_answers_it_in_its_way(act: Callable[[], object]) -> None:
    heard = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with _signals_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as Ray's
            act()
        assert heard == [signal.SIGTERM]
        with pytest.raises(SystemExit), _signals_kept():
            sys.exit(1)
        assert heard == [signal.SIGTERM], "that was none"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("last_words", ["print", "lambda *words: time.sleep(60)"])
def test_a_process_that_hangs_is_ended_even_if_nobody_listens(last_words: str) -> None:
    code = f"""
import signal, time
from ichsearch import cli_signals, hard_end
cli_signals.GRACE_S = 0.3
with cli_signals.stopped_by_signals(), hard_end.last_words({last_words}):
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        time.sleep(30)
"""
    heard, closed = os.pipe()
    os.close(heard)
    done = subprocess.run([sys.executable, "-c", code], stdout=closed, stderr=closed, check=False, timeout=20)
    os.close(closed)
    assert done.returncode == 143


def test_a_process_that_ends_in_order_leaves_without_pythons_teardown() -> None:
    code = """
import signal, sys, time
from ichsearch import cli

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(30)

sys.slow = Slow()
cli.app = lambda: signal.raise_signal(signal.SIGTERM)
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (143, "ichsearch: terminated\n")


def test_handlers_are_put_back_when_nothing_happened() -> None:
    before = [signal.getsignal(number) for number in CODES]
    with cli_signals.stopped_by_signals():
        assert [signal.getsignal(number) for number in CODES] != before
    assert [signal.getsignal(number) for number in CODES] == before


@pytest.mark.slow
def test_a_disk_that_shards_fill_ends_with_7_its_path_free_and_needed_bytes(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = [sys.executable, "-c", "from ichsearch.cli import main; main()", "preprocess", tiny / "cohort" / "dicom"]
    command = shlex.join(map(str, [*made, "--size", "512", "--out", disk / "out"]))
    script = f"mount -t tmpfs -o size=200k none {disk} || exit 99\n{command}; echo code $?\n"
    script += f"mount -o remount,size=64m none {disk}\n{command}; echo code $?\n"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode in (1, 99):
        pytest.skip("no disk of our own can be mounted here")
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 7", "code 0"], done.stderr
    found = re.search(r"disk of \S+/out is full: ([\d,]+) bytes free, at most ([\d,]+) needed", done.stderr)
    assert found, done.stderr
    assert int(found[1].replace(",", "")) < 200_000 < int(found[2].replace(",", ""))

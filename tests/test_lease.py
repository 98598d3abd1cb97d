"""The lease of a run folder, against real processes; another host is a process that does not share the lock."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from ichsearch.errors import AlreadyRunningError
from ichsearch.search.lease import Lease, host_name, lease, read_lease

BEAT_S: Final = 0.1
LAPSE_S: Final = 0.8
DRIVER: Final = """
import fcntl, platform, sys
from pathlib import Path
from ichsearch.errors import AlreadyRunningError
from ichsearch.search.lease import lease

root, host, beat_s, lapse_s = sys.argv[1:]
if host:
    platform.node = lambda: host
    fcntl.flock = lambda *given: None
try:
    with lease(Path(root), beat_s=float(beat_s), lapse_s=float(lapse_s)) as held:
        print("held", flush=True)
        for _ in sys.stdin:
            held.check()
            print("ours", flush=True)
except AlreadyRunningError as error:
    print("refused" if "one driver at a time" in str(error) else "lost", flush=True)
"""


class Driver:
    """A process that asks for the lease."""

    def __init__(self, root: Path, host: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(root), host, str(BEAT_S), str(LAPSE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def check(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("check\n")
        self.process.stdin.flush()
        return self.says()

    def end(self) -> None:
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


@pytest.fixture
def drivers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def driver(drivers: ExitStack, root: Path, host: str = "") -> Driver:
    started = Driver(root, host)
    drivers.callback(started.kill)
    return started


def taken(root: Path) -> float:
    """Seconds until this process had the lease."""
    start_s = time.monotonic()
    with lease(root, beat_s=BEAT_S, lapse_s=LAPSE_S):
        return time.monotonic() - start_s


def refused(root: Path) -> str:
    with pytest.raises(AlreadyRunningError) as error, lease(root, beat_s=BEAT_S, lapse_s=LAPSE_S):
        pass
    return str(error.value)


def write(root: Path, host: str, beat: int, **more: object) -> None:
    content = {"host": host, "process": 7, "token": f"of {host}", "beat": beat, **more}
    (root / "aside").write_text(json.dumps(content))
    (root / "aside").replace(root / "lease.json")


def test_a_second_driver_is_refused_at_once(tmp_path: Path, drivers: ExitStack) -> None:
    first = driver(drivers, tmp_path)
    assert first.says() == "held"
    start_s = time.monotonic()
    message = refused(tmp_path)
    assert time.monotonic() - start_s < LAPSE_S
    assert f"process {first.process.pid} on {host_name().partition(':')[0]}" in message
    assert first.check() == "ours"


def test_of_two_in_one_process_the_second_is_refused(tmp_path: Path) -> None:
    with lease(tmp_path, beat_s=BEAT_S, lapse_s=LAPSE_S):
        assert "already running" in refused(tmp_path)
    assert taken(tmp_path) < LAPSE_S


@pytest.mark.parametrize("killed", [True, False])
def test_a_dead_or_ended_drivers_folder_is_free_at_once(tmp_path: Path, drivers: ExitStack, killed: bool) -> None:
    first = driver(drivers, tmp_path)
    assert first.says() == "held"
    first.kill() if killed else first.end()
    assert taken(tmp_path) < LAPSE_S


def test_a_stopped_driver_on_this_host_still_holds_the_folder(tmp_path: Path, drivers: ExitStack) -> None:
    first = driver(drivers, tmp_path)
    assert first.says() == "held"
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * LAPSE_S)
    assert "already running" in refused(tmp_path)
    first.process.send_signal(signal.SIGCONT)
    assert first.check() == "ours"


def test_a_driver_on_another_host_that_beats_is_left_alone(tmp_path: Path, drivers: ExitStack) -> None:
    other = driver(drivers, tmp_path, "other")
    assert other.says() == "held"
    assert f"process {other.process.pid} on other" in refused(tmp_path)
    assert other.check() == "ours"


def test_a_dead_driver_on_another_host_lapses(tmp_path: Path, drivers: ExitStack) -> None:
    other = driver(drivers, tmp_path, "other")
    assert other.says() == "held"
    other.kill()
    assert LAPSE_S <= taken(tmp_path) < LAPSE_S + 2


def test_a_folder_that_another_host_has_left_is_free_at_once(tmp_path: Path, drivers: ExitStack) -> None:
    other = driver(drivers, tmp_path, "other")
    assert other.says() == "held"
    other.end()
    assert taken(tmp_path) < LAPSE_S


def test_a_driver_that_was_thought_dead_stops_when_it_wakes(tmp_path: Path, drivers: ExitStack) -> None:
    other = driver(drivers, tmp_path, "other")
    assert other.says() == "held"
    other.process.send_signal(signal.SIGSTOP)
    with lease(tmp_path, beat_s=BEAT_S, lapse_s=LAPSE_S) as held:
        other.process.send_signal(signal.SIGCONT)
        assert other.check() == "lost"
        other.end()
        held.check()
        assert held.is_ours(), "the one that has lost does not take it back as it ends"


def test_it_stops_even_if_the_run_has_ended_meanwhile(tmp_path: Path, drivers: ExitStack) -> None:
    other = driver(drivers, tmp_path, "other")
    assert other.says() == "held"
    other.process.send_signal(signal.SIGSTOP)
    taken(tmp_path)
    other.process.send_signal(signal.SIGCONT)
    assert other.check() == "lost"


def test_the_lease_beats_and_a_lost_one_does_not(tmp_path: Path) -> None:
    with lease(tmp_path, beat_s=BEAT_S, lapse_s=LAPSE_S) as held:
        beats = {(read_lease(tmp_path / "lease.json") or {})["beat"] for _ in range(8) if not time.sleep(BEAT_S)}
        assert len(beats) >= 3
        write(tmp_path, "other", 1)
        with pytest.raises(AlreadyRunningError, match="stop here"):
            held.check()
        time.sleep(3 * BEAT_S)
    assert read_lease(tmp_path / "lease.json") == {"host": "other", "process": 7, "token": "of other", "beat": 1}


def test_a_host_that_ends_while_another_waits_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "other", 1)
    timer = threading.Timer(0.2, write, (tmp_path, "other", 2), {"released": True})
    timer.start()
    assert taken(tmp_path) < LAPSE_S
    timer.join()


def test_who_waited_as_long_and_wrote_last_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "dead", 1)
    take = Lease.take

    def overtaken(held: Lease) -> None:
        take(held)
        write(tmp_path, "third", 1)

    monkeypatch.setattr(Lease, "take", overtaken)
    assert "on third" in refused(tmp_path)
    assert (read_lease(tmp_path / "lease.json") or {})["host"] == "third"


@pytest.mark.parametrize("content", [b"", b'{"host": "oth', b"[]", b"3", b"\xff\x00", b"{}"])
def test_a_damaged_lease_lapses_like_another_hosts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    assert LAPSE_S <= taken(tmp_path) < LAPSE_S + 2


@pytest.mark.parametrize("content", [None, b"", b"[]"])
def test_a_lease_that_is_damaged_or_removed_is_written_again(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "lease.json"
    with lease(tmp_path, beat_s=BEAT_S, lapse_s=LAPSE_S) as held:
        path.unlink() if content is None else path.write_bytes(content)
        held.check()
        time.sleep(4 * BEAT_S)
        assert (read_lease(path) or {}).get("host") == host_name()
        held.check()


def test_a_folder_that_cannot_be_written_for_a_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes, *, durable: bool) -> None:  # noqa: ARG001 - as `write_bytes`
        raise OSError(28, "No space left on device")

    with lease(tmp_path, beat_s=BEAT_S, lapse_s=LAPSE_S) as held:
        monkeypatch.setattr("ichsearch.search.lease.write_bytes", full)
        time.sleep(3 * BEAT_S)
        held.check()
    assert (read_lease(tmp_path / "lease.json") or {})["released"] is False

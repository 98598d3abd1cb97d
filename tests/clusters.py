"""Ray clusters of a test's own, as an administrator starts them: `ray start`, in processes that the test ends."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from searches import is_running

RAY: Final = str(Path(sys.executable).parent / "ray")
START_S: Final = 120.0
SETTINGS: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


class OwnCluster:
    """A head, and the nodes that join it; one machine, but each node has processes and an environment of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.port, self.dashboard_port = folder, free_port(), free_port()
        self._environment = {**os.environ, **SETTINGS, "RAY_TMPDIR": str(folder), **environment}
        self._environment.pop("RAY_ADDRESS", None)

    @property
    def address(self) -> str:
        """Of its head."""
        return f"127.0.0.1:{self.port}"

    def start_head(self, dashboard_host: str = "127.0.0.1", cpus: int = 2) -> None:
        """Start it, and wait until drivers may come."""
        options = [f"--port={self.port}", f"--dashboard-host={dashboard_host}", f"--num-cpus={cpus}"]
        options += [f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}"]
        self._start(["--head", *options], {})
        wait_for_port(self.dashboard_port)

    def add_node(self, **environment: str) -> None:
        """Start one more, with one CPU."""
        self._start([f"--address={self.address}", "--num-cpus=1"], environment)

    def _start(self, options: list[str], environment: Mapping[str, str]) -> None:
        command = [RAY, "start", "--min-worker-port=0", "--max-worker-port=0", *options]
        log = self.folder / "start.log"  # not a pipe, which the node's processes would keep open
        with log.open("ab") as out:
            started = subprocess.run(command, env=self._environment | environment, stdout=out, stderr=out, check=False)
        assert started.returncode == 0, log.read_text()

    def processes(self, word: str = "") -> dict[int, str]:
        """Command lines of all processes that live in this cluster's environment and have this word in them."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"RAY_TMPDIR={self.folder}\0".encode() in (process / "environ").read_bytes():
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if word in line:
                        found[int(process.name)] = line
        return found

    def stop(self) -> None:
        """End every process of it."""
        while running := [pid for pid in self.processes() if is_running(pid)]:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@contextlib.contextmanager
def own_cluster(**environment: str) -> Iterator[OwnCluster]:
    """A cluster without nodes yet; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="icc"))
    cluster = OwnCluster(folder, **environment)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Wait until something listens at it."""
    until_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert time.monotonic() < until_s, "nothing listens"
        time.sleep(0.1)

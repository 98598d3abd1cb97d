"""A cluster whose head dies ends its driver with exit code 6 in time, and the run goes on elsewhere."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from clusters import OwnCluster, free_port, own_cluster
from searches import Driver, is_running
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.errors import ClusterError
from ichsearch.shards import cluster_watch
from ichsearch.shards.cluster_watch import GRACE_S, LOST_S, watched

SPACE = """\
name: lost
trials: 2
epochs: 400
trial_limit: 20s
pretrained: no
resources: {cpus_per_trial: 1}
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: {float: [0.001, 0.01]}}
"""
LOST = "the cluster was lost; run the same command again"


def test_a_head_that_answers_no_more_ends_whatever_the_driver_does() -> None:
    with pytest.raises(ClusterError, match="its head has not answered"), watched(lost_s=0.1) as watch:
        watch.start(f"127.0.0.1:{free_port()}")
        try:
            time.sleep(60)
        finally:
            watch.close(lambda: None)


@contextmanager
def frozen_head() -> Iterator[int]:
    """One for which the kernel accepts connections; its port."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        yield head.getsockname()[1]


class Refusal(grpc.GenericRpcHandler):
    """What a head answers that asks for a token."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # noqa: ARG002
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        )


@contextmanager
def refusing_head() -> Iterator[int]:
    """One that answers nobody's questions, but answers; its port."""
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Refusal()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_a_head_that_is_frozen_answers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "PROBE_S", 0.2)
    with frozen_head() as port, pytest.raises(ClusterError, match="has not answered"), watched(lost_s=0.1) as watch:
        watch.start(f"127.0.0.1:{port}")
        try:
            time.sleep(10)
        finally:
            watch.close(lambda: None)


def test_a_head_that_refuses_for_lack_of_a_token_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "PROBE_S", 0.2)
    with refusing_head() as port, watched(lost_s=0.1) as watch:
        watch.start(f"127.0.0.1:{port}")
        time.sleep(2)
        watch.close(lambda: None)


@pytest.mark.slow
def test_a_frozen_cluster_is_lost() -> None:
    with own_cluster() as cluster:
        cluster.start_head()
        with pytest.raises(ClusterError, match="has not answered"), watched(lost_s=5.0) as watch:
            watch.start(cluster.address)
            time.sleep(10)
            assert not watch.is_lost
            signal_head(cluster, signal.SIGSTOP)
            try:
                time.sleep(30)
            finally:
                watch.close(lambda: None)


def test_a_session_that_has_ended_is_watched_no_more() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with watched(lost_s=0.1) as watch:
        watch.start(f"127.0.0.1:{free_port()}")
        watch.close(lambda: None)
    assert signal.getsignal(signal.SIGUSR2) == before
    assert not [thread for thread in threading.enumerate() if is_watching(thread)]


def is_watching(thread: threading.Thread) -> bool:
    if thread.name == "ichsearch-cluster":
        thread.join(timeout=10)
    return thread.name == "ichsearch-cluster" and thread.is_alive()


@pytest.mark.parametrize(
    ("hang", "said", "words"),
    [
        ("time.sleep(60)", LOST, f"6 {LOST}\n"),
        ("watch.close(lambda: time.sleep(60))", "its head has not answered", ""),
    ],
)
def test_a_driver_that_hangs_when_its_cluster_is_lost_ends_with_6(hang: str, said: str, words: str) -> None:
    code = f"""
import atexit, time
from ichsearch.hard_end import last_words
from ichsearch.shards import cluster_watch
atexit.register(time.sleep, 60)  # as Ray would wait
cluster_watch.GRACE_S, cluster_watch.SHUTDOWN_S = 1.0, 0.1
with last_words(print), cluster_watch.watched(lost_s=0.1) as watch:
    watch.start("127.0.0.1:{free_port()}")
    try:
        time.sleep(60)
    finally:
        {hang}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert said in done.stderr
    assert done.stdout == words


@pytest.mark.slow
def test_a_run_on_a_cluster_whose_head_is_killed_ends_with_6_and_goes_on_without_it(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    arguments = ["--space", write_space(tmp_path, SPACE), "--data", tmp_path / "shards", "--out", tmp_path / "run"]
    with own_cluster() as cluster:
        cluster.start_head()
        driver = Driver([*arguments, "--address", cluster.address], tmp_path / "lost")
        assert driver.wait_for(lambda: bool(driver.events("started"))), driver.said
        time.sleep(2)
        killed_s = signal_head(cluster, signal.SIGKILL)
        assert driver.end() == 6, driver.said
        assert time.monotonic() - killed_s < LOST_S + GRACE_S + 20
        assert driver.events("done")[-1]["exit_code"] == 6
        assert "run the same command again" in driver.said
        assert "Traceback" not in driver.said
        until_s = time.monotonic() + 60
        while (workers := workers_of(cluster)) and time.monotonic() < until_s:
            time.sleep(0.5)
        assert not workers, "orphans go on"
    again = Driver(arguments, tmp_path / "again")
    assert again.end() == 0, again.said


def signal_head(cluster: OwnCluster, number: signal.Signals) -> float:
    """Send it to its GCS alone; when."""
    for pid, line in cluster.processes("gcs_server").items():
        if line.startswith("/") and "/gcs/gcs_server" in line.split()[0]:
            os.kill(pid, number)
    return time.monotonic()


def workers_of(cluster: OwnCluster) -> list[str]:
    """Those that run; not the agents of the node, which outlive it and do no work of ours."""
    return [line for pid, line in cluster.processes("ray::").items() if is_running(pid) and "Agent" not in line]

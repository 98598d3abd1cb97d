"""Which cluster a command works on, and which it refuses: addresses, tokens, dashboards, versions, with real nodes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from clusters import OwnCluster, free_port, own_cluster
from slice_sets import make_rows, write_shards
from spaces import write_space

from ichsearch.errors import ClusterError
from ichsearch.shards.address import (
    LOCAL,
    Address,
    check_answers,
    choose_address,
    is_loopback,
    is_open,
    provide_token,
)
from ichsearch.shards.nodes import Versions, own_versions, version_faults

SPACE = """\
name: refused
pretrained: no
parameters: {backbone: test_resnet, batch_size: 8, size: 32, channels: hu, lr: 0.01}
"""
MAIN = "from ichsearch.cli import main; main()"


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, Address(LOCAL, "no --address, no RAY_ADDRESS")),
        (None, "", Address(LOCAL, "no --address, no RAY_ADDRESS")),
        (None, "local", Address(LOCAL, "RAY_ADDRESS says local")),
        ("local", "10.0.0.1:6379", Address(LOCAL, "--address says local")),
        (None, "10.0.0.1:6379", Address("10.0.0.1:6379", "RAY_ADDRESS says so")),
        ("head:6379", "10.0.0.1:6379", Address("head:6379", "--address says so")),
        ("[::1]:6379", None, Address("[::1]:6379", "--address says so")),
    ],
)
def test_the_option_goes_before_the_variable_and_both_before_a_private_cluster(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variable: str | None, expected: Address
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert choose_address(given) == expected


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("ray://head:10001", "Ray Client: run it inside the cluster, `ray job submit"),
        ("http://head:8265", "that is a dashboard"),
        ("head", "give the cluster's host:port"),
    ],
)
def test_an_address_that_no_search_can_work_on_is_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, named: str, words: str
) -> None:
    with pytest.raises(ClusterError, match="--address must be host:port, auto or local") as refused:
        choose_address(named)
    assert words in str(refused.value)
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ClusterError, match="RAY_ADDRESS must be"):
        choose_address(None)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:99999", f"{'a' * 70}:1"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(address: str) -> None:
    with pytest.raises(ClusterError, match=r"none does .*check --address"):
        check_answers(address)


def test_an_address_at_which_something_else_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichsearch.shards.address.ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ClusterError, match="DEADLINE_EXCEEDED"):
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("dashboard", "expected"),
    [("127.0.0.1:8265", True), ("localhost:8265", True), ("[::1]:8265", True), ("10.0.0.7:8265", False)],
)
def test_what_a_loopback_is(dashboard: str, expected: bool) -> None:
    assert is_loopback(dashboard) == expected


def test_a_token_is_written_for_its_owner_alone_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = os.umask(0)
    try:
        provide_token()
    finally:
        os.umask(before)
    written = token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(written) == 64
    token.chmod(0o644)
    provide_token()
    assert token.read_text() == written
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_is_whole_as_soon_as_it_is_there_and_an_empty_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("secrets.token_hex", raise_interrupt)
        provide_token()
    assert not list(tmp_path.iterdir())
    token.touch()
    provide_token()
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["auth_token"]


def raise_interrupt(*_: object) -> str:
    raise KeyboardInterrupt


def test_every_version_that_differs_is_named_with_its_node_and_remedy() -> None:
    own = own_versions()
    assert not version_faults({"a": own})
    faults = version_faults({"a": own._replace(python="3.10"), "b": own._replace(ray="2.56.0", ichsearch="missing")})
    assert [fault.partition(";")[0] for fault in faults] == [
        f"node a: python is 3.10, and {own.python} here",
        f"node b: ray is 2.56.0, and {own.ray} here",
        f"node b: ichsearch is missing, and {own.ichsearch} here",
    ]
    assert all("install" in fault for fault in faults)
    assert version_faults({"c": TimeoutError()}) == [
        "node c did not answer (TimeoutError); look at it with `ray status`"
    ]
    assert isinstance(own, Versions)


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which has no session and no token yet."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env={**without_token(os.environ), "RAY_AUTH_TOKEN_PATH": "/nonexistent", **environment},
        cwd="/",  # Ray's workers import from the driver's working folder, too
        capture_output=True,
        text=True,
        check=False,
    )


def without_token(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what an earlier test in this process has let Ray ask for."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH_")}


def examined(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder / "shards", make_rows(patients=15, slices=4), 32)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCluster]:
    """A cluster of which one node has another ichsearch, a module that lacks all that ours consists of."""
    other = tmp_path_factory.mktemp("other")
    (other / "ichsearch.py").write_text('__version__ = "0.0.1"\n')
    with own_cluster() as made:
        made.start_head()
        made.add_node(PYTHONPATH=str(other))
        yield made


def test_a_node_with_another_ichsearch_is_named_by_doctor_and_refused_by_run(cluster: OwnCluster, shards: Path) -> None:
    arguments = ["--data", shards / "shards", "--out", shards, "--json"]
    doctor = command("doctor", "--address", "auto", *arguments, RAY_TMPDIR=str(cluster.folder))
    assert doctor.returncode == 6, doctor.stderr
    checks = examined(doctor)
    found = checks["cluster"]["found"]
    assert found.endswith(f":{cluster.port} (the cluster that runs on this machine; --address says auto)")
    assert checks["versions"]["status"] == "failed"
    assert "ichsearch is 0.0.1" in checks["versions"]["found"]
    assert checks["token authentication"]["status"] == "warning"
    assert sorted(path.name for path in shards.iterdir()) == ["shards"], "no probe is left"
    statuses = sorted(check["status"] for name, check in checks.items() if name.startswith("node "))
    assert statuses == ["failed", "ok"]

    space = write_space(shards, SPACE)
    arguments = ["--space", space, "--data", shards / "shards", "--out", shards / "run"]
    refused = command("run", *arguments, RAY_ADDRESS=cluster.address)
    assert refused.returncode == 6, refused.stderr
    assert f"connecting to Ray at {cluster.address} (RAY_ADDRESS says so)" in refused.stdout
    assert "ichsearch is 0.0.1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_cluster_and_its_dashboard_are_asked_past_a_proxy(
    cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    check_answers(cluster.address)
    assert is_open(f"127.0.0.1:{cluster.dashboard_port}")


def test_auto_without_a_cluster_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # other tests may run one on this machine
    with pytest.raises(ClusterError, match="needs one Ray cluster running on this machine, but none does; start one"):
        choose_address("auto")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {"10.0.0.1:1", "10.0.0.2:2"})
    with pytest.raises(ClusterError, match=r"several run: 10\.0\.0\.1:1, 10\.0\.0\.2:2; name one"):
        choose_address("auto")


@pytest.mark.slow
def test_a_dashboard_that_others_reach_without_a_token_is_refused(tmp_path: Path) -> None:
    with own_cluster() as cluster:
        cluster.start_head(dashboard_host="0.0.0.0")  # noqa: S104 - what is refused
        refused = command("preprocess", write_dicom(tmp_path), "--out", tmp_path / "out", "--address", cluster.address)
        assert refused.returncode == 6
        assert "must ask for a token" in refused.stderr
        assert "RAY_AUTH_MODE=token" in refused.stderr
        assert not (tmp_path / "out").exists()
        checks = examined(command("doctor", "--address", cluster.address, "--json"))
        assert checks["dashboard"]["status"] == "failed"


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_gets_it_or_says_so_at_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    with own_cluster(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64) as cluster:
        cluster.start_head(dashboard_host="0.0.0.0")  # noqa: S104 - with a token it is allowed
        dicom, began_s = write_dicom(tmp_path), time.monotonic()
        arguments = ["preprocess", dicom, "--out", tmp_path / "out", "--address", cluster.address]
        refused = command(*arguments)
        assert refused.returncode == 6
        assert "asks for a token" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) <= 3, refused.stderr
        assert time.monotonic() - began_s < 60
        refused = command(*arguments, RAY_AUTH_TOKEN="b" * 64)
        assert refused.returncode == 6
        assert "its own token, but got another one" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) <= 3, refused.stderr
        done = command(*arguments, RAY_AUTH_TOKEN_PATH=str(token))
        assert done.returncode == 0, done.stderr
        checks = examined(command("doctor", "--address", cluster.address, "--json", RAY_AUTH_TOKEN_PATH=str(token)))
        assert checks["dashboard"]["found"].endswith("asks for a token")
        assert checks["token authentication"]["status"] == "ok"


def write_dicom(folder: Path) -> Path:
    done = command("phantom", folder / "cohort", "--patients", "2", "--slices", "2")
    assert done.returncode == 0, done.stderr
    return folder / "cohort" / "dicom"

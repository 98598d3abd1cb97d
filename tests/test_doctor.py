"""What `ichsearch doctor` finds wrong, and what it says of a machine that is in order."""

import json
import os
import re
from pathlib import Path

import pytest
from slice_sets import make_rows, write_shards
from stores import Store, new_folder
from test_address import command
from test_cli import ichsearch

from ichsearch.search.doctor import (
    Check,
    cache_check,
    clock_check,
    dashboard_check,
    examine,
    exit_code,
    node_checks,
    room_check,
)
from ichsearch.search.doctor_probe import Found, Probe, probe_node
from ichsearch.search.run_folder import PROBE, RunFolder
from ichsearch.storage import open_folder

NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 6e10, "object_store_memory": 2e10}
FOUND = Found("a", 2, 30_000_000_000, 1_000_000_000, 5_000_000_000, 9_000_000_000, False, "", "")


def without_node(name: str) -> str:
    """A check's name without that of the node that it is about."""
    return re.sub(r"\bnode .*", "node", name)


def statuses(found: Found) -> list[str]:
    return [check.status for check in node_checks("a", NODE, found)]


def test_gpus_shared_memory_and_statistics_of_a_node() -> None:
    assert statuses(FOUND) == ["ok", "ok", "ok"]
    assert statuses(FOUND._replace(gpus=1)) == ["failed", "ok", "ok"]
    assert statuses(FOUND._replace(gpus=4)) == ["warning", "ok", "ok"]
    assert statuses(FOUND._replace(shm_bytes=64_000_000, usage_stats=True)) == ["ok", "warning", "warning"]
    assert all(check.remedy for check in node_checks("a", NODE, FOUND._replace(gpus=0)) if check.status != "ok")


@pytest.mark.parametrize(
    ("needed", "free", "status"),
    [(0, 9_000_000_000, "ok"), (5_000_000_000, 9_000_000_000, "ok"), (5_000_000_001, 9_000_000_000, "warning"),
     (4_000_000_000, 2_000_000_000, "warning")],
)  # fmt: skip
def test_a_cache_that_cannot_hold_the_slices_is_a_warning(needed: int, free: int, status: str) -> None:
    assert cache_check("a", FOUND._replace(free_bytes=free), needed).status == status


@pytest.mark.parametrize(
    ("skew_s", "status"), [(0.0, "ok"), (-1.9, "ok"), (2.1, "warning"), (-3600.0, "warning"), (None, "failed")]
)
def test_clocks_that_differ_by_more_than_two_seconds_are_a_warning(skew_s: float | None, status: str) -> None:
    assert clock_check("a", skew_s).status == status


@pytest.mark.parametrize(
    ("dashboard", "is_open", "status"),
    [("", False, "ok"), ("127.0.0.1:1", True, "ok"), ("10.0.0.1:1", False, "ok"), ("10.0.0.1:1", True, "failed")],
)
def test_only_a_dashboard_that_strangers_can_use_fails(dashboard: str, is_open: bool, status: str) -> None:
    assert dashboard_check(dashboard, is_open=is_open).status == status


def test_a_cluster_without_a_node_for_trials_fails() -> None:
    assert room_check([{"CPU": 0.0}, {"memory": 1.0}]).status == "failed"
    assert room_check([{"CPU": 0.0}, {"CPU": 8.0, "GPU": 2.0}]).found == "8 CPUs, 2 GPUs in all"


def test_the_exit_code_is_the_clusters_before_the_folders() -> None:
    bad = Check("out", "failed", "", "", 4)
    assert exit_code([Check("a", "ok", ""), Check("b", "warning", "")]) == 0
    assert exit_code([bad]) == 4
    assert exit_code([bad, Check("cluster", "failed", "")]) == 6


def test_a_node_tells_what_it_cannot_read_or_write(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    lacking = probe_node(folder, Probe(folder, "nobody wrote this"))
    assert "has none" in lacking.data_fault
    assert "does not see" in lacking.out_fault
    write_shards(tmp_path / "shards", make_rows(patients=2, slices=2), 32)
    (tmp_path / "probe").write_text("driver")
    good = probe_node(open_folder(tmp_path / "shards"), Probe(folder, "probe"))
    assert (good.data_fault, good.out_fault) == ("", "")
    assert (tmp_path / f"probe-{good.node}").is_file()


def test_a_node_tells_no_gpus_that_its_administrator_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1 if "CUDA_VISIBLE_DEVICES" in os.environ else 4)
    assert probe_node(None, None).gpus == 1


def test_a_node_tells_whether_it_reaches_a_store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=2, slices=2), 32)
    shards, out = open_folder(new_folder(store)), open_folder(new_folder(store))
    shards.write_bytes("manifest.json", (tmp_path / "shards" / "manifest.json").read_bytes())
    out.write_bytes("probe", b"driver")
    good = probe_node(shards, Probe(out, "probe"))
    assert (good.data_fault, good.out_fault) == ("", "")
    assert out.names() == ["probe", f"probe-{good.node}"]
    monkeypatch.setenv("ICHSEARCH_STORE_PATIENCE_S", "1")
    with store.away():
        away = probe_node(shards, Probe(out, "probe"))
    assert "must answer" in away.data_fault
    assert "must answer" in away.out_fault


def test_a_cluster_that_shares_a_store_passes_and_nothing_is_left_there(store: Store, tmp_path: Path) -> None:
    """On a cluster of its own, whose processes know the store."""
    token = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    shards, out = new_folder(store), new_folder(store)
    open_folder(shards).write_bytes("manifest.json", (tmp_path / "shards" / "manifest.json").read_bytes())
    done = command("doctor", "--data", shards, "--out", f"{out}/runs/new", "--json", **token)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {without_node(check["name"]): check["status"] for check in json.loads(done.stdout)["checks"]}
    assert found["data, node"] == found["out, node"] == "ok"
    assert not open_folder(out).names()
    wrong = command("doctor", "--out", "s3://no-such-bucket-of-mine/run", **token)
    assert wrong.returncode == 4, wrong.stderr
    assert "NoSuchBucket" in wrong.stdout or "NO_SUCH_BUCKET" in wrong.stdout


@pytest.mark.usefixtures("ray_local")
def test_a_doctor_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_function: object, _data: None, probe: Probe) -> None:
        probe.folder.write_bytes(probe.of("a node that was asked"), b"node")
        raise KeyboardInterrupt

    monkeypatch.setattr("ichsearch.search.doctor.ask_nodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(examine(None, None, str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_doctor_has_left_keeps_no_run_from_a_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / f"{PROBE}1").touch()
    assert not run.holds_other_files()
    (tmp_path / "notes.txt").touch()
    assert run.holds_other_files()


@pytest.mark.usefixtures("ray_local")
def test_this_machine_is_examined_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    write_shards(tmp_path / "shards", make_rows(patients=15, slices=4), 32)
    (tmp_path / "runs").mkdir()
    arguments = ["doctor", "--data", tmp_path / "shards", "--out", tmp_path / "runs" / "new"]
    done = ichsearch(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    names = {without_node(check["name"]).partition(",")[0] for check in checks}
    expected = {"token file", "cluster", "token authentication", "dashboard", "versions", "data", "out", "node", "GPUs",
                "room for trials", "shared memory", "usage statistics", "cache", "clock", "weights"}  # fmt: skip
    assert names == expected
    assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    wrong = ichsearch("doctor", "--data", tmp_path, "--out", "/proc/runs")
    assert wrong.returncode == 6
    assert "chmod 600" in wrong.stdout
    for row in ("token file", "data, this machine", "out, this machine"):
        assert any(row in line and "failed" in line for line in wrong.stdout.splitlines()), wrong.stdout

"""Killed at any moment and run again, preprocessing ends with the bytes of an undisturbed run; no bad shard is read."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_files import BAD
from dicom_files import head_hu, stored_12_bit, write_ct
from numpy.random import Generator
from pydicom.uid import JPEG2000Lossless

from ichsearch.errors import DataError
from ichsearch.files import sha256_of
from ichsearch.phantom import write_cohort
from ichsearch.shards.schema import ShardWriter, read_shard, shard_schema

SIZE: Final = 64
PATIENTS, SLICES = 24, 12
PROBE_S: Final = 0.02


def write_study(dicom: Path) -> None:
    """What the phantom lacks: compressed slices, duplicates, and files that are refused."""
    for index in range(4):
        changes = {"SOPInstanceUID": f"ID_j{index}", "ImagePositionPatient": [-125.0, 0.0, 5.0 * index]}
        write_ct(dicom / f"j2k_{index}.dcm", stored_12_bit(head_hu(512, seed=index)), changes, syntax=JPEG2000Lossless)
    shutil.copy(dicom / "j2k_0.dcm", dicom / "copy.dcm")
    for name in ("html", "noise", "half_the_pixels", "damaged_jpeg_2000"):
        (dicom / name).mkdir()
        BAD[name][0](dicom / name)


class Cohort:
    """A DICOM folder, the command that preprocesses it, and the result of an undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ray = Path(tempfile.mkdtemp(prefix="ick"))
        write_cohort(folder / "cohort", PATIENTS, SLICES, 0)
        write_study(folder / "cohort" / "dicom")
        began = time.monotonic()
        self.run(folder / "whole")
        self.seconds = time.monotonic() - began
        self.expected = contents(folder / "whole")

    def start(self, out: Path) -> "subprocess.Popen[bytes]":
        home, cohort = self.folder / "home", self.folder / "cohort"
        arguments = ["preprocess", cohort / "dicom", "--out", out, "--size", SIZE]
        arguments += ["--labels", cohort / "stage_2_train.csv"]
        return subprocess.Popen(
            [sys.executable, "-c", "from ichsearch.cli import main; main()", *map(str, arguments)],
            env=os.environ | {"RAY_TMPDIR": str(self.ray), "ICHSEARCH_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, out: Path) -> None:
        process = self.start(out)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed.decode()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cohort]:
    made = Cohort(tmp_path_factory.mktemp("kills"))
    yield made
    shutil.rmtree(made.ray, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of all processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            with contextlib.suppress(OSError):
                yield child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def workers(pid: int) -> list[int]:
    """Ray worker processes below a driver that are at one of preprocessing's tasks; Ray's agents are named alike."""
    return [child for child, command in descendants(pid) if command.startswith("ray::_")]


def decoders(pid: int) -> list[int]:
    return [child for child, command in descendants(pid) if "ichsearch.dicom.decoder_process" in command]


def kill(pid: int) -> bool:
    """Whether it was still there to be killed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_orphans(pids: list[int]) -> None:
    """Ray's processes see their driver's death by themselves; wait for that, then help."""
    until = time.monotonic() + 10
    while time.monotonic() < until and any(is_running(pid) for pid in pids):
        time.sleep(PROBE_S)
    for pid in pids:
        kill(pid)


def kill_driver(cohort: Cohort, out: Path, *, shards: int, after_s: float = 0.0) -> int:
    """Start a run and kill its driver a moment after it has so many shards; how many files there are then."""
    process = cohort.start(out)
    while process.poll() is None and len(list(out.glob("*.parquet"))) < shards:
        time.sleep(PROBE_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    end(process)
    return len(contents(out)) if out.exists() else 0


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a driver, and see that its Ray ends."""
    below = [pid for pid, _ in descendants(process.pid)]
    process.kill()
    process.communicate()
    end_orphans(below)


def kill_one(cohort: Cohort, out: Path, find: Callable[[int], list[int]], rng: Generator) -> tuple[int, int, str]:
    """Start a run and kill one process below it at a random moment; its exit code, the number killed, its output."""
    process = cohort.start(out)
    first_seen, killed = None, 0
    wait_s = float(rng.uniform(0, 1))
    while process.poll() is None and not killed:
        found = find(process.pid)
        first_seen = first_seen or (time.monotonic() if found else None)
        if found and first_seen is not None and time.monotonic() - first_seen > wait_s:
            killed += kill(int(rng.choice(found)))
        time.sleep(PROBE_S)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, killed, printed.decode()


def test_a_driver_killed_among_its_shards_leaves_the_bytes_of_an_undisturbed_run(
    cohort: Cohort, tmp_path: Path
) -> None:
    assert kill_driver(cohort, tmp_path / "out", shards=PATIENTS // 3) < len(cohort.expected)

    cohort.run(tmp_path / "out")

    assert contents(tmp_path / "out") == cohort.expected


def test_a_killed_worker_changes_no_byte(cohort: Cohort, tmp_path: Path) -> None:
    code, killed, printed = kill_one(cohort, tmp_path / "out", workers, np.random.default_rng(0))

    assert killed == 1
    assert code in (0, 6), printed
    if code:
        cohort.run(tmp_path / "out")
    assert contents(tmp_path / "out") == cohort.expected


@pytest.mark.slow
def test_a_killed_decoder_does_not_end_the_run(cohort: Cohort, tmp_path: Path) -> None:
    """It costs at most the file that it had."""
    code, killed, printed = kill_one(cohort, tmp_path / "out", decoders, np.random.default_rng(0))

    assert killed == 1
    assert code == 0, printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_killed_drivers_leave_the_bytes_of_an_undisturbed_run(cohort: Cohort, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    states = []
    for number in range(20):
        out = tmp_path / str(number)
        moment = float(rng.uniform(0, 0.5 * cohort.seconds if number < 5 else 0.3))  # five while nothing is written yet
        states.append(
            kill_driver(cohort, out, shards=0 if number < 5 else int(rng.integers(1, PATIENTS)), after_s=moment)
        )
        cohort.run(out)
        assert contents(out) == cohort.expected, number
    print(f"20 drivers killed; files there at the kill, of {len(cohort.expected)}: {sorted(states)}")  # noqa: T201


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_killed_workers_leave_the_bytes_of_an_undisturbed_run(cohort: Cohort, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    codes, killed = [], 0
    for number in range(20):
        out = tmp_path / str(number)
        code, hit, printed = kill_one(cohort, out, workers, rng)
        codes.append(code)
        killed += hit
        assert code in (0, 6), printed
        if code:
            cohort.run(out)
        assert contents(out) == cohort.expected, number
    print(f"{killed} workers killed in 20 runs; exit codes {codes}")  # noqa: T201


def shard_row(index: int, fields: list[pa.Field], rng: Generator) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in fields:
        kind = field.type
        if pa.types.is_fixed_size_binary(kind):
            row[field.name] = rng.bytes(kind.byte_width)
        elif pa.types.is_string(kind):
            row[field.name] = f"{field.name} {index}"
        elif pa.types.is_boolean(kind):
            row[field.name] = bool(index % 2)
        else:
            row[field.name] = index % 100
    return row


def write_shard(path: Path, schema: pa.Schema) -> str:
    rng = np.random.default_rng(0)
    with ShardWriter(path, schema) as writer:
        writer.write(shard_row(index, list(schema), rng) for index in range(40))
    return sha256_of(path)


def read(path: Path, sha256: str) -> int:
    return sum(batch.num_rows for batch in read_shard(path, sha256, SIZE))


def test_each_of_200_flipped_bits_in_a_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    sha256 = write_shard(path, shard_schema(SIZE))
    assert read(path, sha256) == 40
    content = path.read_bytes()
    refused = 0
    for bit in np.random.default_rng(0).choice(8 * len(content), 200, replace=False).tolist():
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DataError):
            read(path, sha256)
        refused += 1
    assert refused == 200


def test_flipped_bits_in_pixels_are_found_by_the_page_checksums_alone(tmp_path: Path) -> None:
    """Even where the manifest's SHA-256 was made from the damaged file."""
    path = tmp_path / "shard-00000.parquet"
    write_shard(path, shard_schema(SIZE))
    content = path.read_bytes()
    silent = 0
    for bit in np.random.default_rng(0).integers(8 * 4096, 8 * (len(content) - 8192), 100).tolist():
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            silent += read(path, sha256_of(path)) == 40
        except (DataError, OSError, pa.ArrowException, ValueError):
            continue
    assert silent <= 2  # a bit of a page's header may mean nothing


class Foreign(pa.ExtensionType):
    """Stands for Ray's tensor types, which unpickle what a file says."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "ichsearch.test.foreign")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"\x80\x05cos\nsystem\n."

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, _: bytes) -> "Foreign":
        return cls(storage)


@pytest.mark.parametrize("registered", [False, True])
def test_a_shard_with_a_foreign_extension_type_is_refused_whatever_its_hash(tmp_path: Path, registered: bool) -> None:
    schema = shard_schema(SIZE)
    table = pa.Table.from_pylist([shard_row(0, list(schema), np.random.default_rng(0))], schema=schema)
    at = schema.get_field_index("hu")
    foreign = Foreign(schema.field(at).type)
    column = pa.ExtensionArray.from_storage(foreign, table.column("hu").combine_chunks())
    changed = table.set_column(at, pa.field("hu", foreign, nullable=False), column)
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(changed.replace_schema_metadata(schema.metadata), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if registered:
        pa.register_extension_type(foreign)
    try:
        with pytest.raises(DataError):
            read(path, digest)
    finally:
        if registered:
            pa.unregister_extension_type("ichsearch.test.foreign")

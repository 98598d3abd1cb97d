"""Storage: the same operations on a disk and on moto's S3 server, and the locations that are refused."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from dicom_files import head_hu, stored_12_bit, write_ct
from stores import Store

from ichsearch import storage
from ichsearch.errors import ConfigError, StorageError
from ichsearch.locations import check_location, is_uri, parse_location
from ichsearch.patience import patiently
from ichsearch.storage import Folder, open_folder, read_file, with_state

SECRET = "wJalrXUtnFEMI"  # noqa: S105 - looked for in messages


@pytest.fixture(scope="session")
def s3(store: Store) -> str:
    """The URI of a bucket on a server of this process, which the environment points to."""
    return store.uri


@pytest.fixture(params=["path", "file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "s3":
        bucket: str = request.getfixturevalue("s3")
        return open_folder(f"{bucket}/{tmp_path.name}/{os.urandom(4).hex()}/")
    return open_folder(f"file://{tmp_path}/new" if request.param == "file" else tmp_path / "new")


@pytest.fixture
def remote(s3: str) -> Folder:
    return open_folder(f"{s3}/{os.urandom(4).hex()}")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write_bytes("a/b.bin", b"first")
    folder.write_bytes("a/b.bin", b"second")
    assert folder.read_bytes("a/b.bin") == b"second"


def test_an_empty_file_is_a_file(folder: Folder) -> None:
    folder.write_bytes("empty", b"")
    assert folder.exists("empty")
    assert folder.read_bytes("empty") == b""


def test_names_are_sorted_and_relative(folder: Folder) -> None:
    for name in ("b", "a/c", "a/b/d"):
        folder.write_bytes(name, b"x")
    assert folder.names() == ["a/b/d", "a/c", "b"]


def test_a_missing_folder_holds_nothing(folder: Folder) -> None:
    assert folder.names() == []
    assert list(folder.files()) == []
    assert not folder.exists("a")


def test_a_folder_is_no_file(folder: Folder) -> None:
    folder.write_bytes("a/b", b"x")
    assert not folder.exists("a")


@pytest.mark.parametrize("name", ["plain", "sp ace", "per%20cent", "quest?ion=1", "ha#sh", "ümlaut", "tab\tbed"])
def test_a_found_file_can_be_read(folder: Folder, name: str) -> None:
    folder.write_bytes(f"deep/{name}", b"content")
    found = with_state(*folder.files())
    assert found.n_bytes == len(b"content")
    assert found.modified_ns == pytest.approx(time.time_ns(), abs=60e9)
    assert read_file(found.location) == b"content"
    assert folder.names() == [f"deep/{name}"]


@pytest.mark.parametrize(("start", "length"), [(0, 4), (3, None), (3, 4), (8, 99), (10, None), (99, 3), (0, 0)])
def test_a_range_is_what_a_slice_is(folder: Folder, start: int, length: int | None) -> None:
    content = b"0123456789"
    folder.write_bytes("digits", content)
    (found,) = folder.files()
    end = None if length is None else start + length
    assert read_file(found.location, start, length) == content[start:end]


def test_a_missing_file_is_not_found(folder: Folder) -> None:
    folder.write_bytes("a", b"x")
    (found,) = folder.files()
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("b")
    with pytest.raises(FileNotFoundError):
        read_file(found.location + "b")
    with pytest.raises(FileNotFoundError), folder.reading("b"):
        pass


def test_a_large_file_arrives_in_pieces(folder: Folder, temporary: Path) -> None:
    content = os.urandom(2 * storage.PIECE_BYTES + 12345)
    with folder.writing("large.parquet") as path:
        assert path.suffix in (".parquet", ".aside")
        path.write_bytes(content)
        assert folder.local_path() or not folder.names()
    with folder.reading("large.parquet") as path:
        assert path.name == "large.parquet"
        assert path.read_bytes() == content
    assert list(temporary.iterdir()) == []
    assert folder.names() == ["large.parquet"]


def test_a_writer_that_fails_leaves_nothing(folder: Folder, temporary: Path) -> None:
    def fail() -> None:
        with folder.writing("a") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert folder.names() == []
    assert list(temporary.iterdir()) == []


def test_a_writer_that_fails_keeps_what_was_there(folder: Folder) -> None:
    folder.write_bytes("a", b"before")
    with pytest.raises(ValueError, match="bad"), folder.writing("a"):
        raise ValueError("bad")
    assert folder.read_bytes("a") == b"before"


def test_a_writer_that_writes_nothing_is_told(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError), folder.writing("a"):
        pass
    assert folder.names() == []


def test_an_upload_that_is_interrupted_leaves_nothing(
    remote: Folder, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> Iterator[bytes]:
        yield from (path.read_bytes(), path.read_bytes())
        raise KeyboardInterrupt

    def upload() -> None:
        with remote.writing("a") as path:
            path.write_bytes(bytes(storage.PIECE_BYTES))

    monkeypatch.setattr(storage, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upload()
    assert remote.names() == []
    assert list(temporary.iterdir()) == []


def test_an_upload_of_a_file_that_cannot_be_read_on_keeps_what_was_there(
    remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> Iterator[bytes]:
        yield b"half"
        raise storage._SourceError(FileNotFoundError(path))

    monkeypatch.setattr(storage, "_pieces", failing)
    remote.write_bytes("a", b"before")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "gone", f"{remote.location}/a")
    assert remote.read_bytes("a") == b"before"


def test_an_upload_of_a_file_that_has_gone_keeps_what_was_there(remote: Folder, tmp_path: Path) -> None:
    remote.write_bytes("a", b"before")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "gone", f"{remote.location}/a")
    assert remote.read_bytes("a") == b"before"


def test_a_removed_file_is_gone_and_removing_it_again_is_fine(folder: Folder) -> None:
    folder.write_bytes("a", b"x")
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == []


def test_a_folder_pickles_to_its_location(folder: Folder) -> None:
    folder.write_bytes("a", b"x")
    copy = pickle.loads(pickle.dumps(folder))  # noqa: S301 - our own
    assert copy == folder
    assert vars(copy) == {"location": folder.location}
    assert copy.read_bytes("a") == b"x"


def test_only_local_folders_have_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder("sub dir").local_path() == tmp_path / "sub dir"
    assert open_folder(f"file://{tmp_path}/sub%20dir/").local_path() == tmp_path / "sub dir"
    assert open_folder(f"file://{tmp_path}/sub%20dir") == open_folder(tmp_path / "sub dir")
    assert open_folder("s3://bucket/sub").local_path() is None


def test_the_spelling_of_a_location_does_not_matter() -> None:
    assert open_folder("S3://bucket/a/") == open_folder("s3://bucket/a")
    assert open_folder("s3://bucket/").location == "s3://bucket/"
    assert open_folder("s3://bucket/a/?region=eu-west-1").location == "s3://bucket/a?region=eu-west-1"


def test_a_bucket_is_a_folder(s3: str) -> None:
    bucket = open_folder(s3)
    bucket.write_bytes("top", b"x")
    assert "top" in bucket.names()
    assert f"{s3}/top" in [found.location for found in bucket.files()]
    bucket.remove("top")


def test_a_region_in_the_query_is_used_and_kept(s3: str) -> None:
    folder = open_folder(f"{s3}/regional?region=eu-west-1")
    folder.write_bytes("a", b"x")
    (found,) = folder.files()
    assert found.location == f"{s3}/regional/a?region=eu-west-1"
    assert read_file(found.location) == b"x"


def test_folders_that_a_store_marks_with_objects_are_no_files(remote: Folder) -> None:
    remote.write_bytes("a/b", b"x")
    remote.remove("a/b")  # Arrow leaves such a mark
    assert remote.names() == []
    assert list(remote.files()) == []


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_missing_is_not_made() -> None:
    folder = open_folder("s3://no-such-bucket/a")
    rule = "s3://no-such-bucket/a/b must be writable, but: .*check the bucket"
    with pytest.raises(StorageError, match=rule):
        folder.write_bytes("b", b"x")
    with pytest.raises(StorageError, match=rule), folder.writing("b") as path:
        path.write_bytes(b"x" * 10)
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("b")
    assert folder.names() == []


def test_a_store_that_denies_is_not_waited_for_whatever_its_folders_are_called(store: Store) -> None:
    client = boto3.client("s3", endpoint_url=store.endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="timeout-bucket")
    folder = open_folder("s3://timeout-bucket/runs/connection-study")
    folder.write_bytes("curlCode", b"x")
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::timeout-bucket/*"}
    client.put_bucket_policy(
        Bucket="timeout-bucket", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )
    began_s = time.monotonic()
    with pytest.raises(StorageError, match=r"must be writable, but: .*ACCESS_DENIED"):
        folder.write_bytes("curlCode", b"y")
    with pytest.raises(OSError, match=r"must be readable, but: .*ACCESS_DENIED"):
        folder.read_bytes("curlCode")
    assert time.monotonic() - began_s < 30, "that of a store that is away is 120 s"


@pytest.mark.parametrize(
    "said",
    [
        "When getting information for key 'a/connection' in bucket 'time': AWS Error NETWORK_CONNECTION during "
        "HeadObject operation: curlCode: 28, Timeout was reached",
        "AWS Error SLOW_DOWN during PutObject operation",
        "HTTP status 503: no connection",
    ],
)
def test_a_store_that_is_away_is_waited_for_whatever_its_folders_are_called(said: str) -> None:
    failures = [OSError(said)]

    def work() -> str:
        if failures:
            raise failures.pop()
        return "back"

    assert patiently("s3://time/a/connection/NETWORK", work) == "back"


def test_a_key_that_arrow_refuses_is_an_os_error(s3: str) -> None:
    with pytest.raises(OSError, match="must be readable"):
        read_file(f"{s3}/a//b")


@pytest.mark.parametrize("location", ["s3://b-1/a", "gs://b", "file:///a", "x-y://", "S3://a"])
def test_uris(location: str) -> None:
    assert is_uri(location)


@pytest.mark.parametrize("location", ["a/b", "/a", "C:/a", "a/s3://b", "://a", Path("s3://bucket/a")])
def test_paths(location: str | Path) -> None:
    assert not is_uri(location)


@pytest.mark.parametrize(
    "location",
    [
        "data/dicom",
        "s3://bucket",
        "s3://my.bucket_1/a/b/?region=eu-central-1",
        "gs://bucket/ä b#c@d:e",
        "abfs://container@account.dfs.core.windows.net/a",
        "abfss://container@account.blob.core.windows.net/",
        "file:///a/../b",
        "file://localhost/a",
    ],
)
def test_locations_that_are_taken(location: str) -> None:
    check_location(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "must have a name, but got an empty one"),
        ("hdfs://host/a", "begin with one of s3://, .* but got hdfs://"),
        ("https://host/a", "begin with one of"),
        ("s3://", "must name a bucket"),
        ("s3:///a", "must name a bucket"),
        ("s3://b/a", "at least 3 letters, .* but got 'b'"),
        ("gs://Bücket/a", "must name a bucket"),
        ("s3:/bucket/a", "followed by ://"),
        (f"s3://key:{SECRET}@bucket/a", "credentials"),
        (f"s3://key:{SECRET}/x@bucket/a", "credentials"),
        (f"gs://{SECRET}@bucket/a", "credentials"),
        (f"abfs://account:{SECRET}@account.dfs.core.windows.net/a", "credentials"),
        ("s3://localhost:9000/bucket", "nor a port"),
        ("abfs://container/a", "container@account"),
        ("abfs://container@account.example.com/a", "container@account"),
        (f"s3://bucket/a?endpoint_override={SECRET}", "got endpoint_override; .*AWS_ENDPOINT_URL"),
        (f"s3://bucket/a?region=eu-west-1&secret_key={SECRET}", "got secret_key"),
        (f"s3://bucket/a?{SECRET}", "got another"),
        (f"s3://bucket/a?region={SECRET}.example.com/", "a region must be"),
        ("s3://bucket/a?region=", "a region must be"),
        ("gs://bucket/a?region=eu-west-1", "may hold nothing, but got region"),
        ("s3://bucket/a//b", "no empty part"),
        ("s3://bucket//a", "no empty part"),
        ("s3://bucket/a/../b", "no empty part"),
        ("file://server/a", "three slashes"),
    ],
)
def test_locations_that_are_refused(location: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_folder(location)
    assert not re.search(SECRET, str(caught.value))


def test_reading_checks_where_credentials_would_go() -> None:
    with pytest.raises(ConfigError, match="endpoint_override"):
        read_file("s3://bucket/a?endpoint_override=example.com")


@pytest.mark.parametrize("location", ["gs://bucket/a", "abfs://container@account.dfs.core.windows.net/a"])
def test_other_stores_can_be_named_without_the_network(location: str) -> None:
    assert open_folder(location).location == location
    assert storage._store(parse_location(location)) is not None


def preprocess(dicom: str | Path, out: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("ichsearch")),
        "preprocess",
        str(dicom),
        "--out",
        str(out),
        "--size",
        "32",
    ]
    environment = os.environ | {"ICHSEARCH_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_bucket_of_dicom_becomes_a_bucket_of_shards(remote: Folder, tmp_path: Path) -> None:
    for index in range(6):
        changes = {"SOPInstanceUID": f"ID_{index}", "StudyInstanceUID": f"study {index // 3}"}
        path = write_ct(tmp_path / "local" / f"{index}.dcm", stored_12_bit(head_hu(64, seed=index)), changes)
        remote.write_bytes(f"dicom/{index}.dcm", path.read_bytes())
    remote.write_bytes("dicom/notes.txt", b"no DICOM")
    (tmp_path / "local" / "notes.txt").write_text("no DICOM")

    done = preprocess(f"{remote.location}/dicom", f"{remote.location}/shards", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert preprocess(tmp_path / "local", tmp_path / "shards", tmp_path / "home").returncode == 0

    stored, local = open_folder(f"{remote.location}/shards"), open_folder(tmp_path / "shards")
    assert stored.names() == local.names()
    assert stored.read_bytes("metadata.parquet") == local.read_bytes("metadata.parquet")

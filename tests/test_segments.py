"""The journal of a run in a store: segments that are appended, merged, missing, torn, and read meanwhile."""

import threading
from pathlib import Path

import pytest
from stores import Store, new_folder

from ichsearch.errors import AlreadyRunningError, StorageError
from ichsearch.search import segments
from ichsearch.search.segments import Segments
from ichsearch.storage import Folder, open_folder


@pytest.fixture
def run(store: Store) -> Folder:
    """A run folder in the store, of whose journal a segment is written."""
    folder = open_folder(new_folder(store))
    folder.write_bytes("journal/00000001", b"one\ntwo\n")
    return folder


def test_segments_make_the_journal_again(run: Folder, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    journal = Segments(run.location, path)
    journal.pull()
    with path.open("ab") as file:
        file.write(b"three\n")
    journal.push()
    journal.push()
    assert run.read_bytes("journal/00000002") == b"three\n"
    Segments(run.location, tmp_path / "again.log").pull()
    assert (tmp_path / "again.log").read_bytes() == b"one\ntwo\nthree\n"


def test_half_a_line_of_a_torn_segment_never_counts(run: Folder, tmp_path: Path) -> None:
    run.write_bytes("journal/00000002", b"three\nfo")
    path = tmp_path / "journal.log"
    journal = Segments(run.location, path)
    journal.pull()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    with path.open("ab") as file:
        file.write(b"five\n")
    journal.push()
    journal.pull()
    assert path.read_bytes() == b"one\ntwo\nthree\nfive\n"


def test_a_segment_is_never_written_over(run: Folder, tmp_path: Path) -> None:
    journals = [Segments(run.location, tmp_path / name) for name in ("one.log", "other.log")]
    for number, journal in enumerate(journals):
        journal.pull()
        with (tmp_path / ("one.log", "other.log")[number]).open("ab") as file:
            file.write(b"mine %d\n" % number)
    journals[0].push()
    with pytest.raises(AlreadyRunningError):
        journals[1].push()
    assert run.read_bytes("journal/00000002") == b"mine 0\n"


def test_a_missing_segment_is_told(run: Folder, tmp_path: Path) -> None:
    run.write_bytes("journal/00000003", b"four\n")
    with pytest.raises(StorageError, match="lacks one"):
        Segments(run.location, tmp_path / "journal.log").pull()


class Writer:
    """A journal on a node of its own, whose driver appends lines."""

    def __init__(self, run: Folder, path: Path) -> None:
        self.path, self.segments = path, Segments(run.location, path)

    @property
    def lines(self) -> list[str]:
        """What it knows, read anew."""
        self.segments.pull()
        return self.path.read_text().splitlines()

    def write(self, *lines: str) -> None:
        """Append lines, each in a segment of its own."""
        for line in lines:
            with self.path.open("a") as file:
                file.write(f"{line}\n")
            self.segments.push()


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five segments are many."""
    monkeypatch.setattr(segments, "MERGED_FROM", 5)


LINES = [f"line {number}" for number in range(3, 25)]


@pytest.mark.usefixtures("merging")
def test_many_segments_become_one_that_says_the_same(run: Folder, tmp_path: Path) -> None:
    writer, expected = Writer(run, tmp_path / "journal.log"), ["one", "two", *LINES]
    assert writer.lines == expected[:2]
    writer.write(*LINES)
    n_bytes = len("\n".join(expected[:21])) + 1
    names = [name for name in run.names() if name.startswith("journal/")]
    assert names == [f"journal/00000020-{n_bytes}", *(f"journal/{number:08d}" for number in (21, 22, 23))]
    assert Writer(run, tmp_path / "again.log").lines == expected
    assert writer.lines == expected


@pytest.mark.usefixtures("merging")
def test_only_segments_that_are_new_are_read(run: Folder, tmp_path: Path) -> None:
    reader, writer = Writer(run, tmp_path / "reader.log"), Writer(run, tmp_path / "writer.log")
    assert reader.lines == writer.lines == ["one", "two"]
    writer.write(*LINES[:4])
    assert reader.lines == ["one", "two", *LINES[:4]]
    (merged,) = (name for name in run.names() if "journal/00000005-" in name)
    run.write_bytes(merged, b"x" * len(run.read_bytes(merged)))  # whoever read it would tell
    writer.write("new")
    assert reader.lines == ["one", "two", *LINES[:4], "new"]


@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize("is_torn", [True, False])
def test_a_driver_that_dies_while_it_merges_loses_nothing(run: Folder, tmp_path: Path, is_torn: bool) -> None:
    writer, expected = Writer(run, tmp_path / "journal.log"), ["one", "two", *LINES]
    assert writer.lines == expected[:2]
    writer.write(*LINES[:3])
    before = {name: run.read_bytes(name) for name in run.names()}
    writer.write(LINES[3])
    (merged,) = (name for name in run.names() if "journal/00000005-" in name)
    for name, content in before.items():  # those that it did not come to remove
        run.write_bytes(name, content)
    if is_torn:
        run.write_bytes("journal/00000005", f"{LINES[3]}\n".encode())
        run.write_bytes(merged, run.read_bytes(merged)[:-4])
    successor = Writer(run, tmp_path / "successor.log")
    assert successor.lines == expected[:6]
    successor.write(*LINES[4:])
    assert Writer(run, tmp_path / "again.log").lines == expected
    assert len([name for name in run.names() if name.startswith("journal/")]) < 6


@pytest.mark.usefixtures("merging")
def test_a_driver_that_missed_a_merge_is_refused(run: Folder, tmp_path: Path) -> None:
    writers = [Writer(run, tmp_path / name) for name in ("one.log", "other.log")]
    assert writers[0].lines == writers[1].lines
    writers[0].write(*LINES[:4])
    with pytest.raises(AlreadyRunningError, match="one writer"):
        writers[1].write("mine")
    assert writers[1].lines == ["one", "two", *LINES[:4]]


@pytest.mark.usefixtures("merging")
def test_who_reads_while_segments_are_merged_reads_all_that_was_written(run: Folder, tmp_path: Path) -> None:
    writer, expected = Writer(run, tmp_path / "journal.log"), ["one", "two", *LINES]
    assert writer.lines == expected[:2]
    writing = threading.Thread(target=writer.write, args=LINES)
    writing.start()
    seen: list[str] = []
    while writing.is_alive():
        now = Writer(run, tmp_path / "reader.log").lines
        assert now == expected[: len(now)]
        assert len(now) >= len(seen)
        seen = now
    assert Writer(run, tmp_path / "reader.log").lines == expected

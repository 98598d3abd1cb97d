"""Claims on a run folder in a store: drivers that race, beat, die, freeze and wake."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stores import Store, new_folder

from ichsearch.errors import AlreadyRunningError
from ichsearch.locations import below
from ichsearch.search.claims import Claim, claimed
from ichsearch.search.mirror import scratch
from ichsearch.storage import Folder, open_folder


@pytest.fixture
def run(store: Store) -> Folder:
    """A run folder in the store."""
    return open_folder(new_folder(store))


@pytest.fixture(autouse=True)
def _a_node_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path / "cache"))


def race(location: str, drivers: int) -> tuple[int, int]:
    """Drivers that start at once, each as on another node: how many get the run, how many are refused."""
    got, refused = [], []
    ready, done = threading.Barrier(drivers), threading.Barrier(drivers)

    def drive(number: int) -> None:
        ready.wait()
        try:
            with claimed(location, f"elsewhere-{number}", beat_s=0.1):
                got.append(number)
                done.wait()
        except AlreadyRunningError:
            refused.append(number)
            done.wait()

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(got), len(refused)


def test_of_many_drivers_at_once_one_gets_the_run(run: Folder) -> None:
    for number in range(3):
        location = f"{run.location}/{number}"
        assert race(location, 4) == (1, 3)
        assert open_folder(below(location, "lease")).names() == []


def test_a_driver_that_beats_is_not_disturbed(run: Folder) -> None:
    with claimed(run.location, "one", beat_s=0.1) as held:
        with pytest.raises(AlreadyRunningError, match="is already running"), claimed(run.location, "other", beat_s=0.1):
            pass
        held.check()
    with claimed(run.location, "other"):
        pass


def test_a_driver_of_this_node_is_known_to_live_or_to_be_dead_at_once(run: Folder) -> None:
    with ExitStack() as stack:
        with scratch(run.location) as root:
            dead = Claim(run.location, root.name, beat_s=1e9)
            dead.take()
            with pytest.raises(AlreadyRunningError), claimed(run.location, "other", lapse_s=1e9):
                pass
        root.mkdir()  # as a killed one leaves it
        (root / ".lock").touch()
        stack.callback(dead.release)
        with claimed(run.location, "other", lapse_s=1e9):
            assert len(open_folder(below(run.location, "lease")).names()) == 1


def test_a_driver_that_only_seemed_dead_stops(run: Folder) -> None:
    frozen = Claim(run.location, "frozen", beat_s=1e9)
    frozen.take()
    frozen.check()
    with claimed(run.location, "other", beat_s=0.1, lapse_s=0.5) as held:
        with pytest.raises(AlreadyRunningError, match="another driver took"):
            frozen.check()
        held.check()
    frozen.release()


def test_a_claim_written_after_it_was_removed_is_of_an_earlier_generation(run: Folder) -> None:
    """The beat of a driver that was frozen between its look and its writing."""
    frozen = Claim(run.location, "frozen", beat_s=1e9)
    frozen.take()
    with claimed(run.location, "other", beat_s=0.1, lapse_s=0.5) as held:
        frozen._write()
        held.check()
        with pytest.raises(AlreadyRunningError):
            frozen.check()
    frozen.release()


class Frozen(Claim):
    """A driver that is frozen, for longer than the lapse, between its first look and its writing that it holds."""

    meanwhile: Callable[[], object]

    def __init__(self, store: str) -> None:
        super().__init__(store, "frozen", beat_s=1e9)
        self._token = min("0", self._token)  # before all others

    def _held_by_others(self) -> dict[str, Any]:
        found = super()._held_by_others()
        self.meanwhile()
        return found


def test_a_driver_that_was_frozen_while_it_asked_yields_to_the_one_that_drives(run: Folder) -> None:
    frozen = Frozen(run.location)
    with ExitStack() as stack:
        frozen.meanwhile = lambda: stack.enter_context(claimed(run.location, "other", beat_s=0.1, lapse_s=0.5))
        with pytest.raises(AlreadyRunningError, match="is already running"):
            frozen.take()
        frozen.release()


def test_a_driver_that_was_frozen_and_got_through_stops_at_its_next_check(run: Folder) -> None:
    """It wakes after the other one has looked last, and before that one has written that it drives."""
    got_through = threading.Event()

    class Other(Claim):
        def _write(self) -> None:
            if self._drives and not got_through.is_set():
                woken.set()
                assert got_through.wait(10)
            super()._write()

    asleep, woken, frozen = threading.Event(), threading.Event(), Frozen(run.location)
    frozen.meanwhile = lambda: (asleep.set(), woken.wait(10))
    other = Other(run.location, "other", beat_s=1e9, lapse_s=0.5)
    taking = threading.Thread(target=lambda: (frozen.take(), got_through.set()))
    taking.start()
    assert asleep.wait(10)
    other.take()
    taking.join()
    with pytest.raises(AlreadyRunningError, match="another driver took"):
        frozen.check()
    other.check()
    frozen.release()
    other.release()

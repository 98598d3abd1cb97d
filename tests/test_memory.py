"""Too little memory: the micro-batch shrinks until the work fits, and what fits is remembered on the node."""

from pathlib import Path

import pytest
import torch

from ichsearch.train.config import TrialFailedError
from ichsearch.train.memory import MicroBatch, probed_size


class Machine:
    """Fits so many slices at once."""

    def __init__(self, fits: int) -> None:
        self.fits, self.tried = fits, list[int]()

    def train(self, slices: int) -> int:
        self.tried.append(slices)
        if slices > self.fits:
            raise torch.OutOfMemoryError
        return slices


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICHSEARCH_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("fits", "tried"), [(32, [32]), (31, [32, 16]), (5, [32, 16, 8, 4]), (1, [32, 16, 8, 4, 2, 1])]
)
def test_the_micro_batch_is_halved_until_it_fits(fits: int, tried: list[int]) -> None:
    machine, micro = Machine(fits), MicroBatch(32)
    assert micro.run(machine.train) == micro.size == tried[-1]
    assert machine.tried == tried


def test_when_not_even_one_slice_fits_the_trial_says_so() -> None:
    with pytest.raises(TrialFailedError, match="out_of_memory") as caught:
        MicroBatch(4).run(Machine(0).train)
    assert caught.value.reason == "out_of_memory"


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(_: int) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatch(4).run(broken)


def test_a_probe_is_made_once_for_each_key() -> None:
    machine = Machine(20)
    assert probed_size({"backbone": "a"}, 64, machine.train) == 16
    assert machine.tried == [64, 32, 16]
    assert probed_size({"backbone": "a"}, 64, machine.train) == 16
    assert probed_size({"backbone": "a"}, 8, machine.train) == 8
    assert machine.tried == [64, 32, 16]
    assert probed_size({"backbone": "b"}, 16, machine.train) == 16
    assert machine.tried == [64, 32, 16, 16]


def test_a_probe_of_a_larger_batch_tries_only_what_is_not_known() -> None:
    machine = Machine(20)
    assert probed_size({"backbone": "a"}, 8, machine.train) == 8
    assert probed_size({"backbone": "a"}, 48, machine.train) == 12
    assert machine.tried == [8, 48, 24, 12]
    assert probed_size({"backbone": "a"}, 48, machine.train) == 12
    assert machine.tried == [8, 48, 24, 12]


def test_a_damaged_answer_is_asked_again(tmp_path: Path) -> None:
    machine = Machine(20)
    probed_size({"backbone": "a"}, 16, machine.train)
    for path in (tmp_path / "micro_batch").iterdir():
        path.write_text("{")
    assert probed_size({"backbone": "a"}, 16, machine.train) == 16
    assert machine.tried == [16, 16]

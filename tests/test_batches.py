"""Batches: windows, normalisation, and an order that depends on the seed and the epoch alone."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from slice_sets import make_slices
from torch import Tensor

from ichsearch.data.batches import Batches, Channels, Recipe, to_input
from ichsearch.data.cache import SliceSet

CPU = torch.device("cpu")
SIZE = 16


def as_input(hu: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """A window's formula, written a second time: black at `low`, white at `high`, then ImageNet's grey statistics."""
    result: npt.NDArray[np.float64] = (np.clip((hu - low) / (high - low), 0, 1) - 0.449) / 0.226
    return result


@pytest.fixture
def numbered() -> SliceSet:
    """48 slices; the pixels of slice n are all n HU, so that the brain window shows which slice it is."""
    slices = make_slices(patients=8, slices=6, size=SIZE)
    hu = np.broadcast_to(np.arange(48, dtype=np.int16)[:, None, None], (48, SIZE, SIZE)).copy()
    return replace(slices, hu=hu)


def numbers_in(inputs: Tensor) -> list[int]:
    """Which slices of `numbered` a batch seen through the brain window holds."""
    return [round(float((value * 0.226 + 0.449) * 80)) for value in inputs[:, 0, 0, 0]]


def epoch_of(slices: SliceSet, rows: list[int], recipe: Recipe, epoch: int) -> list[list[int]]:
    batches = Batches(slices, np.array(rows), recipe, CPU)
    return [numbers_in(inputs) for inputs, _ in batches.train(epoch)]


def test_the_windows_are_brain_subdural_and_bone() -> None:
    hu = np.arange(-1024, 3072, dtype=np.float64).reshape(1, 1, 64, 64)
    shown = to_input(torch.from_numpy(hu).float(), "windows").numpy()
    assert shown.shape == (1, 3, 64, 64)
    for channel, (low, high) in enumerate([(0, 80), (-20, 180), (-800, 2000)]):
        np.testing.assert_allclose(shown[:, channel], as_input(hu[:, 0], low, high), atol=1e-5)


def test_one_channel_is_the_brain_window() -> None:
    hu = torch.linspace(-100, 200, 64).reshape(1, 1, 8, 8)
    torch.testing.assert_close(to_input(hu, "brain")[:, 0], to_input(hu, "windows")[:, 0], rtol=0, atol=0)
    assert to_input(hu, "brain").shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("channels", "depth"), [("brain", 1), ("windows", 3)])
def test_shapes_and_types(channels: Channels, depth: int) -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    batches = Batches(slices, np.arange(20), Recipe(8, channels, augment=1.0), CPU)
    inputs, labels = next(batches.train(0))
    assert inputs.shape == (8, depth, SIZE, SIZE)
    assert labels.shape == (8, 6)
    assert inputs.dtype == labels.dtype == torch.float32


def test_labels_stay_with_their_slices(numbered: SliceSet) -> None:
    rows = np.arange(5, 40)
    for inputs, labels in Batches(numbered, rows, Recipe(8, "brain"), CPU).train(3):
        np.testing.assert_array_equal(labels.numpy(), numbered.labels[numbers_in(inputs)])


def test_seed_and_epoch_give_the_same_batches_again() -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    recipe = Recipe(8, "windows", augment=1.0, seed=3)
    one, other = (list(Batches(slices, np.arange(20), recipe, CPU).train(2)) for _ in range(2))
    for (inputs, labels), (again, labels_again) in zip(one, other, strict=True):
        torch.testing.assert_close(inputs, again, rtol=0, atol=0)
        torch.testing.assert_close(labels, labels_again, rtol=0, atol=0)


def test_an_epoch_does_not_depend_on_those_before(numbered: SliceSet) -> None:
    batches = Batches(numbered, np.arange(48), Recipe(8, "brain"), CPU)
    list(batches.train(0))
    assert [numbers_in(inputs) for inputs, _ in batches.train(1)] == epoch_of(
        numbered, list(range(48)), Recipe(8, "brain"), 1
    )


def test_another_epoch_or_seed_has_another_order(numbered: SliceSet) -> None:
    rows = list(range(48))
    orders = [
        epoch_of(numbered, rows, Recipe(8, "brain", seed=seed), epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[1] != orders[2]


def test_an_epoch_holds_each_slice_of_the_part_once_and_no_other(numbered: SliceSet) -> None:
    rows = list(range(3, 43))
    seen = [number for batch in epoch_of(numbered, rows, Recipe(8, "brain"), 0) for number in batch]
    assert sorted(seen) == rows


def test_a_last_batch_that_is_not_full_is_left_out(numbered: SliceSet) -> None:
    batches = epoch_of(numbered, list(range(21)), Recipe(8, "brain"), 0)
    assert [len(batch) for batch in batches] == [8, 8]
    assert len({number for batch in batches for number in batch}) == 16
    assert Batches(numbered, np.arange(21), Recipe(8, "brain"), CPU).steps == 2


def test_other_epochs_leave_out_other_slices(numbered: SliceSet) -> None:
    seen = [
        {number for batch in epoch_of(numbered, list(range(21)), Recipe(8, "brain"), epoch) for number in batch}
        for epoch in range(12)
    ]
    assert set.union(*seen) == set(range(21))


def test_a_part_smaller_than_a_batch_is_one_batch(numbered: SliceSet) -> None:
    batches = epoch_of(numbered, [4, 9, 11], Recipe(8, "brain"), 0)
    assert [sorted(batch) for batch in batches] == [[4, 9, 11]]
    assert Batches(numbered, np.array([4, 9, 11]), Recipe(8, "brain"), CPU).steps == 1


def test_evaluation_keeps_order_leaves_nothing_out_and_changes_no_pixel() -> None:
    slices = make_slices(patients=7, slices=3, size=SIZE)
    rows = np.array([20, 3, 4, 0, 19, 18, 7, 1, 2])
    inputs = torch.cat(list(Batches(slices, rows, Recipe(2, "windows", augment=1.0), CPU).evaluate()))
    expected = to_input(torch.from_numpy(slices.hu[rows])[:, None].float(), "windows")
    torch.testing.assert_close(inputs, expected, rtol=0, atol=0)


def test_training_leaves_the_slices_as_they_were() -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    before = slices.hu.copy()
    list(Batches(slices, np.arange(20), Recipe(4, "windows", augment=1.0), CPU).train(0))
    np.testing.assert_array_equal(slices.hu, before)

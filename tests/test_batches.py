"""Batches: their order, draws and buffers, which depend on the seed, the epoch and the step alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from slice_sets import make_slices
from torch import Tensor

from ichsearch.data.augment import KINDS, Augmentation
from ichsearch.data.batches import Batches, Recipe
from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import CHANNELS, Channels, InputMaker
from ichsearch.data.held import HostPixels, ResidentPixels
from ichsearch.data.sampling import Sampler, Share, any_chances, rarest_subtype_chances
from ichsearch.data.tasks import Task, task_labels, task_rows
from ichsearch.errors import ConfigError
from ichsearch.labels import LABELS

CPU = torch.device("cpu")
SIZE = 16
FULL = Augmentation(strength=1.0)
Epoch = list[tuple[Tensor, Tensor]]


@pytest.fixture
def numbered() -> SliceSet:
    """48 slices of 8 series; the pixels of slice n are all n HU, so that a window shows which slice it is."""
    slices = make_slices(patients=8, slices=6, size=SIZE)
    hu = np.broadcast_to(np.arange(48, dtype=np.int16)[:, None, None], (48, SIZE, SIZE)).copy()
    return replace(slices, hu=hu)


def numbers_in(inputs: Tensor) -> list[int]:
    """Which slices of `numbered` a batch seen through the soft-tissue window holds."""
    return [round(float((value * 0.226 + 0.449) * 380 - 150)) for value in inputs[:, 0, 0, 0]]


def epoch_of(slices: SliceSet, rows: list[int], recipe: Recipe, epoch: int) -> list[list[int]]:
    batches = Batches(slices, np.array(rows), recipe, CPU)
    return [numbers_in(inputs) for inputs, _ in batches.train(epoch)]


def kept(batches: Batches, epoch: int, first_step: int = 0) -> Epoch:
    """Copies of an epoch's batches, which live in buffers that the next one is written to."""
    return [(inputs.clone(), labels.clone()) for inputs, labels in batches.train(epoch, first_step)]


def assert_same(one: Epoch, other: Epoch) -> None:
    for (inputs, labels), (again, labels_again) in zip(one, other, strict=True):
        torch.testing.assert_close(inputs, again, rtol=0, atol=0)
        torch.testing.assert_close(labels, labels_again, rtol=0, atol=0)


@pytest.mark.parametrize("channels", ["hu", "windows", "neighbours", "hist"])
@pytest.mark.parametrize("task", ["any", "multilabel", "positives"])
def test_shapes_and_types(channels: Channels, task: Task) -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    rows = np.flatnonzero(task_rows(task, slices.labels))
    batches = Batches(slices, rows, Recipe(8, channels, task, FULL), CPU)
    inputs, labels = next(batches.train(0))
    assert inputs.shape == (8, CHANNELS[channels], SIZE, SIZE)
    assert labels.shape == (8, len(task_labels(task)))
    assert batches.labels.shape == (len(rows), len(task_labels(task)))
    assert inputs.dtype == labels.dtype == batches.labels.dtype == torch.float32


@pytest.mark.parametrize("task", ["any", "multilabel", "positives"])
def test_labels_are_the_columns_of_the_task(task: Task) -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    rows = np.arange(4, 16)
    expected = slices.table[list(task_labels(task))].to_numpy(np.float32)[4:16]
    np.testing.assert_array_equal(Batches(slices, rows, Recipe(8, "hu", task), CPU).labels.numpy(), expected)


def test_labels_stay_with_their_slices(numbered: SliceSet) -> None:
    rows = np.arange(5, 40)
    for inputs, labels in Batches(numbered, rows, Recipe(8, "hu"), CPU).train(3):
        np.testing.assert_array_equal(labels.numpy(), numbered.labels[numbers_in(inputs)])


@pytest.mark.parametrize("channels", ["windows", "neighbours"])
def test_seed_and_epoch_give_the_same_batches_again(channels: Channels) -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    recipe = Recipe(8, channels, augmentation=FULL, seed=3)
    one, other = (kept(Batches(slices, np.arange(20), recipe, CPU), 2) for _ in range(2))
    assert_same(one, other)


@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
@pytest.mark.parametrize("first_step", [0, 1, 4, 5])
def test_an_epoch_entered_in_its_middle_goes_on_as_a_whole_one(sampler: Sampler, first_step: int) -> None:
    slices = make_slices(patients=5, slices=8, size=SIZE)
    batches = Batches(slices, np.arange(40), Recipe(8, "windows", augmentation=FULL, sampler=sampler, seed=1), CPU)
    whole = kept(batches, 2)
    assert len(whole) == 5
    assert_same(kept(batches, 2, first_step), whole[first_step:])


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("channels", ["windows", "neighbours"])
def test_the_shares_of_a_batch_are_together_the_batch(channels: Channels, strength: float) -> None:
    slices = make_slices(patients=5, slices=8, size=SIZE)
    everything = Augmentation(strength=strength, kinds=KINDS)
    recipe = Recipe(8, channels, augmentation=everything, seed=1)
    whole = kept(Batches(slices, np.arange(40), recipe, CPU), 2)
    shares = [kept(Batches(slices, np.arange(40), recipe, CPU, Share(number, 3)), 2) for number in range(3)]
    assert [len(inputs) for inputs, _ in (share[0] for share in shares)] == [2, 3, 3]
    together = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same([(inputs, labels) for inputs, labels in together], whole)


def test_a_batch_is_written_to_the_buffers_of_the_one_before(numbered: SliceSet) -> None:
    places = [inputs.data_ptr() for inputs, _ in Batches(numbered, np.arange(48), Recipe(8, "hu"), CPU).train(0)]
    assert len(set(places)) == 1


def test_batches_can_be_trained_on_after_an_evaluation(numbered: SliceSet) -> None:
    batches = Batches(numbered, np.arange(48), Recipe(8, "hu"), CPU)
    with torch.inference_mode():
        list(batches.evaluate())
    weight = torch.ones((), requires_grad=True)
    inputs, _ = next(batches.train(0))
    (inputs * weight).sum().backward()  # an inference tensor would raise
    assert weight.grad is not None


def test_an_epoch_does_not_depend_on_those_before(numbered: SliceSet) -> None:
    batches = Batches(numbered, np.arange(48), Recipe(8, "hu"), CPU)
    list(batches.train(0))
    assert [numbers_in(inputs) for inputs, _ in batches.train(1)] == epoch_of(
        numbered, list(range(48)), Recipe(8, "hu"), 1
    )


def test_another_epoch_or_seed_has_another_order(numbered: SliceSet) -> None:
    rows = list(range(48))
    orders = [epoch_of(numbered, rows, Recipe(8, "hu", seed=seed), epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[1] != orders[2]


def test_an_epoch_holds_each_slice_of_the_part_once_and_no_other(numbered: SliceSet) -> None:
    rows = list(range(3, 43))
    seen = [number for batch in epoch_of(numbered, rows, Recipe(8, "hu"), 0) for number in batch]
    assert sorted(seen) == rows


def test_a_last_batch_that_is_not_full_is_left_out(numbered: SliceSet) -> None:
    batches = epoch_of(numbered, list(range(21)), Recipe(8, "hu"), 0)
    assert [len(batch) for batch in batches] == [8, 8]
    assert len({number for batch in batches for number in batch}) == 16
    assert Batches(numbered, np.arange(21), Recipe(8, "hu"), CPU).steps == 2


def test_other_epochs_leave_out_other_slices(numbered: SliceSet) -> None:
    seen = [
        {number for batch in epoch_of(numbered, list(range(21)), Recipe(8, "hu"), epoch) for number in batch}
        for epoch in range(12)
    ]
    assert set.union(*seen) == set(range(21))


def test_a_part_smaller_than_a_batch_is_one_batch(numbered: SliceSet) -> None:
    batches = epoch_of(numbered, [4, 9, 11], Recipe(8, "hu"), 0)
    assert [sorted(batch) for batch in batches] == [[4, 9, 11]]
    assert Batches(numbered, np.array([4, 9, 11]), Recipe(8, "hu"), CPU).steps == 1


def reference(slices: SliceSet, sources: npt.NDArray[np.int64], channels: Channels) -> Tensor:
    """Inputs of the slices of (N, K) rows, made at once."""
    hu = torch.from_numpy(np.asarray(slices.hu)[sources])
    out = torch.empty(len(hu), CHANNELS[channels], SIZE, SIZE)
    InputMaker(channels, slices.hist_breaks, CPU).fill(hu, out)
    return out


@pytest.mark.parametrize("channels", ["hu", "windows", "hist"])
def test_evaluation_keeps_order_leaves_nothing_out_and_changes_no_pixel(channels: Channels) -> None:
    slices = make_slices(patients=7, slices=3, size=SIZE)
    rows = np.array([20, 3, 4, 0, 19, 18, 7, 1, 2])
    recipe = Recipe(2, channels, augmentation=FULL, sampler="balanced")
    inputs = torch.cat([inputs.clone() for inputs in Batches(slices, rows, recipe, CPU).evaluate()])
    torch.testing.assert_close(inputs, reference(slices, rows[:, None], channels), rtol=0, atol=0)


def test_neighbours_are_of_the_series_and_repeat_at_its_ends(numbered: SliceSet) -> None:
    rows = np.array([0, 3, 5, 6])  # series of six slices
    inputs = next(Batches(numbered, rows, Recipe(4, "neighbours"), CPU).evaluate())
    shown = ((inputs[:, :, 0, 0] * 0.226 + 0.449) * 200 - 20).round().int().tolist()
    assert shown == [[0, 0, 1], [2, 3, 4], [4, 5, 5], [6, 6, 7]]


def test_slices_missing_in_a_series_part_neighbours(numbered: SliceSet) -> None:
    table = numbered.table.drop(index=2).reset_index(drop=True)  # the third slice was quarantined
    gap = replace(numbered, table=table, hu=np.delete(np.asarray(numbered.hu), 2, axis=0))
    assert gap.neighbours[:4].tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4]]


def test_neighbours_of_slices_cropped_one_by_one_are_refused(numbered: SliceSet) -> None:
    with pytest.raises(ConfigError, match="--crop slice; preprocess with --crop series"):
        Batches(replace(numbered, registered=False), np.arange(8), Recipe(4, "neighbours"), CPU)
    Batches(replace(numbered, registered=False), np.arange(8), Recipe(4, "windows"), CPU)


@pytest.mark.parametrize("channels", ["windows", "neighbours"])
def test_strength_zero_and_the_fast_path_agree(numbered: SliceSet, channels: Channels) -> None:
    rows = np.arange(48)
    plain = [inputs.clone() for inputs, _ in Batches(numbered, rows, Recipe(8, channels), CPU).train(0)]
    tiny = Augmentation(strength=1e-12)
    floats = kept(Batches(numbered, rows, Recipe(8, channels, augmentation=tiny), CPU), 0)
    for one, (other, _) in zip(plain, floats, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_training_leaves_the_slices_as_they_were() -> None:
    slices = make_slices(patients=5, slices=4, size=SIZE)
    before = np.array(slices.hu)
    list(Batches(slices, np.arange(20), Recipe(4, "windows", augmentation=FULL), CPU).train(0))
    np.testing.assert_array_equal(slices.hu, before)


def rare(slices: SliceSet, *, subtype: str, positives: int, other: str = "subdural") -> SliceSet:
    """The set with `positives` slices of `subtype`, as many times ten of `other`, the rest without haemorrhage."""
    table = slices.table.copy()
    table[list(LABELS)] = 0
    table.loc[: positives - 1, [subtype, "any"]] = 1
    table.loc[positives : 11 * positives - 1, [other, "any"]] = 1
    return replace(slices, table=table)


def counted(slices: SliceSet, rows: npt.NDArray[np.int64], task: Task, epochs: int) -> "Counter[str]":
    """How often balanced training shows each label."""
    batches = Batches(slices, rows, Recipe(16, "hu", task, sampler="balanced"), CPU)
    seen = torch.cat([labels for epoch in range(epochs) for _, labels in batches.train(epoch)])
    return Counter(dict(zip(task_labels(task), seen.sum(dim=0).int().tolist(), strict=True)), total=len(seen))


@pytest.mark.parametrize("task", ["any", "multilabel"])
def test_balanced_batches_bleed_half_the_time(task: Task) -> None:
    slices = rare(make_slices(patients=40, slices=8, size=SIZE), subtype="epidural", positives=2)
    seen = counted(slices, np.arange(320), task, epochs=10)
    assert seen["total"] == 3200
    assert seen["any"] / seen["total"] == pytest.approx(0.5, abs=0.03)


def test_balanced_positives_show_the_rare_subtype_as_often_as_the_frequent_one() -> None:
    slices = rare(make_slices(patients=20, slices=8, size=SIZE), subtype="epidural", positives=5)
    rows = np.flatnonzero(task_rows("positives", slices.labels))
    seen = counted(slices, rows, "positives", epochs=40)
    assert len(rows) == 55
    assert seen["epidural"] + seen["subdural"] == seen["total"]
    assert seen["epidural"] / seen["total"] == pytest.approx(0.5, abs=0.04)


def test_a_slice_with_two_subtypes_counts_as_its_rarer_one() -> None:
    labels = np.zeros((12, 6), np.float32)
    labels[:, [4, 5]] = 1  # all subdural
    labels[0, 0] = 1  # one of them epidural too
    labels[1, 4] = 0  # one without any subtype
    chances = rarest_subtype_chances(labels)
    assert chances.sum() == pytest.approx(1)
    assert chances[0] / chances[2] == pytest.approx(11)
    assert chances[1] == chances[2]


def test_a_balanced_part_of_one_class_only_is_drawn_evenly() -> None:
    assert any_chances(np.ones((4, 6), np.float32)).tolist() == [0.25] * 4


def test_other_epochs_draw_other_slices_when_balanced(numbered: SliceSet) -> None:
    recipe = Recipe(8, "hu", sampler="balanced")
    assert epoch_of(numbered, list(range(48)), recipe, 0) != epoch_of(numbered, list(range(48)), recipe, 1)


def test_slices_on_the_device_are_those_on_the_host() -> None:
    slices = make_slices(patients=4, slices=5, size=SIZE)
    sources = slices.neighbours[[3, 4, 11, 19]]
    chosen = np.array([2, 0, 3, 3])
    on_device, on_host = ResidentPixels(slices.hu, sources, CPU), HostPixels(slices.hu, sources, CPU)
    assert torch.equal(on_device.gather(chosen), on_host.gather(chosen))
    assert on_device.gather(chosen).dtype == torch.int16
    np.testing.assert_array_equal(on_device.gather(chosen).numpy(), np.asarray(slices.hu)[sources[chosen]])

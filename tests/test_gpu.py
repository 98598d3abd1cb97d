"""A trial on a GPU; run on demand with `pytest -m gpu`."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from slice_sets import make_rows, make_slices, split_of, write_shards

from ichsearch.data.batches import Batches, Recipe
from ichsearch.data.cache import open_slices
from ichsearch.data.channels import Channels
from ichsearch.data.held import HostPixels, ResidentPixels
from ichsearch.files import read_json
from ichsearch.search.processes import TrialJob, train
from ichsearch.train.config import InputConfig, TrialConfig, TrialFailedError
from ichsearch.train.lr_finder import find_lr
from ichsearch.train.setup import parts_of
from ichsearch.train.trial import run_trial

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAPER = ("resnet18", "resnet50", "resnet101", "densenet121", "alexnet")


def test_a_trial_learns_on_the_gpu_and_keeps_its_slices_there(tmp_path: Path) -> None:
    slices = make_slices(patients=25, slices=6, size=32)
    split, cuda = split_of(slices), torch.device("cuda")
    config = TrialConfig(backbone="resnet10t", batch_size=16, size=32, channels="hu", augment=0.5, lr=5e-3, epochs=6)
    batches: Batches = Batches(slices, parts_of(slices, split, 0.0).train, config.recipe, cuda)
    assert isinstance(batches._pixels, ResidentPixels)
    assert batches._pixels.gather(np.arange(2)).is_cuda
    result = run_trial(config, slices, split, tmp_path)
    assert result.score > 0.9
    assert result.memory_mb is not None
    assert 4 * result.parameters_m < result.memory_mb < 1000


def test_slices_copied_from_the_host_and_slices_on_the_gpu_are_the_same() -> None:
    slices = make_slices(patients=8, slices=16, size=256)
    cuda = torch.device("cuda")
    copied, resident = (kind(slices.hu, slices.neighbours, cuda) for kind in (HostPixels, ResidentPixels))
    batches = [np.random.default_rng(number).permutation(128)[:64] for number in range(20)]
    sums = [copied.gather(chosen).sum(dtype=torch.int64) for chosen in batches]  # nothing waits for a copy in between
    assert [int(total) for total in sums] == [int(resident.gather(chosen).sum(dtype=torch.int64)) for chosen in batches]
    for chosen in batches:
        assert torch.equal(copied.gather(chosen), resident.gather(chosen))


@pytest.mark.parametrize("channels", ["hu", "windows", "neighbours", "hist"])
def test_inputs_made_on_the_gpu_are_those_of_the_cpu(channels: Channels) -> None:
    slices = make_slices(patients=8, slices=8, size=64)
    recipe = Recipe(16, channels)
    on_gpu, on_cpu = (Batches(slices, np.arange(64), recipe, torch.device(kind)) for kind in ("cuda", "cpu"))
    for (inputs, labels), (expected, expected_labels) in zip(on_gpu.train(0), on_cpu.train(0), strict=True):
        torch.testing.assert_close(inputs.cpu(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(labels.cpu(), expected_labels, rtol=0, atol=0)


def test_the_lr_finder_suggests_the_same_twice() -> None:
    slices = make_slices(patients=25, slices=6, size=32)
    config = InputConfig(backbone="resnet10t", batch_size=16, size=32, channels="windows")
    first, second = (find_lr(config, slices, split_of(slices), steps=40) for _ in range(2))
    assert first.lr == pytest.approx(second.lr, rel=0.5)


@pytest.mark.parametrize("backbone", PAPER)
def test_every_backbone_of_the_paper_trains_at_full_size(backbone: str, tmp_path: Path) -> None:
    slices = make_slices(patients=60, slices=16, size=256)
    config = TrialConfig(backbone=backbone, batch_size=64, size=256, augment=0.5, lr=1e-3, epochs=3)
    records: list[dict[str, float]] = []
    run_trial(config, slices, split_of(slices), tmp_path, on_epoch=records.append)
    assert all(math.isfinite(record["train_loss"]) for record in records)
    assert len(records) == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backbone", ["test_convnext", "resnet18"])
def test_two_gpus_train_as_one_does(backbone: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", make_rows(patients=25, slices=6, size=64), 64)
    slices = open_slices(tmp_path / "shards", 64)
    config = TrialConfig(backbone=backbone, batch_size=15, size=64, augment=0.5, lr=1e-3, epochs=2, precision="fp32")
    results = [
        train(TrialJob(config, tmp_path / "shards", split_of(slices), tmp_path / str(gpus), None, None, 2), gpus)
        for gpus in (1, 2)
    ]
    assert [result.micro_batch for result in results] == [15, 8]
    one, two = (read_json(tmp_path / str(gpus) / "metrics.json")["epochs"] for gpus in (1, 2))
    tolerance = 1e-2 if backbone == "test_convnext" else 0.2  # BatchNorm sees other batches
    for name in ("train_loss", "log_loss"):
        assert [record[name] for record in two] == pytest.approx([record[name] for record in one], rel=tolerance)


def limited(fraction: float) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)


def test_too_little_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    slices = make_slices(patients=25, slices=6, size=256)
    config = TrialConfig(backbone="resnet50", batch_size=64, size=256, lr=1e-3, epochs=1)
    limited(2 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        assert run_trial(config, slices, split_of(slices), tmp_path).micro_batch < 64
    finally:
        limited(1.0)


def test_too_little_memory_for_one_slice_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    slices = make_slices(patients=25, slices=6, size=256)
    config = TrialConfig(backbone="resnet50", batch_size=64, size=256, lr=1e-3, epochs=1)
    limited(150 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(TrialFailedError, match="out_of_memory"):
            run_trial(config, slices, split_of(slices), tmp_path)
    finally:
        limited(1.0)

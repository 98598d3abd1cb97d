"""The contestants of the loading benchmark: each makes shuffled float32 batches of all slices, an epoch a call.

In: the data in its own form. Out: a function that runs one epoch and returns the slices of its batches. What only one
contestant needs is imported where it is made: each runs in a process of its own.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from loading_data import SIZE, Data
from torch import Tensor

from ichsearch.data.batches import Batches, Recipe
from ichsearch.data.channels import CHANNELS, Channels, InputMaker
from ichsearch.data.stream import SliceStream
from ichsearch.dicom.windows import SOFT
from ichsearch.shards.manifest import read_manifest
from ichsearch.shards.schema import unpack_hu

BATCH: Final = 64
STREAM_WINDOW_BYTES: Final = 128 * 2**20
"""A quarter of the default number of slices: else its window would hold the whole data set."""
SHUFFLE_BUFFER: Final = 1024

CPU: Final = torch.device("cpu")
Epoch = Callable[[int], int]


def ours(data: Data, channels: Channels) -> Epoch:
    """`Batches.train` over the node's cache."""
    return _train(data, channels, streams=False)


def ours_streamed(data: Data, channels: Channels) -> Epoch:
    """`Batches.train` over the shards."""
    return _train(data, channels, streams=True)


def _train(data: Data, channels: Channels, *, streams: bool) -> Epoch:
    slices = data.open()
    if streams:
        stream = SliceStream(data.shards, read_manifest(data.shards), SIZE, window=STREAM_WINDOW_BYTES)
        slices = replace(slices, hu=stream)
    batches = Batches(slices, np.arange(len(slices.table)), Recipe(BATCH, channels), CPU)
    return lambda epoch: sum(len(inputs) for inputs, _ in batches.train(epoch))


def ram(data: Data, channels: Channels) -> Epoch:
    """Tensors in this process's memory, gathered into one buffer, and ours' conversion: the limit."""
    slices = data.open()
    hu, labels = torch.from_numpy(np.array(slices.hu)), torch.from_numpy(slices.labels)
    maker = InputMaker(channels, slices.hist_breaks, CPU)
    gathered = torch.empty((BATCH, SIZE, SIZE), dtype=torch.int16)
    inputs = torch.empty((BATCH, CHANNELS[channels], SIZE, SIZE))

    def epoch(number: int) -> int:
        order = torch.randperm(len(hu), generator=torch.Generator().manual_seed(number))
        seen = 0
        for chosen in order.split(BATCH):
            if len(chosen) == BATCH:
                torch.index_select(hu, 0, chosen, out=gathered)
                maker.fill(gathered[:, None], inputs)
                seen += len(labels[chosen])
        return seen

    return epoch


def image_folder(data: Data, workers: int) -> Epoch:
    """torchvision's ImageFolder with ToTensor, and a DataLoader."""
    from torch.utils.data import DataLoader  # noqa: PLC0415 - see the module's docstring
    from torchvision.datasets import ImageFolder  # noqa: PLC0415
    from torchvision.transforms import ToTensor  # noqa: PLC0415

    loader: Any = DataLoader(
        ImageFolder(str(data.jpegs), ToTensor()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    return lambda epoch: sum(len(inputs) for inputs, _ in loader)


def fastai(data: Data) -> Epoch:
    """fastai's image DataLoaders without transforms; they want at least a slice to validate on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastai.vision.all import ImageDataLoaders  # noqa: PLC0415
    torch.set_num_threads(1)
    loaders = ImageDataLoaders.from_folder(data.jpegs, valid_pct=0.01, bs=BATCH, num_workers=0, device=CPU)
    return lambda epoch: sum(len(inputs) for inputs, _ in loaders.train)


def webdataset(data: Data) -> Epoch:
    """WebDataset over a tar of the JPEG files."""
    import webdataset as wds  # noqa: PLC0415

    pipeline = (
        wds.WebDataset(str(data.tar), shardshuffle=False)
        .shuffle(SHUFFLE_BUFFER)
        .decode("torchrgb")
        .to_tuple("jpg", "cls")
        .batched(BATCH, partial=False)
    )
    return lambda epoch: sum(len(inputs) for inputs, _ in pipeline)


def ray_data(data: Data) -> Epoch:
    """Ray Data over ichsearch's shards."""
    import ray  # noqa: PLC0415

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.read_parquet([str(path) for path in sorted(data.shards.glob("*.parquet"))], columns=["hu"])
    images = shards.map_batches(_unpacked, batch_size=BATCH)

    def epoch(number: int) -> int:
        batches = images.iter_torch_batches(
            batch_size=BATCH, drop_last=True, local_shuffle_buffer_size=SHUFFLE_BUFFER, local_shuffle_seed=number
        )
        return sum(len(_soft(batch["hu"])) for batch in batches)

    return epoch


def _unpacked(batch: dict[str, Any]) -> dict[str, Any]:
    planes = np.stack([np.frombuffer(packed, np.uint8).reshape(2, SIZE, SIZE) for packed in batch["hu"]])
    return {"hu": unpack_hu(planes)}


def _soft(hu: Tensor) -> Tensor:
    return hu.float().sub_(SOFT.low_hu).div_(SOFT.width_hu).clamp_(0, 1)[:, None]

"""Augmentation on one core: its share of a training step, its speed beside its peers; on demand, no test.

    python tests/benchmarks/augmentation.py [--batch-size 16] [--channels 1] [--rounds 5] [--backbones ...]

In: random images of 256², flip, ±15° and blur on every one. Out: tables, and as the last line all their figures as one
JSON object. Needs the extra `bench`.
"""

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import argparse
import json
import platform
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from time import process_time
from typing import Any, Final

import timm
import torch
from measuring import cpu_model, new_table, ratio, spread, spread_text
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision import transforms
from torchvision.models import alexnet
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import to_pil_image, to_tensor

from ichsearch.data import augment
from ichsearch.data.augment import KINDS, MAX_ROTATION_DEG, Augmentation, apply, draw
from ichsearch.data.warp import gaussian_taps, warp_by_batch
from ichsearch.labels import LABELS

SIDE: Final = 256
PAPER: Final = ("alexnet", "resnet18", "resnet50", "densenet121", "resnet101")
BLUR_TAPS: Final = 13
SIGMAS_PX: Final = (0.1, 2.0)
PEER_IMAGES: Final = 64
PACKAGES: Final = ("ichsearch", "torch", "torchvision", "timm", "opencv-python-headless", "kornia", "pillow", "numpy")

PAPER_KINDS: Final = Augmentation(strength=1)
ALL_KINDS: Final = Augmentation(strength=1, kinds=KINDS)

Figures = dict[str, Any]


def main() -> None:
    """Measure everything, print it for a reader, and for a program on the last line."""
    options = _options()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")  # of kornia's import
    figures: Figures = {
        "peers": _peers(options.rounds),
        "share_of_step": {name: _share(name, options) for name in options.backbones},
        "setting": _setting(options),
    }
    _show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Augmentation on one core: its share of a step, and its speed.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="3: neighbouring slices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=PAPER, choices=PAPER)
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Figures:
    return {
        "batch_size": options.batch_size,
        "channels": options.channels,
        "rounds": options.rounds,
        "cpu": cpu_model(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _images(number: int, channels: int) -> Tensor:
    """(number, channels, SIDE, SIDE) HU of a soft-edged head with noise."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    head = torch.sigmoid((0.8 - (x**2 + y**2).sqrt()) * 50) * 1040 - 1000
    return head + 5 * torch.randn(number, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _share(name: str, options: argparse.Namespace) -> Figures:
    """Milliseconds of a step and of a batch's augmentation, in turn; one round more, the first, warms up."""
    images, generator = _images(options.batch_size, options.channels), torch.Generator().manual_seed(0)
    work: dict[str, Callable[[], object]] = {
        "step": _training_step(name, torch.randn_like(images)),
        "paper_kinds": _ours(images),
        "all_kinds": lambda: apply(images, draw(len(images), ALL_KINDS, generator)),
        "paper_kinds_by_torch": _torch_batch(images),
    }
    seconds = _interleaved(work, options.rounds)
    shares = {
        f"{part}_percent": ratio([100 * value for value in seconds[part]], seconds["step"])
        for part in work
        if part != "step"
    }
    return {f"{part}_ms": spread([1000 * value for value in values]) for part, values in seconds.items()} | shares


def _training_step(name: str, inputs: Tensor) -> Callable[[], None]:
    """Forward, backward and optimizer, weights random."""
    labels = torch.rand(len(inputs), len(LABELS)).round()
    model = _model(name, inputs.shape[1]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(model(inputs), labels).backward()
        optimizer.step()

    return step


def _model(name: str, channels: int) -> nn.Module:
    if name != "alexnet":
        model: nn.Module = timm.create_model(name, in_chans=channels, num_classes=len(LABELS))
        return model
    model = alexnet(num_classes=len(LABELS))
    model.features[0] = nn.Conv2d(channels, 64, kernel_size=11, stride=4, padding=2)
    return model


def _peers(rounds: int) -> Figures:
    """Images a second of ours and of each peer, and ours over it."""
    images = _images(PEER_IMAGES, 1)
    seconds = _interleaved(
        {
            "ichsearch": _ours(images),
            "torch grid_sample + convolution": _torch_batch(images),
            "kornia, batch": _kornia_batch(images),
            "torchvision v2, tensors": _torchvision_tensors(images),
            "torchvision, 8-bit PIL": _torchvision_pil(images),
        },
        rounds,
    )
    return {
        name: {
            "images_per_s": spread([PEER_IMAGES / value for value in values]),
            "ichsearch_over_it": ratio(values, seconds["ichsearch"]),
        }
        for name, values in seconds.items()
    }


def _ours(images: Tensor) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    return lambda: apply(images, draw(len(images), PAPER_KINDS, generator))


def _torch_batch(images: Tensor) -> Callable[[], object]:
    """What `apply` does on a GPU."""
    generator = torch.Generator().manual_seed(0)

    def run() -> Tensor:
        drawn = draw(len(images), PAPER_KINDS, generator)
        return warp_by_batch(images, augment._maps(drawn), gaussian_taps(drawn.blur_of_side * SIDE))

    return run


def _kornia_batch(images: Tensor) -> Callable[[], object]:
    import kornia.augmentation as peer  # noqa: PLC0415 - after warnings are silenced

    transform = nn.Sequential(
        peer.RandomHorizontalFlip(p=0.5),
        peer.RandomRotation(MAX_ROTATION_DEG, p=1.0),
        peer.RandomGaussianBlur((BLUR_TAPS, BLUR_TAPS), SIGMAS_PX, p=1.0),
    )
    return lambda: transform(images)


def _torchvision_tensors(images: Tensor) -> Callable[[], object]:
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(MAX_ROTATION_DEG, InterpolationMode.BILINEAR),
            v2.GaussianBlur(BLUR_TAPS, SIGMAS_PX),
        ]
    )
    return lambda: torch.stack([transform(image) for image in images])


def _torchvision_pil(images: Tensor) -> Callable[[], object]:
    """Images as PNG or JPEG hold them, a window of HU in 8 bits, made tensors at the end."""
    pictures = [to_pil_image((image / 80).clamp(0, 1)) for image in images]
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(MAX_ROTATION_DEG, InterpolationMode.BILINEAR),
            transforms.GaussianBlur(BLUR_TAPS, SIGMAS_PX),
        ]
    )
    return lambda: torch.stack([to_tensor(transform(picture)) for picture in pictures])


def _interleaved(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round: of this process's time, as others on the core would stretch long work most."""
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, run in work.items():
            start = process_time()
            run()
            if number:
                seconds[name].append(process_time() - start)
    return dict(seconds)


def _show(figures: Figures) -> None:
    setting = figures["setting"]
    console = Console(width=120, highlight=False)
    console.print(
        f"{SIDE}², {setting['rounds']} interleaved rounds; median \\[min–max]; one core of {setting['cpu']}; "
        f"load average {setting['load_average']}"
    )
    console.print(", ".join(f"{name} {number}" for name, number in setting["versions"].items()))
    console.print(_peer_table(figures["peers"]))
    console.print("Every image flipped with chance ½, turned within ±15° and blurred by a sigma of up to 2 px.")
    console.print(_share_table(figures["share_of_step"], setting))
    console.print("A step is forward, backward and AdamW. Strength 1, drawing included. Times are the process's.")


def _peer_table(peers: Figures) -> Table:
    table = new_table(f"Flip, rotation, blur: {PEER_IMAGES} images", "", "images/s", "ichsearch / it")
    for name, peer in peers.items():
        table.add_row(name, spread_text(peer["images_per_s"]), spread_text(peer["ichsearch_over_it"], 1))
    return table


def _share_table(shares: Figures, setting: Figures) -> Table:
    columns = ("", "step, ms", "paper's three, ms", "% of a step", "all seven, %", "three by torch, %")
    title = f"Share of a training step, batches of {setting['batch_size']}, input channels: {setting['channels']}"
    table = new_table(title, *columns)
    for name, share in shares.items():
        percents = (share[f"{part}_percent"] for part in ("paper_kinds", "all_kinds", "paper_kinds_by_torch"))
        table.add_row(
            name,
            spread_text(share["step_ms"]),
            spread_text(share["paper_kinds_ms"], 1),
            *(spread_text(part, 2) for part in percents),
        )
    return table


if __name__ == "__main__":
    main()

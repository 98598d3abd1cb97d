"""What each of two ranks does in a process of its own; it imports little, since every process imports it.

In: a folder. Out: what either of them found, all that is asked of ranks at once.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_steps import BATCH, Greedy, make_batch, make_model, moved
from torch import nn

from ichsearch.labels import LABELS
from ichsearch.train.loss import make_loss
from ichsearch.train.memory import MicroBatch
from ichsearch.train.optimizer import LAYER_GROUP
from ichsearch.train.parallel import Ranks, joined
from ichsearch.train.steps import Stepper


def in_two(folder: Path) -> list[dict[str, Any]]:
    """The answers of both ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ichsearch.search.processes"])
    with ProcessPoolExecutor(2, context) as pool:
        return list(pool.map(_answers, [folder / "meeting"] * 2, range(2)))


def _answers(meeting: Path, rank: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with joined(meeting, rank, 2) as ranks:
        return _met(ranks) | _stepped_with_little_memory_on_one(ranks) | _normalised(ranks)


def _met(ranks: Ranks) -> dict[str, Any]:
    matrix, number = torch.full((2, 3), 1.0 + ranks.rank), torch.tensor(10.0 * ranks.rank)
    ranks.average([matrix, number], weight=3 - 2 * ranks.rank)
    ranks.reseed(1, 2, 3)
    return {
        "average": [*matrix.flatten().tolist(), float(number)],
        "least": ranks.least(5 - ranks.rank),
        "told": ranks.told(lambda: f"by {ranks.rank}"),
        "gathered": ranks.gathered(np.full((1 + ranks.rank, 1), ranks.rank, np.float32)).ravel().tolist(),
        "drawn": float(torch.rand(1)),
    }


def _stepped_with_little_memory_on_one(ranks: Ranks) -> dict[str, Any]:
    model = Greedy(make_model(), fits=3 if ranks.rank else BATCH)
    loss, stepper = _stepped(model, ranks)
    return {"loss": loss, "micro_batch": stepper.micro.size, "gradient": moved(model.model).tolist()}


def _normalised(ranks: Ranks) -> dict[str, Any]:
    norm = nn.BatchNorm2d(1)
    _stepped(nn.Sequential(norm, make_model()), ranks)
    return {"running": (float(norm.running_mean), float(norm.running_var))}  # type: ignore[arg-type]


def _stepped(model: nn.Module, ranks: Ranks) -> tuple[float, Stepper]:
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), LAYER_GROUP: 0}], lr=1.0)
    inputs, labels = make_batch()
    loss = make_loss(LABELS, labels, balanced=False, smoothing=0.0)
    stepper = Stepper(model, optimizer, loss, micro=MicroBatch(BATCH // 2, ranks), ranks=ranks)
    own = ranks.share.part(BATCH)
    return float(stepper.step(inputs[own], labels[own])), stepper

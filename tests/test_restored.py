"""A model and an optimizer given back to the bit after an experiment."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ichsearch.train.lr_finder import range_test
from ichsearch.train.restored import restored

Live = tuple[nn.Module, torch.optim.Optimizer]


class StepError(Exception):
    """Stands for whatever a step may raise."""


def make_live(optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> Live:
    """A model in the middle of training, with frozen parts and mixed modes, and its optimizer with a state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    model.register_buffer("unsaved", torch.ones(3), persistent=False)
    model[0].weight.requires_grad_(False)
    groups = [{"params": model[3].parameters(), "lr": 0.1}, {"params": [*model[1].parameters(), model[0].bias]}]
    live = model, optimizer(groups, lr=0.01)
    for _ in range(3):
        train(*live, 0.05)
    model[1].eval()
    return live


def train(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss = model(torch.randn(16, 4)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def spoil(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> float:
    """A step that also touches all that a step should leave alone."""
    random.random()  # noqa: S311
    np.random.rand(2)
    model.train()
    model[0].weight.requires_grad_(True)
    model.unsaved = torch.zeros(3)
    if lr > 1e-3 and len(optimizer.param_groups) == 2:
        optimizer.add_param_group({"params": [model[0].weight]})
        for group in optimizer.param_groups:
            group.update(weight_decay=0.5, strange=1)
    return train(model, optimizer, lr)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that must stay, tensors as bytes."""

    def plain(value: Any) -> Any:
        return (value.dtype, value.numpy(force=True).tobytes()) if isinstance(value, Tensor) else value

    parameters = [(plain(p), plain(p.grad), p.requires_grad) for p in model.parameters()]
    groups = [
        {name: value if name != "params" else [id(part) for part in value] for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    state = {id(p): {name: plain(v) for name, v in values.items()} for p, values in optimizer.state.items()}
    names, numbers, *rest = np.random.get_state()
    generators = [random.getstate(), names, np.asarray(numbers).tobytes(), rest, plain(torch.get_rng_state())]
    return [
        parameters,
        [plain(buffer) for buffer in model.buffers()],
        [module.training for module in model.modules()],
        groups,
        state,
        generators,
    ]


OPTIMIZERS = (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_range_test_on_a_live_model_leaves_no_trace(optimizer: type[torch.optim.Optimizer]) -> None:
    live = make_live(optimizer)
    before = everything(*live)
    with restored(*live):
        lrs, losses = range_test(lambda lr: spoil(*live, lr), 30)
        assert everything(*live) != before
    assert len(lrs) == len(losses) > 20
    assert everything(*live) == before


@pytest.mark.parametrize("steps_before", [0, 1, 25])
def test_an_error_in_a_step_leaves_no_trace_either(steps_before: int) -> None:
    live = make_live()
    before = everything(*live)

    def step(lr: float) -> float:
        if lr > 1e-7 * 1e8 ** ((steps_before - 0.5) / 30):
            raise StepError
        return spoil(*live, lr)

    with pytest.raises(StepError), restored(*live):
        range_test(step, 30)
    assert everything(*live) == before


def test_training_goes_on_to_the_same_bits() -> None:
    def go_on(between: Callable[[Live], None]) -> list[Any]:
        live = make_live()
        between(live)
        for _ in range(3):
            train(*live, 0.01)
        return [value.tolist() for value in live[0].state_dict().values()]

    def experiment(live: Live) -> None:
        with restored(*live):
            range_test(lambda lr: spoil(*live, lr), 30)

    assert go_on(experiment) == go_on(lambda live: None)


def test_an_optimizer_that_has_not_stepped_has_no_state_again() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with restored(model, optimizer):
        train(model, optimizer, 0.1)
        assert optimizer.state
    assert not optimizer.state
    assert model.weight.grad is None


def test_the_tensors_are_the_same_ones_and_not_numbers_come_back() -> None:
    model, optimizer = make_live()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    weight, average = model[3].weight, optimizer.state[model[3].weight]["exp_avg"]
    with restored(model, optimizer):
        model[3].weight = nn.Parameter(torch.zeros(2, 8))
        optimizer.state.clear()
    assert model[3].weight is weight
    assert optimizer.state[weight]["exp_avg"] is average
    assert weight[0, 0].isnan()

"""A model and its optimizer borrowed for an experiment and given back to the bit.

In: a live model and optimizer. Out: a context at whose end everything is as it was.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put everything back to the bit when the block ends, also by an error.

    That is: parameters with their gradients and `requires_grad`, buffers, the mode of each module, the optimizer's
    state and groups, and the random generators of Python, numpy, torch and its GPUs. The same tensors are written to,
    so whoever refers to them sees the old values; meanwhile a copy of each takes memory.
    """
    in_groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters = list(dict.fromkeys([*model.parameters(), *in_groups]))
    in_optimizer = [*optimizer.state.values(), *optimizer.param_groups]
    tensors = _tensors(parameters, model.buffers(), *(values.values() for values in in_optimizer))
    gradients = _tensors(parameter.grad for parameter in parameters)
    with (
        _restored_values([*tensors, *gradients]),
        _restored_parameters(parameters),
        _restored_modules(model),
        _restored_optimizer(optimizer),
        _restored_generators(),
    ):
        yield


def _tensors(*values: Iterable[Any]) -> list[Tensor]:
    return [value for some in values for value in some if isinstance(value, Tensor)]


@contextmanager
def _restored_values(tensors: list[Tensor]) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)


@contextmanager
def _restored_parameters(parameters: list[Tensor]) -> Iterator[None]:
    saved = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, grad, requires_grad in saved:
            parameter.requires_grad_(requires_grad).grad = grad


@contextmanager
def _restored_modules(model: nn.Module) -> Iterator[None]:
    saved = [(module, module.training, copy(module._parameters), copy(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, training, parameters, buffers in saved:
            module.training = training
            _refill(module._parameters, parameters)
            _refill(module._buffers, buffers)


@contextmanager
def _restored_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    groups = [(group, copy(group), copy(group["params"])) for group in optimizer.param_groups]
    state = {parameter: copy(values) for parameter, values in optimizer.state.items()}
    try:
        yield
    finally:
        optimizer.param_groups[:] = [group for group, _, _ in groups]
        for group, values, parameters in groups:
            _refill(group, values | {"params": parameters})
        _refill(optimizer.state, state)


@contextmanager
def _restored_generators() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(gpus)


def _refill(container: dict[Any, Any], content: dict[Any, Any]) -> None:
    container.clear()
    container.update(content)

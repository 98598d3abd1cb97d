"""What a configuration costs: a few real training steps on random images, in a process of their own.

In: an `InputConfig`. Out: seconds a step, seconds a slice to be judged, and the memory that training took at its peak.
"""

import multiprocessing
import time
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ichsearch.data.cache import SliceSet
from ichsearch.data.channels import hist_breaks
from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.labels import LABELS
from ichsearch.train.config import InputConfig, TrialFailedError
from ichsearch.train.memory import MicroBatch
from ichsearch.train.optimizer import set_step
from ichsearch.train.schedule import GROUPS
from ichsearch.train.setup import Training, make_training, pick_device
from ichsearch.train.steps import predict

STEPS: Final = 4
"""Timed steps of a batch, at most."""
SECONDS: Final = 3.0
"""After these no further step begins; a batch whose step would take longer is not tried on a CPU."""
SMALL_BATCHES: Final = (8, 16)
"""Tried first on a CPU, where time and memory grow with the batch: a slow model is told from them alone."""
LIMIT_S: Final = 120.0
"""A process that has not answered by then is ended."""
LR: Final = 1e-4


class Cost(NamedTuple):
    """What training takes on this machine.

    Of a batch larger than `measured_batch` time and memory are those of smaller ones, prolonged in a straight line.
    `memory_bytes` is the growth of the process's resident memory on a CPU, and what torch allocated on a GPU.
    """

    step_s: float
    predict_s: float
    memory_bytes: int
    micro_batch: int
    measured_batch: int
    device: str

    def trial_s(self, training_slices: int, validation_slices: int, batch_size: int, epochs: int) -> float:
        """Seconds of a trial, each epoch of which is judged."""
        steps = max(1, training_slices // batch_size)
        return epochs * (steps * self.step_s + validation_slices * self.predict_s)


def cost_of(config: InputConfig, threads: int) -> Cost | str:
    """The cost of a configuration on this machine, or why it has none; each is measured once in a process's life."""
    if pick_device().type == "cuda":
        return _apart(config, threads)
    small: list[Cost] = []
    for batch in (size for size in SMALL_BATCHES if size < config.batch_size):
        cost = _apart(config.model_copy(update={"batch_size": batch}), threads)
        if isinstance(cost, str):
            return cost
        small.append(cost)
    if len(small) < len(SMALL_BATCHES) or _prolonged(small, config.batch_size).step_s <= SECONDS:
        return _apart(config, threads)
    return _prolonged(small, config.batch_size)


def _prolonged(costs: list[Cost], batch: int) -> Cost:
    """The cost of a batch on the line through two smaller ones."""
    before, last = costs[-2:]
    more = (batch - last.measured_batch) / (last.measured_batch - before.measured_batch)
    memory_bytes = last.memory_bytes + more * max(0, last.memory_bytes - before.memory_bytes)
    step_s = last.step_s * batch / last.measured_batch
    return last._replace(step_s=step_s, memory_bytes=int(memory_bytes), micro_batch=batch)


@cache
def _apart(config: InputConfig, threads: int) -> Cost | str:
    """The same, measured in a process whose peak is its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, config, threads))
    process.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_S):
            return f"a few steps take longer than {LIMIT_S:.0f} s"
        answer: Cost | str = receiver.recv()
    except EOFError:
        return "its process was killed, as for want of memory"
    else:
        return answer
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: Connection, config: InputConfig, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        sender.send(measured(config, pick_device()))
    except TrialFailedError as error:
        sender.send(error.reason)
    except Exception as error:  # noqa: BLE001 - whatever a backbone raises is told beside its name
        sender.send(" ".join(str(error).split())[:120])


def measured(config: InputConfig, device: torch.device) -> Cost:
    """The cost of a configuration in this process.

    Raises:
        TrialFailedError: memory does not suffice in any way.
    """
    before_bytes = 0 if device.type == "cuda" else _resident_bytes("VmRSS")
    slices = _random_slices(config)
    training = make_training(config, slices, np.arange(len(slices.hu)), None, device)
    set_step(training.optimizer, (LR,) * GROUPS)
    inputs, labels = next(training.batches.train(0))
    return Cost(
        step_s=_seconds_a_step(training, inputs, labels),
        predict_s=_seconds_a_prediction(training, inputs),
        memory_bytes=_peak_bytes(device) - before_bytes,
        micro_batch=training.stepper.micro.size,
        measured_batch=config.batch_size,
        device=_name(device),
    )


def _seconds_a_step(training: Training, inputs: Tensor, labels: Tensor) -> float:
    """The median of a few steps after the first; the first alone if it is slow."""
    seconds: list[float] = []
    training.model.train()
    while len(seconds) <= STEPS and sum(seconds) < SECONDS:
        start_s = time.perf_counter()
        float(training.stepper.step(inputs, labels))  # a number is there when the GPU has done its work
        seconds.append(time.perf_counter() - start_s)
    return float(np.median(seconds[1:] or seconds))


def _seconds_a_prediction(training: Training, inputs: Tensor) -> float:
    """Seconds a slice; its probabilities come to the CPU, so that a GPU has done its work."""
    stepper = training.stepper
    start_s = time.perf_counter()
    predict(training.model, [inputs], micro=MicroBatch(stepper.micro.size), kind=stepper.kind)
    return (time.perf_counter() - start_s) / len(inputs)


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmHWM")


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}"


def _random_slices(config: InputConfig) -> SliceSet:
    """Two batches of noise, which looks to a model like any image."""
    rng = np.random.default_rng(config.seed)
    number = 2 * config.batch_size
    hu = rng.integers(MIN_HU, MAX_HU, (number, config.size, config.size), dtype=np.int16)
    labels = {label: np.arange(number) % 2 for label in LABELS}
    table = pd.DataFrame(labels | {"series": np.zeros(number, int), "series_index": np.arange(number)})
    return SliceSet(hu, table, fingerprint="", registered=True, hist_breaks=hist_breaks(hu[:1]))


def _resident_bytes(kind: str) -> int:
    """VmRSS, what a process has in memory, or VmHWM, what it ever had, which its parent's peak does not count in."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024

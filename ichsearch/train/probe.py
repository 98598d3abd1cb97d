"""What a configuration costs: a few real training steps on random images, in a process of their own.

In: an `InputConfig`. Out: seconds a step, seconds a slice to be judged, and the memory that training took at its peak.
"""

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch

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
"""Timed steps, at most, after one that is not."""
SECONDS: Final = 3.0
"""After these no further step begins."""
LIMIT_S: Final = 90.0
"""A process that has not answered by then is ended."""
LR: Final = 1e-4


class Cost(NamedTuple):
    """What training takes on this machine.

    `memory_bytes` is the growth of the process's resident memory on a CPU, and what torch allocated on a GPU.
    """

    step_s: float
    predict_s: float
    memory_bytes: int
    micro_batch: int
    device: str

    def trial_s(self, training_slices: int, validation_slices: int, batch_size: int, epochs: int) -> float:
        """Seconds of a trial, each epoch of which is judged."""
        steps = max(1, training_slices // batch_size)
        return epochs * (steps * self.step_s + validation_slices * self.predict_s)


def measured_apart(config: InputConfig, threads: int, limit_s: float = LIMIT_S) -> Cost | str:
    """The cost of a configuration, measured in a process whose peak is its own; or why it has none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, config, threads))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_s):
            return f"a step takes longer than {limit_s:.0f} s"
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
    except (RuntimeError, ValueError) as error:
        sender.send(" ".join(str(error).split())[:120])


def measured(config: InputConfig, device: torch.device) -> Cost:
    """The cost of a configuration in this process.

    Raises:
        TrialFailedError: memory does not suffice in any way.
    """
    before = _resident_bytes("VmRSS")
    slices = _random_slices(config)
    training = make_training(config, slices, np.arange(len(slices.hu)), None, device)
    set_step(training.optimizer, (LR,) * GROUPS)
    step_s = _seconds_a_step(training, device)
    inputs, _ = next(training.batches.train(0))
    start_s = time.perf_counter()
    predict(training.model, [inputs], micro=MicroBatch(training.stepper.micro.size), kind=training.stepper.kind)
    predict_s = (time.perf_counter() - start_s) / len(inputs)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_bytes("VmHWM") - before
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return Cost(step_s, predict_s, peak, training.stepper.micro.size, name)


def _seconds_a_step(training: Training, device: torch.device) -> float:
    """The median of a few steps after the first; the first alone if it is slow."""
    seconds: list[float] = []
    training.model.train()
    began_s = time.perf_counter()
    epoch = 0
    while len(seconds) <= STEPS and (not seconds or time.perf_counter() - began_s < SECONDS):
        start_s = time.perf_counter()
        for inputs, labels in training.batches.train(epoch):
            training.stepper.step(inputs, labels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start_s)
            start_s = time.perf_counter()
            if time.perf_counter() - began_s >= SECONDS:
                break
        epoch += 1
    return float(np.median(seconds[1:] or seconds))


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

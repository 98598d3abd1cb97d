"""A trial's curves as TensorBoard event files.

In: records of epochs. Out: `events/events.out.tfevents.NNNN`, one each time that the trial began or went on. They are
written by this thread, without tensorboardX's queue, and hold neither the host's name nor a path.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, text

from ichsearch.train.config import TrialConfig
from ichsearch.train.trainer import EpochCallback

NAME: Final = "events.out.tfevents"
VERSION: Final = "brain.Event:2"
TRAINING: Final = frozenset(["train_loss", "lr", "images_per_s", "micro_batch", "trained_s", "seconds"])
"""What of a record is no score."""


@contextmanager
def event_file(folder: Path, config: TrialConfig, epochs_done: int) -> Iterator[EpochCallback]:
    """A file for the epochs after `epochs_done`, and what writes the record of one to it.

    Of epochs that are trained once more TensorBoard shows the last: a file names the step from which it replaces the
    ones before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.{epochs_done:04d}"
    for replaced in [known for known in folder.glob(f"{NAME}.*") if known.name >= path.name]:
        replaced.unlink()
    first = not any(folder.glob(f"{NAME}.*"))
    writer = RecordWriter(str(path))
    try:
        _write(writer, file_version=VERSION)
        _write(writer, step=epochs_done + 1, session_log=SessionLog(status=SessionLog.START))
        for summary in _configuration(config) if first else ():
            _write(writer, summary=summary)
        writer.flush()
        yield lambda record: _write_record(writer, record)
    finally:
        writer.close()


def _configuration(config: TrialConfig) -> Iterator[Any]:
    """The configuration for TensorBoard's tabs TEXT and HPARAMS."""
    values = {name: value for name, value in config.model_dump().items() if value is not None}
    yield text("configuration", "\n".join(["|name|value|", "|-|-|", *(f"|{name}|{values[name]}|" for name in values)]))
    experiment, begun, _ = hparams(values, {_tag(config.metric): None})
    yield from (experiment, begun)


def _write_record(writer: Any, record: dict[str, Any]) -> None:
    defined = {name: value for name, value in record.items() if name != "epoch" and value is not None}
    values = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in defined.items()]
    _write(writer, step=record["epoch"], summary=Summary(value=values))
    writer.flush()


def _tag(name: str) -> str:
    return f"training/{name}" if name in TRAINING else f"scores/{name}"


def _write(writer: Any, **content: Any) -> None:
    writer.write(Event(wall_time=time.time(), **content).SerializeToString())

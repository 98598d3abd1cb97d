"""A predictor on slices of shards, read as they are asked for.

In: a `Predictor`, shards, rows. Out: probabilities.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ichsearch.data.cache import SliceSet
from ichsearch.data.stream import SliceStream
from ichsearch.deploy.models import Predictor
from ichsearch.dicom.pixels import MAX_HU, MIN_HU
from ichsearch.report.inspect_cohort import read_metadata
from ichsearch.shards.manifest import read_manifest
from ichsearch.train.metrics import FloatArray

CHUNK: Final = 256
Rows = npt.NDArray[np.int64]


def stored_slices(shards: Path) -> SliceSet:
    """The slices of shards at their stored size, decoded when they are asked for: memory does not grow with them."""
    manifest = read_manifest(shards)
    stream = SliceStream(shards, manifest, manifest.settings.size)
    registered, breaks = manifest.settings.crop == "series", np.array([MIN_HU, MAX_HU], np.int16)
    return SliceSet(stream, read_metadata(shards, manifest), manifest.fingerprint, registered, breaks)


def predict_rows(predictor: Predictor, slices: SliceSet, rows: Rows) -> FloatArray:
    """Probabilities (N, L) of the slices in (N,) `rows` of `stored_slices`; fastest in the shards' order.

    Raises:
        ConfigError: the model sees neighbours, but slices were cropped one by one.
        DataError: a shard is damaged.
    """
    sources = slices.neighbours[rows] if predictor.needs_neighbours else rows[:, None]
    assert isinstance(slices.hu, SliceStream)
    parts = [_chunk(predictor, slices.hu, sources[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    return np.concatenate([np.empty((0, len(predictor.labels)), np.float32), *parts])


def _chunk(predictor: Predictor, stream: SliceStream, sources: Rows) -> FloatArray:
    size = stream.shape[-1]
    hu = np.empty((*sources.shape, size, size), np.int16)
    stream.take(sources, hu)
    places = np.arange(sources.size).reshape(sources.shape)
    return predictor.predict(hu.reshape(-1, size, size), np.broadcast_to(places, (len(sources), 3)))

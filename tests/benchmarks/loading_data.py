"""The data of the loading benchmark: the same synthetic slices in every contestant's own form.

In: a number of slices. Out: a folder of shards, ichsearch's cache of it, JPEG files in a folder a class, a tar of them.
"""

import io
import sys
import tarfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from slice_sets import make_rows, make_slices, write_shards

from ichsearch.data.cache import SliceSet, open_slices
from ichsearch.dicom.windows import BONE, BRAIN, SUBDURAL
from ichsearch.labels import ANY

SIZE: Final = 256
SLICES_A_PATIENT: Final = 32
JPEG_QUALITY: Final = 90
JPEG_WINDOWS: Final = (BRAIN, SUBDURAL, BONE)


class Data(NamedTuple):
    """Where the slices lie in each form."""

    shards: Path
    cache: Path
    jpegs: Path
    tar: Path

    def open(self) -> SliceSet:
        """The slices as ichsearch opens them."""
        return open_slices(self.shards, SIZE, self.cache)


def in_memory(slices: int) -> SliceSet:
    """A few slices of the same kind without files."""
    return make_slices(patients=1, slices=slices, size=SIZE)


def write_data(work: Path, slices: int) -> Data:
    """Draw the slices and write all forms of them below `work`."""
    data = Data(work / "shards", work / "cache", work / "jpegs", work / "jpegs.tar")
    rows = make_rows(patients=-(-slices // SLICES_A_PATIENT), slices=SLICES_A_PATIENT, size=SIZE)[:slices]
    write_shards(data.shards, rows, SIZE, shards=max(1, slices // 1024))
    del rows
    opened = data.open()
    bleeds = opened.table[ANY].to_numpy(int)
    with tarfile.open(data.tar, "w") as tar:
        for number in range(len(opened.table)):
            content = _jpeg(np.asarray(opened.hu[number]))  # type: ignore[index]  # it fits the cache
            path = data.jpegs / str(bleeds[number]) / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            _add(tar, f"{number:06d}.jpg", content)
            _add(tar, f"{number:06d}.cls", str(bleeds[number]).encode())
    return data


def _jpeg(hu: NDArray[np.int16]) -> bytes:
    """Three windows as the three channels, as the peers of the preprocessing benchmark store a slice."""
    channels = [((hu.astype(np.float32) - window.low_hu) / window.width_hu).clip(0, 1) * 255 for window in JPEG_WINDOWS]
    file = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))

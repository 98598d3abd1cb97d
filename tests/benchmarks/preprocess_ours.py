"""ichsearch's side of the preprocessing benchmark: the one file to adapt when the library's functions change.

In: DICOM paths. Out: stored slices, images, boxes, and the time of each stage. It must not import a peer: it also runs
in the spawned processes of the scaling measurement.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from ichsearch.dicom import pixels
from ichsearch.dicom.brain import cropped, locate_brain, union_box
from ichsearch.dicom.find import read_content
from ichsearch.dicom.header import read_header
from ichsearch.files import sha256_of, written_aside
from ichsearch.shards.build import build_shard
from ichsearch.shards.identity import KEY_BYTES, Key
from ichsearch.shards.manifest import Settings
from ichsearch.shards.plan import LabelledFile, SourceFile, drop_duplicates, plan_shards, same_slice
from ichsearch.shards.preprocess import header_of
from ichsearch.shards.schema import ShardWriter, shard_schema
from ichsearch.storage import FoundFile, open_folder

SIZE: Final = 256

Edges = tuple[int, int, int, int]
"""Top, left, bottom, right of a box; the last two are inside it."""


def run(paths: list[Path], out: Path, *, one_shard: bool = False) -> int:
    """All that `ichsearch preprocess` does with these files, in this process and without Ray; the slices stored.

    A cohort of tens of files is cut into a shard a study, each synced to the disk; with `one_shard` they are one, as
    the thousand slices of a shard are in a real cohort.
    """
    key = Key(bytes(KEY_BYTES))
    settings = Settings(size=SIZE, key_id=key.id, source_id=key.hash("folder", "benchmark"))
    headed = [header_of(_found(path), key) for path in paths]
    sources, _, _ = drop_duplicates(same_slice(item for item in headed if isinstance(item, SourceFile)), {})
    jobs = plan_shards([LabelledFile(source, None) for source in sources], settings.model_dump_json(), SIZE)
    if one_shard:
        jobs = [jobs[0]._replace(studies=[study for job in jobs for study in job.studies])]
    return sum(build_shard(open_folder(out), job, settings, key).slices for job in jobs)


def _found(path: Path) -> FoundFile:
    info = path.stat()
    return FoundFile(str(path), info.st_size, info.st_mtime_ns)


def run_repeatedly(paths: list[Path], out: Path, times: int) -> int:
    """`run` several times into one shard: enough work for a process that its start and its end do not count."""
    return sum(run(paths, out, one_shard=True) for _ in range(times))


def hu_of(path: Path) -> NDArray[np.int16]:
    """The slice in HU, (side, side)."""
    return pixels.read_image(path).hu


def stored_hash(path: Path) -> str:
    """Equal for two files that hold the same image, however it is compressed."""
    return pixels.read_image(path).stored_hash


def stored(path: Path) -> pixels.Frame:
    """The values as the file holds them, (rows, columns): read, parse, decode."""
    return pixels._read_frame(read_content(str(path)))[2]


def decode(path: Path) -> NDArray[np.int16]:
    """`read_image` without its hash, its statistics and its checks of the pixels: read, parse, decode, HU."""
    _, encoding, frame = pixels._read_frame(read_content(str(path)))
    return pixels.squared(pixels.to_hu(frame, encoding, pixels.stored_statistics(frame))[0])


def box(hu: NDArray[np.int16]) -> Edges:
    """The brain's square of one slice, the whole frame without one."""
    square = union_box([locate_brain(hu)[1]], hu.shape[0])
    return square.top, square.left, square.top + square.side - 1, square.left + square.side - 1


def stages(paths: list[Path], out: Path) -> dict[str, float]:
    """Microseconds a slice of each stage, one after the other over all files."""
    images = [hu_of(path) for path in paths]
    squares = [union_box([locate_brain(hu)[1]], len(hu)) for hu in images]
    return {
        "read bytes": _us_each(Path.read_bytes, paths),
        "header": _us_each(read_header, paths),
        "decode to HU": _us_each(decode, paths),
        "hash of pixels": _us_each(lambda hu: xxhash.xxh3_128_hexdigest(hu.data), images),
        "statistics + noise check": _us_each(lambda hu: (pixels.stored_statistics(hu), pixels.is_noise(hu)), images),
        "brain share and box": _us_each(locate_brain, images),
        "crop + resize": _us_each(
            lambda pair: cropped(pair[0], pair[1], SIZE), list(zip(images, squares, strict=True))
        ),
        "Parquet + its SHA-256 + sync": _us_parquet(paths, out),
    }


def _us_each(function: Callable[[Any], object], items: list[Any]) -> float:
    start = perf_counter()
    for item in items:
        function(item)
    return (perf_counter() - start) / len(items) * 1e6


def _us_parquet(paths: list[Path], out: Path) -> float:
    """Write the rows of one shard again, as `build_shard` does."""
    run(paths, out, one_shard=True)
    shards = [pq.read_table(path).to_pylist() for path in sorted(out.glob("shard-*.parquet"))]
    start = perf_counter()
    for rows in shards:
        with written_aside(out / "again.parquet") as aside:
            with ShardWriter(aside, shard_schema(SIZE)) as writer:
                writer.write(rows)
            sha256_of(aside)
    return (perf_counter() - start) / sum(map(len, shards)) * 1e6

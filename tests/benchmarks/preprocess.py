"""Preprocessing on one core, side by side with fastai and with pydicom + PIL; on demand, no test.

    python tests/benchmarks/preprocess.py [--dicom DIR] [--files 60] [--rounds 5]

In: a phantom cohort made here, or the *.dcm below DIR; with `ICHSEARCH_REAL_DATA`, also the boxes of its `rsna_dcm` and
`ge_head`. Out: tables, and as the last line all their figures as one JSON object. Needs the extras `bench`, `codecs`.
"""

import os

os.environ |= dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "ARROW_NUM_THREADS"), "1"
)

import argparse
import importlib
import json
import platform
import statistics
import sys
import tempfile
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Final

import preprocess_codecs as codecs
import preprocess_ours as ours
import pydicom
from measuring import Figures, cpu_model, ratio, spread, timed, worker
from preprocess_tables import show

from ichsearch.dicom.reasons import RejectedError
from ichsearch.phantom import write_cohort

PATIENTS: Final = 8
SLICES: Final = 16
SCALING_REPEATS: Final = 4
"""Passes over the files in one scaling measurement: one takes only a few hundredths of a second."""
CODEC_FILES: Final = 16
PACKAGES: Final = ("ichsearch", "pydicom", "fastai", "kornia", "torch", "numpy", "pyarrow", "pillow")

MINE: Final = ("ours", "ours, a shard a study")
PEERS: Final = ("fastai", "pydicom + PIL")
CONTESTANTS: Final[dict[str, tuple[str, str, dict[str, bool]]]] = {
    "ours": ("preprocess_ours", "run", {"one_shard": True}),
    "ours, a shard a study": ("preprocess_ours", "run", {}),
    "fastai": ("preprocess_fastai", "run", {}),
    "pydicom + PIL": ("preprocess_pydicom", "run", {}),
}
"""Module, function and options of each; each runs in a process of its own."""


def main() -> None:
    """Measure everything, print it for a reader, and for a program on the last line."""
    options = _options()
    _silence()
    with tempfile.TemporaryDirectory(prefix="ichsearch-benchmark-") as name:
        figures = _measure(options, Path(name))
    show(figures)
    sys.stdout.write(json.dumps(figures, allow_nan=False) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Preprocessing on one core, side by side with its peers.")
    parser.add_argument("--dicom", type=Path, help="measure the *.dcm below this folder instead of a phantom cohort")
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _silence() -> None:
    """No warnings: each identifier of a real cohort would give one."""
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


def _measure(options: argparse.Namespace, work: Path) -> Figures:
    write_cohort(work / "cohort", PATIENTS, SLICES, seed=0)
    phantom = _dicom_below(work / "cohort", options.files)
    paths = _dicom_below(options.dicom, options.files) if options.dicom else phantom
    figures: Figures = {"setting": _setting(options, len(paths))}
    cores = sorted(os.sched_getaffinity(0))
    figures["speed"] = _speed(paths, work, options.rounds, cores[-1])
    figures["two_processes"] = _scaling(paths, work, options.rounds, cores)
    with worker(cores[-1], _silence) as pool:
        figures["stages_us"] = _stages(pool, paths, work, options.rounds)
        figures["compressed"] = _compressed(pool, paths[:CODEC_FILES], work, options.rounds)
    figures["boxes"] = {source: _agreement(files) for source, files in _box_sources(phantom, options).items()}
    return figures


def _dicom_below(folder: Path, number: int) -> list[Path]:
    """The first files by name (a phantom's names are hashes, so all its patients occur), now in the page cache."""
    paths = sorted(folder.rglob("*.dcm"))[:number]
    if not paths:
        raise SystemExit(f"{folder} must hold *.dcm files, but has none; check the path")
    for path in paths:
        path.read_bytes()
    return paths


def _setting(options: argparse.Namespace, files: int) -> Figures:
    return {
        "source": options.dicom.name if options.dicom else "phantom",
        "files": files,
        "rounds": options.rounds,
        "cpu": cpu_model(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _speed(paths: list[Path], work: Path, rounds: int, core: int) -> Figures:
    """Slices a second of ours and of the peers, the rounds interleaved after one that warms up."""
    rate: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        pools = {name: stack.enter_context(worker(core, _silence)) for name in CONTESTANTS}
        for number in range(rounds + 1):
            for name, pool in pools.items():
                slices, seconds = pool.submit(_run_timed, name, paths, work / f"{name}-{number}").result()
                assert slices == len(paths), f"{name} stored {slices} of {len(paths)} files"
                if number:
                    rate[name].append(slices / seconds)
    ratios = {f"{mine} / {peer}": ratio(rate[mine], rate[peer]) for mine, peer in product(MINE, PEERS)}
    return {"slices_per_s": {name: spread(values) for name, values in rate.items()}, "ratios": ratios}


def _run_timed(name: str, paths: list[Path], out: Path) -> tuple[int, float]:
    """In a worker: only the process of a peer imports what the peer needs."""
    module, function, options = CONTESTANTS[name]
    run = getattr(importlib.import_module(module), function)
    return timed(lambda: run(paths, out, **options))


def _stages(pool: ProcessPoolExecutor, paths: list[Path], work: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds a slice of each stage of ours."""
    measured = [pool.submit(ours.stages, paths, work / "stages").result() for _ in range(rounds + 1)][1:]
    return {stage: spread([times[stage] for times in measured]) for stage in measured[0]}


def _scaling(paths: list[Path], work: Path, rounds: int, cores: list[int]) -> Figures:
    """Throughput of two spawned processes, each with its core and its half of the files, over that of one of them."""
    if len(cores) < 2 or len(paths) < 2:
        return {"skipped": "needs two cores and two files"}
    half = len(paths) // 2
    jobs = [(paths[start : start + half], work / f"process-{start}", SCALING_REPEATS) for start in (0, half)]
    rate: defaultdict[str, list[float]] = defaultdict(list)
    with worker(cores[0], _silence) as first, worker(cores[1], _silence) as second:
        for number in range(rounds + 1):
            for name, pools in {"one": [first], "two": [first, second]}.items():
                slices, seconds = timed(lambda pools=pools: _run_at_once(pools, jobs))
                if number:
                    rate[name].append(slices / seconds)
    speeds = {name: spread(values) for name, values in rate.items()}
    return {"files_per_process": half, "slices_per_s": speeds, "ratio": ratio(rate["two"], rate["one"])}


def _run_at_once(pools: list[ProcessPoolExecutor], jobs: list[tuple[list[Path], Path, int]]) -> int:
    running = [pool.submit(ours.run_repeatedly, *job) for pool, job in zip(pools, jobs, strict=False)]
    return sum(future.result() for future in running)


def _compressed(pool: ProcessPoolExecutor, paths: list[Path], work: Path, rounds: int) -> dict[str, Figures]:
    measured = {
        name: pool.submit(codecs.time_syntax, paths, work / name, uid, rounds).result()
        for name, uid in codecs.SYNTAXES.items()
    }
    return {name: _codec_figures(times) for name, times in measured.items()}


def _codec_figures(times: codecs.CodecTimes) -> Figures:
    """Slices a second by reader, and ours over the decoder with the best median."""
    rate = {name: [times.files / seconds for seconds in values] for name, values in times.seconds.items()}
    figures: Figures = {
        "files": times.files,
        "identical_to_uncompressed": times.identical,
        "slices_per_s": {name: spread(values) for name, values in rate.items()},
        "skipped": times.skipped,
    }
    decoders = [name for name in rate if name not in codecs.OURS]
    if decoders:
        fastest = max(decoders, key=lambda name: statistics.median(rate[name]))
        ratios = {f"{name} / fastest": ratio(rate[name], rate[fastest]) for name in codecs.OURS if name in rate}
        figures |= {"fastest": fastest, "ratios": ratios}
    return figures


def _box_sources(phantom: list[Path], options: argparse.Namespace) -> dict[str, list[Path]]:
    sources = {"phantom": phantom}
    if options.dicom:
        sources[f"--dicom {options.dicom.name}"] = _dicom_below(options.dicom, options.files)
    if real := os.environ.get("ICHSEARCH_REAL_DATA"):
        sources |= {f"{name} (real)": _dicom_below(Path(real, name), options.files) for name in ("rsna_dcm", "ge_head")}
    return sources


def _agreement(paths: list[Path]) -> Figures:
    """Ours against fastai's square of the same HU: the farthest of the four edges, in pixels of the frame."""
    import preprocess_fastai as fastai  # noqa: PLC0415 - fastai must stay out of the spawned processes

    distances: list[int] = []
    rejected = 0
    for path in paths:
        try:
            hu = ours.hu_of(path)
        except RejectedError:
            rejected += 1
            continue
        edges = zip(ours.box(hu), fastai.box(hu), strict=True)
        distances.append(max(abs(mine - theirs) for mine, theirs in edges))
    within = sum(distance <= 1 for distance in distances)
    farthest = max(distances, default=0)
    return {"slices": len(distances), "rejected": rejected, "within_1_px": within, "farthest_px": farthest}


if __name__ == "__main__":
    main()

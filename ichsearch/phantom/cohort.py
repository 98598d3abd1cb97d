"""A whole cohort: draws its patients, writes their slices in parallel and the label table last.

In: numbers of patients and slices and a seed. Out: `out/dicom/ID_*.dcm` and `out/stage_2_train.csv`, the same bytes
for the same arguments, however many processes write them.
"""

import csv
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from ichsearch.errors import ConfigError
from ichsearch.labels import ANY, LABELS
from ichsearch.phantom.design import PLAIN, Design, Prevalence
from ichsearch.phantom.dicom_writer import Identity, write_slice
from ichsearch.phantom.mix import bleeding_patients
from ichsearch.phantom.patient import Patient, Purpose, RenderedSlice, draw_patient, generator, render
from ichsearch.phantom.scanner import Storage, stored_values

LABELS_CSV: Final = "stage_2_train.csv"
LABELS_ASIDE: Final = "stage_2_train.partial"
Labels = dict[str, bool]
Written = list[tuple[str, Labels]]
"""Identifier and labels of each slice of a patient, lowest slice first."""


@dataclass(frozen=True)
class CohortSummary:
    """What was written; bleeding and positive by the labels of the slices."""

    patients: int
    slices: int
    bleeding_patients: int
    positive_slices: int


def write_cohort(
    out: Path,
    patients: int,
    slices: int,
    seed: int,
    *,
    hard: bool = False,
    prevalence: Prevalence = "half",
    even_position: bool = False,
    matrix: int = 512,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CohortSummary:
    """Write `patients` series of `slices` slices of `matrix` x `matrix` pixels and their labels below `out`.

    `hard` makes haemorrhages subtle and adds what misleads: calcifications, old infarcts, partial volume of bone,
    streaks, motion, noise. With `prevalence="rsna"` slices and subtypes are positive as often as in the RSNA 2019 set
    (any 14.4 %) instead of in half of the patients. With `even_position` the scan covers only heights where every slice
    shows brain, and a slice's place in its series says nothing about its label.

    `workers` is the number of processes, by default one a CPU; they are spawned, so a script that calls this needs the
    usual `if __name__ == "__main__"`. `on_progress(done_patients, total)` is called after each patient. ConfigError if
    `out` is not empty or a number is out of range; OSError if the disk refuses. What fails or is stopped leaves `out`
    as it was.
    """
    processes = (os.cpu_count() or 1) if workers is None else workers
    _check(out, patients, slices, matrix, processes)
    cohort = draw_cohort(patients, slices, seed, matrix, Design(hard, prevalence, even_position))
    written: list[Written] = []
    with _all_or_nothing(out), _mapper(min(processes, patients)) as apply:
        for result in apply(partial(_write_patient, out / "dicom"), cohort):
            written.append(result)
            if on_progress is not None:
                on_progress(len(written), patients)
        _write_labels(out / LABELS_CSV, dict(row for result in written for row in result))
    positive = [sum(labels[ANY] for _, labels in result) for result in written]
    return CohortSummary(patients, patients * slices, sum(map(bool, positive)), sum(positive))


def _check(out: Path, patients: int, slices: int, matrix: int, workers: int) -> None:
    least = {"patients": (patients, 1), "slices": (slices, 1), "matrix": (matrix, 32), "workers": (workers, 1)}
    for name, (value, low) in least.items():
        if value < low:
            raise ConfigError(f"{name} >= {low} must hold, but got {name}={value}; give a larger number")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"the output folder must be new or empty, but {out} is not; name another or remove it")


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[None]:
    """Make the folders, and on any error remove what is in them again, `out` too if it was new."""
    was_there = out.exists()
    try:
        (out / "dicom").mkdir(parents=True)
        yield
    except BaseException:
        shutil.rmtree(out / "dicom", ignore_errors=True)
        with suppress(OSError):
            for name in (LABELS_CSV, LABELS_ASIDE):
                (out / name).unlink(missing_ok=True)
            if not was_there:
                out.rmdir()
        raise


def draw_cohort(patients: int, slices: int, seed: int, matrix: int, design: Design = PLAIN) -> list[Patient]:
    """Draw all patients without rendering any: as many bleed as the design says, both kinds of scanner occur."""
    rng = generator(seed, 0, Purpose.COHORT)
    bleeding = rng.permutation(patients) < bleeding_patients(design, patients)
    storages = rng.permutation(np.array(_storages(patients), dtype=object))
    shape = {"slices": slices, "matrix": matrix}
    return [
        draw_patient(seed, number, **shape, bleeding=bool(bleeds), storage=storage, design=design)
        for number, (bleeds, storage) in enumerate(zip(bleeding, storages, strict=True))
    ]


def _storages(patients: int) -> list[Storage]:
    """Half and half, and of every eight patients one of the first half wrapped."""
    wrapped = patients // 8
    unsigned = (patients + 1) // 2 - wrapped
    kinds = [Storage.WRAPPED_12] * wrapped + [Storage.UNSIGNED_12] * unsigned
    return kinds + [Storage.SIGNED_16] * (patients - len(kinds))


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Written]]]:
    """`map` in this process, or the same over `workers` spawned ones."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _write_patient(folder: Path, patient: Patient) -> Written:
    """Write the slices of one patient; in a worker process, so all it needs is in its arguments."""
    return [_write_one(folder, patient, index, image) for index, image in enumerate(render(patient))]


def _write_one(folder: Path, patient: Patient, index: int, image: RenderedSlice) -> tuple[str, Labels]:
    identity = _identity(patient, index)
    stored = stored_values(image.hu, patient.scanner)
    write_slice(folder / f"{identity.instance}.dcm", stored, identity, patient.stack, index, patient.scanner)
    subtypes = image.labels()
    return identity.instance, subtypes | {ANY: any(subtypes.values())}


def _identity(patient: Patient, index: int) -> Identity:
    instance = _opaque_id("slice", patient.seed, patient.number, index)
    person, study, series = (_opaque_id(kind, patient.seed, patient.number) for kind in ("patient", "study", "series"))
    return Identity(instance, person, study, series)


def _opaque_id(*parts: object) -> str:
    """`ID_` and nine hex digits, without meaning but always the same for the same parts."""
    return "ID_" + hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:9]


def _write_labels(path: Path, labels: dict[str, Labels]) -> None:
    """The label table in the form of the challenge, complete or not there at all."""
    aside = path.with_name(LABELS_ASIDE)
    with aside.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("ID", "Label"))
        for slice_id in sorted(labels):
            table.writerows((f"{slice_id}_{name}", int(labels[slice_id][name])) for name in LABELS)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)

"""Synthetic cohorts: form of the files, truth of the labels, and what the designs promise."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, binary_fill_holes, uniform_filter
from sklearn.metrics import roc_auc_score

from ichsearch.cli import main
from ichsearch.errors import ConfigError
from ichsearch.labels import LABELS, SUBTYPES
from ichsearch.phantom import CohortSummary, write_cohort
from ichsearch.phantom.cohort import draw_cohort
from ichsearch.phantom.design import Design
from ichsearch.phantom.haemorrhage import MIN_AREA_MM2
from ichsearch.phantom.patient import Patient, RenderedSlice, render
from ichsearch.phantom.scanner import PADDING, Storage, stored_values
from ichsearch.report.baseline_rules import position_baseline

PATIENTS, SLICES, MATRIX, SEED = 8, 10, 128, 5
HARD = Design(hard=True, prevalence="rsna", even_position=True)
RSNA_PERCENT = (0.41, 4.8, 3.5, 4.8, 6.3, 14.4)
PLAIN_MEANS = {
    "ID_25d7f8629": 19.990, "ID_4ae7c3e52": 443.249, "ID_6fa79f263": 586.891,
    "ID_72516836f": 152.458, "ID_c40f5a192": 367.120, "ID_f3392c67a": 472.248,
}  # fmt: skip
"""Stored values of a plain cohort, averaged: what a processor rounds otherwise does not show in them."""


@pytest.fixture(autouse=True)
def opaque_identifiers_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        yield


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CohortSummary]:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    return out, write_cohort(out, PATIENTS, SLICES, SEED, matrix=MATRIX, workers=1)


def read_all(out: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((out / "dicom").iterdir())]


def read_labels(out: Path) -> dict[str, dict[str, int]]:
    labels: dict[str, dict[str, int]] = {}
    with (out / "stage_2_train.csv").open() as file:
        for row in csv.DictReader(file):
            slice_id, name = row["ID"].rsplit("_", 1)
            labels.setdefault(slice_id, {})[name] = int(row["Label"])
    return labels


def hounsfield(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """HU by the formulae of the RSNA set, fix_pxrepr included."""
    stored, intercept = dataset.pixel_array.astype(np.int32), float(dataset.RescaleIntercept)
    if dataset.BitsStored == 12 and dataset.PixelRepresentation == 0 and intercept > -100:
        stored += 1000
        stored[stored >= 4096] -= 4096
        intercept = -1000
    return np.asarray(stored + intercept, np.float64)


def series(out: Path) -> dict[str, list[pydicom.Dataset]]:
    """Slices of each patient from the lowest to the highest along the slice normal."""
    patients: dict[str, list[pydicom.Dataset]] = {}
    for dataset in read_all(out):
        patients.setdefault(dataset.PatientID, []).append(dataset)
    return {name: sorted(slices, key=height_mm) for name, slices in patients.items()}


def height_mm(dataset: pydicom.Dataset) -> float:
    axes = np.array(dataset.ImageOrientationPatient, float)
    return float(np.cross(axes[:3], axes[3:]) @ np.array(dataset.ImagePositionPatient, float))


def tree_bytes(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    write_cohort(tmp_path / "one", 3, 2, 7, matrix=64, workers=1)
    write_cohort(tmp_path / "two", 3, 2, 7, matrix=64, workers=2, on_progress=lambda *done: progress.append(done))
    write_cohort(tmp_path / "other", 3, 2, 8, matrix=64, workers=1)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")
    assert not set(tree_bytes(tmp_path / "one").values()) & set(tree_bytes(tmp_path / "other").values())
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_so_do_the_same_options(tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", 3, 2, 7, hard=True, prevalence="rsna", even_position=True, matrix=64, workers=1)
    write_cohort(tmp_path / "two", 3, 2, 7, hard=True, prevalence="rsna", even_position=True, matrix=64, workers=2)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ["--patients", "1", "--slices", "2", "--seed", "3"]
    options = ["--hard", "--prevalence", "rsna", "--even-position"]
    monkeypatch.setattr("sys.argv", ["ichsearch", "phantom", str(tmp_path / "one"), *numbers, *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    write_cohort(tmp_path / "two", 1, 2, 3, hard=True, prevalence="rsna", even_position=True, workers=1)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_options_leave_the_plain_cohort_as_it_was(tmp_path: Path) -> None:
    write_cohort(tmp_path / "out", 3, 2, 7, matrix=64, workers=1)
    table = (tmp_path / "out" / "stage_2_train.csv").read_bytes()
    assert hashlib.sha256(table).hexdigest() == "b68c9d27f2eee8b397459e0f05587ffa07ba90dc25ea463ff5904c80bd0dd0d6"
    means = {dataset.SOPInstanceUID: dataset.pixel_array.mean() for dataset in read_all(tmp_path / "out")}
    assert means == pytest.approx(PLAIN_MEANS, abs=0.01)


def test_files_and_labels_have_the_form_of_the_challenge(cohort: tuple[Path, CohortSummary]) -> None:
    out, summary = cohort
    labels, datasets = read_labels(out), read_all(out)
    assert (out / "stage_2_train.csv").read_text().startswith("ID,Label\nID_")
    assert sorted(path.stem for path in (out / "dicom").iterdir()) == list(labels) == sorted(labels)
    assert all(tuple(row) == LABELS and row["any"] == max(row[name] for name in SUBTYPES) for row in labels.values())
    assert sum(row["any"] for row in labels.values()) == summary.positive_slices
    assert (summary.patients, summary.slices) == (PATIENTS, PATIENTS * SLICES) == (PATIENTS, len(datasets))
    bleeding = {d.PatientID for d in datasets if labels[d.SOPInstanceUID]["any"]}
    assert len(bleeding) == summary.bleeding_patients <= PATIENTS // 2
    assert all("InstanceNumber" not in d and d.Modality == "CT" and d.Rows == d.Columns == MATRIX for d in datasets)
    for slices in series(out).values():
        assert len({(d.StudyInstanceUID, d.SeriesInstanceUID) for d in slices}) == 1


def test_all_populations_occur_and_give_the_same_tissue(cohort: tuple[Path, CohortSummary]) -> None:
    kinds = set()
    for slices in series(cohort[0]).values():
        middle = slices[SLICES // 2]
        kinds.add((middle.BitsStored, middle.PixelRepresentation, int(middle.RescaleIntercept)))
        hu = hounsfield(middle)
        brain = hu[(hu > 0) & (hu < 80)]
        assert 25 <= np.median(brain) <= 40
        assert hu.max() > 900
        assert -1030 <= np.median(hu[hu > -1100][:MATRIX]) <= -970
        assert (middle.PixelRepresentation == 1) == (middle.pixel_array.min() == PADDING)
    assert kinds == {(12, 0, -1024), (12, 0, 0), (16, 1, -1024)}


@pytest.mark.parametrize("storage", [Storage.WRAPPED_12, Storage.UNSIGNED_12])
def test_stored_values_give_back_the_hounsfield_units(storage: Storage) -> None:
    scanner = replace(draw_cohort(1, 1, 0, 64)[0].scanner, storage=storage)
    hu = np.arange(-1000, 3071, dtype=np.float32).reshape(1, -1)
    stored = stored_values(hu, scanner).astype(np.int32)
    assert stored.min() >= 0 and stored.max() < 4096
    if storage is Storage.WRAPPED_12:
        x = stored + 1000
        x[x >= 4096] -= 4096
        np.testing.assert_array_equal(x - 1000, hu)
    else:
        np.testing.assert_array_equal(stored - 1024, hu)


def test_order_along_the_normal_is_anatomical_and_file_order_is_not(cohort: tuple[Path, CohortSummary]) -> None:
    def mean_step(slices: list[pydicom.Dataset]) -> float:
        clipped = [hounsfield(d).clip(-200, 300) for d in slices]
        return float(np.mean([np.abs(b - a).mean() for a, b in pairwise(clipped)]))

    for slices in series(cohort[0]).values():
        by_file = sorted(slices, key=lambda d: str(d.SOPInstanceUID))
        assert mean_step(slices) < 0.85 * mean_step(by_file)
        spacing = np.diff([height_mm(d) for d in slices])
        np.testing.assert_allclose(spacing, spacing[0], rtol=1e-3)
        assert 140 / SLICES * 0.8 < spacing[0] < 140 / SLICES * 1.2


def test_position_alone_tells_next_to_nothing() -> None:
    slices = 12
    heights, labels = [], []
    for patient in draw_cohort(1200, slices, 3, 64):
        for index in range(slices):
            height = patient.stack.head_height_mm(index)
            reach = [abs(height - h.height_mm) < 0.8 * h.half_height_mm for h in patient.haemorrhages]
            heights.append(index)
            labels.append(any(reach))
    position, label = np.array(heights).reshape(2, -1), np.array(labels).reshape(2, -1)
    rate = np.array([label[0][position[0] == index].mean() for index in range(slices)])
    assert 0.1 < label.mean() < 0.35
    assert abs(roc_auc_score(label[1], rate[position[1]]) - 0.5) < 0.04


def bleeding_slices(patients: int, subtypes: set[str]) -> Iterator[tuple[Patient, RenderedSlice]]:
    for patient in draw_cohort(patients, 8, 11, 128):
        if subtypes & {h.subtype for h in patient.haemorrhages}:
            yield from ((patient, image) for image in render(patient))


def test_labels_are_true_to_the_pixels() -> None:
    seen: set[str] = set()
    for _, image in bleeding_slices(60, set(SUBTYPES)):
        for subtype, present in image.labels().items():
            part = image.blood.get(subtype)
            assert present == (part is not None and float(part.sum()) * image.pixel_mm**2 >= MIN_AREA_MM2)
            if present and part is not None and (part > 0.98).sum() >= 9:
                seen.add(subtype)
                assert 50 <= np.median(image.hu[part > 0.98]) <= 80
    assert seen == set(SUBTYPES)


def test_patients_without_blood_have_negative_slices() -> None:
    healthy = next(patient for patient in draw_cohort(4, 3, 2, 64) if not patient.haemorrhages)
    assert not any(any(image.labels().values()) for image in render(healthy))


def label_table(design: Design, patients: int, slices: int) -> NDArray[np.float64]:
    """Labels (patients, slices, 6) of a cohort; who cannot bleed is not rendered."""
    table = np.zeros((patients, slices, len(LABELS)))
    for patient in draw_cohort(patients, slices, 9, 64, design):
        for index, image in enumerate(render(patient) if patient.haemorrhages else ()):
            found = image.labels()
            table[patient.number, index] = [*found.values(), any(found.values())]
    return table


@pytest.fixture(scope="module")
def hard_labels() -> NDArray[np.float64]:
    return label_table(HARD, 500, 6)


def assert_as_in_rsna(table: NDArray[np.float64]) -> None:
    by_patient = 100 * table.mean(axis=1)
    error = by_patient.std(axis=0) / np.sqrt(len(table))
    assert (np.abs(by_patient.mean(axis=0) - RSNA_PERCENT) < 3 * error).all(), by_patient.mean(axis=0)
    assert table[..., :5].sum() / table[..., 5].sum() == pytest.approx(19.81 / 14.4, abs=0.1)


def position_auroc(table: NDArray[np.float64]) -> float:
    """Of the rule that knows the position alone, learnt on one half of the patients and judged on the other."""
    patients, slices, _ = table.shape
    position = np.tile(np.linspace(0, 1, slices), patients // 2)
    known, asked = table[: patients // 2].reshape(-1, 6), table[patients // 2 :].reshape(-1, 6)
    return float(roc_auc_score(asked[:, 5], position_baseline(position, known, position)[:, 5]))


def test_slices_are_as_often_positive_as_in_rsna(hard_labels: NDArray[np.float64]) -> None:
    assert_as_in_rsna(hard_labels)


def test_an_even_position_tells_nothing(hard_labels: NDArray[np.float64]) -> None:
    assert 0.45 <= position_auroc(hard_labels) <= 0.55
    rate = hard_labels[..., 5].mean(axis=0)
    error = np.sqrt(rate.mean() * (1 - rate.mean()) / len(hard_labels))
    assert (np.abs(rate - rate.mean()) < 3 * error).all(), rate


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_every_design_keeps_its_promises(hard: bool, even: bool) -> None:
    assert_as_in_rsna(label_table(Design(hard, "rsna", even), 2000, 10))
    if even:
        assert 0.45 <= position_auroc(label_table(Design(hard, "half", even), 2000, 10)) <= 0.55


def brain_of(image: RenderedSlice) -> NDArray[np.float64]:
    """HU, smoothed over three pixels, of what lies well inside the skull."""
    bone = image.hu > 250
    inside = binary_erosion(binary_fill_holes(bone) & ~bone, iterations=round(4 / image.pixel_mm))
    return np.asarray(uniform_filter(image.hu, 3)[inside], np.float64)


def single_number_aurocs(design: Design) -> tuple[float, float]:
    """AUROC of the brain's highest density and of its area between 60 and 90 HU."""
    slices = [image for patient in draw_cohort(60, 5, 4, 128, design) for image in render(patient)]
    truth = [any(image.labels().values()) for image in slices]
    brains = [brain_of(image) for image in slices]
    area = [((brain > 60) & (brain < 90)).sum() for brain in brains]
    return roc_auc_score(truth, [brain.max(initial=0) for brain in brains]), roc_auc_score(truth, area)


def test_single_numbers_tell_less_of_hard_slices() -> None:
    plain, hard = single_number_aurocs(Design(even_position=True)), single_number_aurocs(Design(True, "half", True))
    assert max(hard) < 0.75
    assert all(hard_one < plain_one - 0.1 for hard_one, plain_one in zip(hard, plain, strict=True))


def test_who_does_not_bleed_misleads_as_much() -> None:
    patients = draw_cohort(400, 8, 6, 64, Design(hard=True))
    both = [[p.decoys for p in patients if bool(p.haemorrhages) is bleeds and p.decoys] for bleeds in (True, False)]
    assert [len(decoys) for decoys in both] == [200, 200]
    for amount in ("calcifications", "infarcts"):
        bleeding, healthy = (np.mean([len(getattr(decoys, amount)) for decoys in group]) for group in both)
        assert healthy > 0.4
        assert healthy == pytest.approx(bleeding, rel=0.25)


def test_calcifications_show_in_slices_without_blood() -> None:
    healthy = [p for p in draw_cohort(16, 8, 2, 128, Design(hard=True, even_position=True)) if not p.haemorrhages]
    spotted = [any((brain_of(image) > 90).any() for image in render(patient)) for patient in healthy]
    assert len(spotted) == 8 and sum(spotted) >= 5


def test_an_unknown_prevalence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prevalence must be half or rsna, but got 'all'"):
        write_cohort(tmp_path / "out", 1, 1, 0, prevalence="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patients", "slices", "workers", "message"),
    [(0, 4, 1, "patients >= 1.*patients=0"), (4, 0, 1, "slices >= 1.*slices=0"), (4, 4, 0, "workers >= 1.*workers=0")],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, patients: int, slices: int, workers: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_cohort(tmp_path / "out", patients, slices, 0, workers=workers)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="new or empty"):
        write_cohort(tmp_path, 1, 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class Stopped(BaseException):
    """As KeyboardInterrupt: no Exception."""


def stop(done: int, total: int) -> None:  # noqa: ARG001 - called as every `on_progress`
    raise Stopped


@pytest.mark.parametrize(("existed", "workers"), [(False, 1), (True, 1), (True, 2)])
def test_a_cohort_that_is_stopped_leaves_nothing_and_can_be_written_again(
    tmp_path: Path, existed: bool, workers: int
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    with pytest.raises(Stopped):
        write_cohort(out, 4, 2, 0, matrix=64, workers=workers, on_progress=stop)

    assert list(tmp_path.rglob("*")) == ([out] if existed else [])
    write_cohort(out, 1, 1, 0, matrix=64, workers=1)


def test_a_label_table_that_cannot_be_written_takes_the_slices_with_it(tmp_path: Path) -> None:
    def block(done: int, total: int) -> None:
        if done == total:
            (tmp_path / "out" / "stage_2_train.partial").mkdir()

    with pytest.raises(IsADirectoryError):
        write_cohort(tmp_path / "out", 2, 1, 0, matrix=64, workers=1, on_progress=block)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage_2_train.partial"]


@pytest.mark.timeout(60)
def test_ctrl_c_leaves_no_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from ichsearch.cli import main; main()", "phantom", "cohort"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as driver:
        while not list(tmp_path.glob("cohort/dicom/*.dcm")):
            assert driver.poll() is None
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
        driver.communicate()

    assert driver.returncode == 130
    assert not list(tmp_path.iterdir())

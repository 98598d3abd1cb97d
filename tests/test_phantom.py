"""Synthetic cohorts: form of the files, truth of the labels, and that a slice's position tells nothing."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ichsearch.errors import ConfigError
from ichsearch.labels import LABELS, SUBTYPES
from ichsearch.phantom import CohortSummary, write_cohort
from ichsearch.phantom.cohort import draw_cohort
from ichsearch.phantom.haemorrhage import MIN_AREA_MM2
from ichsearch.phantom.patient import Patient, RenderedSlice, render
from ichsearch.phantom.scanner import PADDING, Storage, stored_values

PATIENTS, SLICES, MATRIX, SEED = 8, 10, 128, 5


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

"""Raw DICOM predicted: as from its shards, every file accounted for, files whole or absent, nobody named."""

import csv
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from dicom_files import head_hu, stored_12_bit, write_ct
from PIL import Image
from test_cli import assert_refused, ichsearch
from test_privacy import CANARY, canary_dataset, files_with_canary
from trained_runs import write_trained_run

from ichsearch.data.cache import open_slices
from ichsearch.deploy import series as series_module
from ichsearch.deploy.models import Predictor, load_predictor, series_neighbours
from ichsearch.deploy.outcome import Outcome, Targets
from ichsearch.deploy.predict import predict_folder
from ichsearch.deploy.prediction_files import study_probabilities
from ichsearch.deploy.series import open_dicom_folder
from ichsearch.deploy.smoothing import smoothed
from ichsearch.errors import ConfigError, DataError
from ichsearch.labels import LABELS
from ichsearch.search.run_folder import RunFolder
from ichsearch.shards.identity import home_folder, load_key
from ichsearch.shards.preprocess import preprocess

CPU = torch.device("cpu")
STUDIES = {"A": (5, 4), "B": (3,), "C": (1,)}
"""How many slices each of their series has."""
GOOD = 13
Run = tuple[RunFolder, Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_trained_run(tmp_path_factory.mktemp("trained"))


def write_slice(folder: Path, study: str, series: int, index: int, **changes: Any) -> Path:
    name = f"ID_{study}{series}{index}"
    place = {"StudyInstanceUID": f"ID_{study}", "SeriesInstanceUID": f"ID_{study}{series}", "SOPInstanceUID": name}
    seed, centre = ord(study) * 100 + series * 10 + index, (60.0, 68.0 - 2 * index)
    stored = stored_12_bit(head_hu(128, seed, centre=centre))
    where = {"ImagePositionPatient": [-125.0, -125.0, -5.0 * index], "PatientID": f"ID_{study}"}
    return write_ct(folder / f"{seed:x}.dcm", stored, place | where | changes)


def write_good(folder: Path) -> None:
    for study, lengths in STUDIES.items():
        for series, length in enumerate(lengths):
            for index in range(length):
                write_slice(folder / study, study, series, index)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good slices, two copies of them (one says that it is of another series), and files of no use."""
    folder = tmp_path_factory.mktemp("dicom")
    write_good(folder)
    (folder / "copies").mkdir()
    shutil.copyfile(next((folder / "A").iterdir()), folder / "copies" / "same.dcm")
    write_slice(folder / "copies", "B", 0, 1, SeriesInstanceUID="ID_Z", StudyInstanceUID="ID_Z")
    (folder / "notes.txt").write_text("no DICOM")
    cut = write_slice(folder / "cut", "B", 0, 7)
    cut.write_bytes(cut.read_bytes()[:-100])
    for series in (8, 9):
        write_slice(folder / "conflict", "B", series, 0, SOPInstanceUID="ID_conflict")
    return folder


REASONS = Counter({"conflicting_duplicate": 2, "not_dicom": 1, "truncated_pixels": 1})


def predicted(run: Run, dicom: Path, folder: Path, trial: str, **options: Any) -> tuple[pd.DataFrame, Outcome]:
    predictor = load_predictor(run[0], trial, ensemble=False, device=CPU)
    smooth = options.pop("smooth", False)
    outcome = predict_folder(predictor, str(dicom), Targets(folder / "all.csv", **options), smooth=smooth)
    return pd.read_csv(folder / "all.csv"), outcome


def values(table: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    return table.filter(like="probability_").to_numpy(np.float64)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("trial", ["0001", "0002"])  # windows; neighbours, which are found across shards, too
def test_dicom_is_predicted_as_from_its_shards(run: Run, dicom: Path, tmp_path: Path, trial: str) -> None:
    table, outcome = predicted(run, dicom, tmp_path, trial)
    manifest = preprocess(dicom, tmp_path / "shards", size=64)
    slices = open_slices(tmp_path / "shards", 64)
    predictor, key = load_predictor(run[0], trial, ensemble=False, device=CPU), load_key(home_folder())
    expected = predictor.predict(np.asarray(slices.hu), slices.neighbours)
    rows = pd.Index(slices.table["slice"]).get_indexer([key.hash("slice", uid) for uid in table["slice"]])
    assert sorted(rows) == list(range(GOOD))
    assert np.abs(values(table) - expected[rows]).max() < 1e-6
    assert list(table["number"]) == list(range(1, GOOD + 1))
    assert [key.hash("series", uid) for uid in table["series"]] == list(slices.table["series"].iloc[rows])
    assert np.allclose(table["position_mm"], slices.table["position_mm"].iloc[rows], atol=0.01)
    counts = manifest.counts
    found = (outcome.files, outcome.slices, outcome.duplicates, len(outcome.refused), dict(outcome.reasons))
    assert found == (counts.found, counts.ok, counts.duplicate, counts.quarantined, counts.reasons)


def test_every_file_is_accounted_for(run: Run, dicom: Path, tmp_path: Path) -> None:
    _, outcome = predicted(run, dicom, tmp_path, "0001")
    assert (outcome.files, outcome.slices, outcome.duplicates, outcome.studies) == (GOOD + 6, GOOD, 2, 3)
    assert outcome.reasons == REASONS
    rows = pd.read_csv(tmp_path / "all.quarantine.csv")
    assert Counter(rows["reason"]) == REASONS
    names = {load_key(home_folder()).hash("path", str(path)) for path in dicom.rglob("*")}
    assert set(rows["file"]) <= names


def test_a_folder_without_bad_files_leaves_no_list_of_them(run: Run, tmp_path: Path) -> None:
    write_slice(tmp_path / "dicom", "A", 0, 0)
    (tmp_path / "all.quarantine.csv").write_text("of an earlier prediction")
    predicted(run, tmp_path / "dicom", tmp_path, "0001")
    assert {path.name for path in tmp_path.iterdir()} == {"dicom", "all.csv", "all.studies.csv"}


def test_a_study_is_the_mean_of_its_three_highest_slices(run: Run, dicom: Path, tmp_path: Path) -> None:
    table, _ = predicted(run, dicom, tmp_path, "0001")
    studies = pd.read_csv(tmp_path / "all.studies.csv")
    assert dict(zip(studies["study"], studies["slices"], strict=True)) == {"ID_A": 9, "ID_B": 3, "ID_C": 1}
    for row, study in zip(values(studies), studies["study"], strict=True):
        own = values(table[table["study"] == study])
        highest = [np.mean(sorted(column)[-3:]) for column in own.T]
        assert np.allclose(row, highest, atol=1e-6)


def test_kaggles_form_has_six_rows_a_slice_each_slice_once(run: Run, dicom: Path, tmp_path: Path) -> None:
    table, outcome = predicted(run, dicom, tmp_path, "0001", kaggle=tmp_path / "submission.csv")
    with (tmp_path / "submission.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["ID", "Label"]
    unreadable = {"ID_B07", "ID_conflict"}
    assert outcome.guessed == len(unreadable)
    said = {name: float(value) for name, value in rows}
    assert len(said) == len(rows) == 6 * (GOOD + len(unreadable))
    for slices in (rows[start : start + 6] for start in range(0, len(rows), 6)):
        uid = slices[0][0].removesuffix("_epidural")
        assert [name for name, _ in slices] == [f"{uid}_{label}" for label in LABELS]
    assert set(said) == {f"{uid}_{label}" for uid in {*table["slice"], *unreadable} for label in LABELS}
    for uid, row in zip(table["slice"], values(table), strict=True):
        assert np.allclose([said[f"{uid}_{label}"] for label in LABELS], row, atol=1e-7)
    validation = pd.read_parquet(run[0].trial("0001") / "predictions.parquet")
    for label in LABELS:
        assert said[f"ID_B07_{label}"] == pytest.approx(validation[f"label_{label}"].mean())


def test_overlays_show_the_slices_that_decide_a_study(run: Run, dicom: Path, tmp_path: Path) -> None:
    table, outcome = predicted(run, dicom, tmp_path, "0002", overlays=tmp_path / "overlays")
    highest = table.sort_values("probability_any").groupby("study").tail(3)["number"]
    assert {path.name for path in (tmp_path / "overlays").iterdir()} == {f"{number}.png" for number in highest}
    assert outcome.drawn == len(highest) == 7
    number = int(table.loc[table["probability_any"].idxmax(), "number"])
    picture = np.asarray(Image.open(tmp_path / "overlays" / f"{number}.png"))
    left, right = picture[:512, :512], picture[:512, 512:]
    assert (left[..., 0] == left[..., 2]).all()
    assert (np.abs(right.astype(int) - left).max(axis=-1) > 30).mean() > 0.01  # there is heat
    assert picture[512:].max() == 255  # there is a caption


def test_smoothing_averages_over_the_series(run: Run, dicom: Path, tmp_path: Path) -> None:
    plain, _ = predicted(run, dicom, tmp_path, "0001")
    table, _ = predicted(run, dicom, tmp_path, "0001", smooth=True)
    for _, rows in plain.groupby("series"):
        own = values(rows)
        padded = np.concatenate([own[:1], own, own[-1:]])
        expected = 0.2 * padded[:-2] + 0.6 * own + 0.2 * padded[2:]
        assert np.allclose(values(table.loc[rows.index]), expected, atol=1e-6)
    assert np.abs(values(table) - values(plain)).max() > 1e-4
    one = np.array([[0.3]])
    assert smoothed(one, series_neighbours(1)) == pytest.approx(one)


def test_what_cannot_be_done_is_refused_before_any_work(run: Run, dicom: Path, tmp_path: Path) -> None:
    predictor = load_predictor(run[0], "0001", ensemble=False, device=CPU)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    for targets, match in (
        (Targets(tmp_path / "all.csv", overlays=tmp_path / "full"), "--overlays must be a new or empty folder"),
        (Targets(tmp_path / "all.csv", kaggle=tmp_path / "all.csv"), "two files"),
        (Targets(tmp_path / "new" / "all.csv", overlays=tmp_path / "new"), "a folder of its own"),
        (Targets(tmp_path / "full"), "--out must be a file"),
        (Targets(Path("s3://bucket/all.csv")), "on a disk"),
    ):
        with pytest.raises(ConfigError, match=match):
            predict_folder(predictor, str(dicom), targets)
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def test_kaggles_form_needs_all_six_labels(tmp_path: Path, dicom: Path) -> None:
    folder, _ = write_trained_run(tmp_path, task="any", trials=("0001",))
    predictor = load_predictor(folder, "0001", ensemble=False, device=CPU)
    with pytest.raises(ConfigError, match="six labels, but this model knows any"):
        predict_folder(predictor, str(dicom), Targets(tmp_path / "all.csv", kaggle=tmp_path / "submission.csv"))
    predict_folder(predictor, str(dicom), Targets(tmp_path / "all.csv"))
    assert list(pd.read_csv(tmp_path / "all.csv").filter(like="probability_")) == ["probability_any"]


def test_a_folder_without_slices_ends_with_an_error_and_no_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    cut = write_slice(tmp_path / "dicom", "A", 0, 0)
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "dicom" / "notes.txt").write_text("no DICOM")
    with pytest.raises(DataError, match="1 not_dicom, 1 truncated_pixels"):
        predicted(
            run,
            tmp_path / "dicom",
            tmp_path,
            "0001",
            kaggle=tmp_path / "submission.csv",
            overlays=tmp_path / "overlays",
        )
    assert {path.name for path in tmp_path.iterdir()} == {"dicom"}


def test_nobody_is_named_but_by_uid_and_only_the_owner_may_read(run: Run, tmp_path: Path) -> None:
    source = tmp_path / f"{CANARY}^Anna"
    for index, uid in enumerate(["=cmd()", "../../etc/x", "1.2.3"]):
        path = write_slice(source, "A", 0, index, SOPInstanceUID=uid, PatientID=CANARY)
        ds = pydicom.dcmread(path)
        canary_dataset(ds)
        ds.save_as(path)
    (source / f"{CANARY}.txt").write_text(CANARY)
    target = tmp_path / "target"
    outputs = {"kaggle": target / "submission.csv", "overlays": target / "overlays"}
    table, _ = predicted(run, source, target, "0001", **outputs)
    assert files_with_canary(target) == []
    assert set(table["slice"]) == {"'=cmd()", "../../etc/x", "1.2.3"}
    assert "\n'=cmd()_epidural," in (target / "submission.csv").read_text()
    for name in ("all.csv", "all.studies.csv", "submission.csv"):
        assert stat.S_IMODE((target / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((target / "overlays").stat().st_mode) == 0o700
    assert {path.suffix for path in (target / "overlays").iterdir()} == {".png"}
    assert {path.stem for path in (target / "overlays").iterdir()} == {"1", "2", "3"}


def test_series_are_decoded_one_after_the_other(dicom: Path, tmp_path: Path) -> None:
    """A series that is asked for is read then, and not before: so memory does not grow with the folder."""
    folder = tmp_path / "dicom"
    shutil.copytree(dicom, folder)
    decoded = open_dicom_folder(str(folder)).series(64, "series")
    assert [len(next(decoded).slices) for _ in range(2)] == [5, 4]
    for path in folder.rglob("*.dcm"):
        path.unlink()
    rest = list(decoded)
    assert sum(len(one.slices) for one in rest) == 0
    assert {refused.reason for one in rest for refused in one.refused} == {"unreadable"}


def test_a_long_series_is_the_same_in_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_good(tmp_path)
    whole = list(open_dicom_folder(str(tmp_path)).series(64, "series"))
    monkeypatch.setattr(series_module, "FRAMES_BYTES", 2 * 2 * 128 * 128)  # two frames, and A has five
    decoded_twice = list(open_dicom_folder(str(tmp_path)).series(64, "series"))
    assert [one.slices for one in decoded_twice] == [one.slices for one in whole]
    assert all(np.array_equal(one.hu, other.hu) for one, other in zip(decoded_twice, whole, strict=True))


def test_of_copies_the_first_file_counts_whatever_it_says_of_its_series(tmp_path: Path) -> None:
    write_slice(tmp_path / "b", "A", 0, 0)
    write_slice(tmp_path / "a", "A", 0, 0, SeriesInstanceUID="ID_Z", StudyInstanceUID="ID_Z")
    assert [one.series for one in open_dicom_folder(str(tmp_path)).series(64, "series")] == ["ID_Z"]


def test_short_series_are_predicted_together(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_good(tmp_path / "dicom")
    asked: list[int] = []
    own = Predictor.predict

    def noted(predictor: Predictor, hu: Any, neighbours: Any = None) -> Any:
        asked.append(len(hu))
        return own(predictor, hu, neighbours)

    monkeypatch.setattr(Predictor, "predict", noted)
    together, _ = predicted(run, tmp_path / "dicom", tmp_path, "0002")
    assert asked == [GOOD]
    monkeypatch.setattr("ichsearch.deploy.predict.TOGETHER", 1)
    apart, _ = predicted(run, tmp_path / "dicom", tmp_path, "0002")
    assert asked == [GOOD, 5, 4, 3, 1]
    assert np.allclose(values(together), values(apart), atol=1e-6)


@pytest.fixture(scope="module")
def done(run: Run, dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """What the verb leaves and says."""
    folder = tmp_path_factory.mktemp("verb")
    ended = ichsearch(
        "predict", run[0].root, dicom, "--trial", "0001", "--smooth", "--data", run[1], "--out", folder / "p.csv",
        "--kaggle", folder / "submission.csv", "--overlays", folder / "overlays",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    yield folder, ended.stdout


def test_the_verb_writes_all_and_says_what_became_of_it(done: tuple[Path, str]) -> None:
    folder, text = done
    names = {"p.csv", "p.studies.csv", "p.quarantine.csv", "submission.csv", "overlays"}
    assert {path.name for path in folder.iterdir()} == names
    assert "19 files = 13 slices + 2 duplicates + 4 quarantined" in text
    assert "auroc_any better by " in text
    assert "2 cannot be read" in text
    assert "not for clinical use" in text


def test_the_verb_refuses_a_folder_that_is_none(run: Run, tmp_path: Path) -> None:
    ended = ichsearch("predict", run[0].root, tmp_path / "nowhere", "--trial", "0001", "--out", tmp_path / "p.csv")
    assert_refused(ended, 3, "DICOM_DIR")


def test_study_probabilities_of_fewer_than_three_slices_are_their_mean() -> None:
    assert study_probabilities(np.array([[0.2], [0.4]])) == pytest.approx([0.3])

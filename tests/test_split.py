"""Splits by patient: the same for everybody who has the images, never one image on two sides."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from slice_sets import make_slices

from ichsearch.data.split import FOLDS, Split, make_split, open_split
from ichsearch.errors import ConfigError, DataError
from ichsearch.labels import ANY, LABELS


@pytest.fixture
def table() -> pd.DataFrame:
    return make_slices(patients=30, slices=4, size=16).table


def fold_of_images(table: pd.DataFrame, seed: int = 0) -> dict[str, int]:
    folds = make_split(table, "data", seed).fold_of(table)
    return dict(zip(table["stored_hash"], folds.tolist(), strict=True))


def only_positive(table: pd.DataFrame, label: str, patients: list[str]) -> None:
    """Make `label` positive in the first slice of these patients and nowhere else."""
    table[label] = 0
    first = table["series_index"] == 0
    table.loc[table["patient"].isin(patients) & first, label] = 1


def patients_of(table: pd.DataFrame) -> list[str]:
    names: list[str] = table["patient"].unique().tolist()
    return names


def test_a_patient_has_one_fold_and_folds_are_of_about_one_size(table: pd.DataFrame) -> None:
    split = make_split(table, "data", 0)
    assert sorted(split.patients) == sorted(patients_of(table))
    sizes = np.bincount(list(split.patients.values()), minlength=FOLDS)
    assert len(sizes) == FOLDS
    assert 5 <= sizes.min() <= sizes.max() <= 7
    assert split.fold_of(table).tolist() == [split.patients[name] for name in table["patient"]]


def test_the_split_is_the_same_each_time_and_another_for_another_seed(table: pd.DataFrame) -> None:
    assert make_split(table, "data", 0) == make_split(table, "data", 0)
    assert make_split(table, "data", 0).patients != make_split(table, "data", 1).patients


@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_of_the_rows_does_not_matter(table: pd.DataFrame, seed: int) -> None:
    shuffled = table.sample(frac=1, random_state=5)
    assert fold_of_images(shuffled, seed) == fold_of_images(table, seed)


def test_the_names_of_the_patients_do_not_matter(table: pd.DataFrame) -> None:
    names = patients_of(table)
    renamed = table.assign(patient=table["patient"].map(dict(zip(names, reversed(names), strict=True))))
    assert fold_of_images(renamed) == fold_of_images(table)


def test_patients_that_share_an_image_share_a_fold(table: pd.DataFrame) -> None:
    names = patients_of(table)
    for one, other in [(0, 1), (1, 2), (20, 2), (7, 29)]:  # 0, 1, 2 and 20 are linked by a chain
        rows = table.index[table["patient"] == names[one]], table.index[table["patient"] == names[other]]
        table.loc[rows[0][one % 3], "stored_hash"] = table.loc[rows[1][3], "stored_hash"]
    patients = make_split(table, "data", 0).patients
    assert len({patients[names[number]] for number in (0, 1, 2, 20)}) == 1
    assert patients[names[7]] == patients[names[29]]


@pytest.mark.parametrize("seed", range(4))
def test_each_fold_gets_one_of_five_groups_with_a_rare_label(table: pd.DataFrame, seed: int) -> None:
    rare = patients_of(table)[3:28:5]
    only_positive(table, "epidural", rare)
    split = make_split(table, "data", seed)
    assert sorted(split.patients[name] for name in rare) == [0, 1, 2, 3, 4]
    assert "epidural" not in split.unreliable


def test_a_rare_label_is_spread_even_when_all_patients_have_a_common_one(table: pd.DataFrame) -> None:
    rare, rarer = patients_of(table)[:10], patients_of(table)[8:13]
    only_positive(table, "subdural", rare)
    only_positive(table, "epidural", rarer)
    split = make_split(table, "data", 0)
    assert sorted(split.patients[name] for name in rarer) == [0, 1, 2, 3, 4]
    assert np.bincount([split.patients[name] for name in rare], minlength=FOLDS).max() <= 3


def test_labels_of_fewer_than_five_groups_are_named_with_their_count(table: pd.DataFrame) -> None:
    only_positive(table, "epidural", patients_of(table)[:4])
    only_positive(table, "subdural", [])
    only_positive(table, "subarachnoid", patients_of(table)[:5])
    assert make_split(table, "data", 0).unreliable == {"epidural": 4, "subdural": 0}


def test_unlabelled_patients_get_folds_too() -> None:
    table = make_slices(patients=30, slices=4, size=16, unlabelled_patients=10).table
    split = make_split(table, "data", 0)
    assert len(split.patients) == 30
    assert not set(split.unreliable) & {ANY}


def test_fewer_groups_than_folds_are_a_data_error() -> None:
    table = make_slices(patients=4, slices=4, size=16).table
    with pytest.raises(DataError, match="at least 5 patients, but the data have 4"):
        make_split(table, "data", 0)


def test_patients_of_one_group_do_not_count_as_more(table: pd.DataFrame) -> None:
    table = table[table["patient"].isin(patients_of(table)[:5])].reset_index(drop=True)
    table.loc[0, "stored_hash"] = table.loc[len(table) - 1, "stored_hash"]
    with pytest.raises(DataError, match="but the data have 4"):
        make_split(table, "data", 0)


@pytest.mark.parametrize("value", [0, 1])
def test_a_fold_with_slices_of_one_kind_is_a_data_error(table: pd.DataFrame, value: int) -> None:
    for label in LABELS:
        table[label] = value
    with pytest.raises(DataError, match="with and without haemorrhage"):
        make_split(table, "data", 0)


def test_a_fold_without_labels_is_a_data_error(table: pd.DataFrame) -> None:
    table = table.astype(dict.fromkeys(LABELS, "float64"))
    table.loc[table["patient"] != patients_of(table)[0], list(LABELS)] = np.nan
    with pytest.raises(DataError, match="with and without haemorrhage"):
        make_split(table, "data", 0)


def test_a_frozen_split_is_used_again(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = open_split(path, table, "data", 3)
    content = path.read_bytes()
    assert open_split(path, table.iloc[:0], "data", 3) == split  # nothing is dealt anew
    assert path.read_bytes() == content


@pytest.mark.parametrize(("fingerprint", "seed"), [("other data", 3), ("data", 4)])
def test_a_frozen_split_of_other_data_or_seed_is_refused(
    table: pd.DataFrame, tmp_path: Path, fingerprint: str, seed: int
) -> None:
    path = tmp_path / "split.json"
    open_split(path, table, "data", 3)
    with pytest.raises(ConfigError, match=r"split\.json splits other data or has another seed"):
        open_split(path, table, fingerprint, seed)


def test_a_damaged_split_is_a_data_error(table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    open_split(path, table, "data", 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"split\.json"):
        open_split(path, table, "data", 3)


def test_a_patient_without_a_fold_is_refused(table: pd.DataFrame) -> None:
    split = make_split(table, "data", 0)
    table.loc[5, "patient"] = "somebody else"
    with pytest.raises(DataError, match="every patient must have a fold"):
        split.fold_of(table)


def test_an_image_in_two_folds_is_refused(table: pd.DataFrame) -> None:
    split = make_split(table, "data", 0)
    fold = split.fold_of(table)
    here, there = int(np.flatnonzero(fold == 1)[0]), int(np.flatnonzero(fold == 4)[0])
    table.loc[here, "stored_hash"] = table.loc[there, "stored_hash"]
    with pytest.raises(DataError, match="an image must stand in one fold only"):
        split.fold_of(table)


def test_the_split_survives_its_file(table: pd.DataFrame) -> None:
    split = make_split(table, "data", 0)
    assert Split.model_validate_json(split.model_dump_json()) == split


def test_a_split_by_slice_deals_images_and_says_that_it_leaks(table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[1, "stored_hash"] = table.loc[0, "stored_hash"]
    split = open_split(tmp_path / "split.json", table, "data", 0, "slice")
    folds = split.fold_of(table)
    assert split.leaks
    assert not make_split(table, "data", 0).leaks
    assert folds[0] == folds[1], "the same image stands on one side"
    assert pd.Series(folds).groupby(table["patient"].to_numpy()).nunique().max() > 1
    assert np.bincount(folds, minlength=FOLDS).min() > 0
    assert np.array_equal(split.fold_of(table.iloc[::-1])[::-1], folds)
    assert open_split(tmp_path / "split.json", table, "data", 0, "slice") == split
    with pytest.raises(ConfigError, match="another seed or unit"):
        open_split(tmp_path / "split.json", table, "data", 0)


def test_a_split_by_patient_is_written_as_it_always_was(table: pd.DataFrame) -> None:
    assert list(make_split(table, "data", 0).as_json()) == ["seed", "fingerprint", "patients", "unreliable"]

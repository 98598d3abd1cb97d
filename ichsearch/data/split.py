"""Which patients train, validate and test: five folds that depend on the images alone.

In: the table of a `SliceSet`. Out: a `Split`, frozen in `split.json`. A split by slice leaks: slices of one patient
stand on both sides. It is there to show what that does to the paper's scores.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from ichsearch.errors import ConfigError, DataError
from ichsearch.files import read_json, write_json
from ichsearch.labels import ANY, LABELS

FOLDS: Final = 5
TEST_FOLD: Final = 0
VALIDATION_FOLD: Final = 1
RELIABLE_POSITIVE_GROUPS: Final = 5
LEAKY: Final = "leaky"
"""What stands beside every figure of a split by slice."""

Unit = Literal["patient", "slice"]
"""What is dealt to the folds as a whole."""


class Split(BaseModel):
    """The fold of every patient, and the labels too rare to be judged; by slice, of no patient: images are hashed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    fingerprint: str
    patients: dict[str, int]
    unreliable: dict[str, int]
    by: Unit = "patient"

    @property
    def leaks(self) -> bool:
        """Whether slices of one patient may stand on both sides."""
        return self.by == "slice"

    def as_json(self) -> dict[str, Any]:
        """As `split.json` has it; a split by patient does not say so."""
        return self.model_dump(exclude_defaults=True)

    def fold_of(self, table: pd.DataFrame) -> npt.NDArray[np.int64]:
        """(N,) the fold of each slice.

        Raises:
            DataError: a patient without a fold, or an image that stands in two folds.
        """
        if self.leaks:
            return np.array([_fold_of_image(image, self.seed) for image in table["stored_hash"]], np.int64)
        folds = table["patient"].map(self.patients)
        if folds.isna().any():
            raise DataError(
                "every patient must have a fold, but split.json lacks some; the data changed: use another --out"
            )
        if (folds.groupby(table["stored_hash"]).nunique() > 1).any():
            raise DataError("an image must stand in one fold only, but split.json deals one to two; use another --out")
        return np.asarray(folds, np.int64)

    def holding_out(self, fold: int) -> Self:
        """The same split, turned so that `fold` is the test fold, and the next one the validation fold."""
        assert not self.leaks, "a split by slice has no fold of patients to hold out"
        return self.model_copy(update={"patients": {name: (own - fold) % FOLDS for name, own in self.patients.items()}})


def make_split(table: pd.DataFrame, fingerprint: str, seed: int, by: Unit = "patient") -> Split:
    """Deal groups of patients into five folds, the rarest label first, each group to the fold that has least of it.

    Patients that share an image are one group. Groups are ordered by SHA-256 of the seed and their images, so that
    the split is the same for everybody who has the images. By slice each image is dealt by its own SHA-256.

    Raises:
        DataError: fewer groups than folds, or a fold to be judged on has slices of one kind only.
    """
    if by == "slice":
        leaky = Split(seed=seed, fingerprint=fingerprint, patients={}, unreliable={}, by=by)
        _require_both_kinds(table, leaky)
        return leaky
    groups = _groups(table)
    ordered = sorted(groups, key=lambda rows: _group_hash(table["stored_hash"].iloc[rows], seed))
    if len(ordered) < FOLDS:
        raise DataError(f"a split needs at least {FOLDS} patients, but the data have {len(ordered)}; add patients")
    labels = table[list(LABELS)].fillna(0).to_numpy(np.int8)
    positive = np.array([labels[rows].any(axis=0) for rows in ordered])  # (groups, 6)
    folds = _deal(positive, [len(rows) for rows in ordered])
    patients = {
        str(name): fold
        for rows, fold in zip(ordered, folds, strict=True)
        for name in table["patient"].iloc[rows].unique()
    }
    counts = dict(zip(LABELS, positive.sum(axis=0).tolist(), strict=True))
    split = Split(
        seed=seed,
        fingerprint=fingerprint,
        patients=dict(sorted(patients.items())),
        unreliable={label: count for label, count in counts.items() if count < RELIABLE_POSITIVE_GROUPS},
    )
    _require_both_kinds(table, split)
    return split


def _groups(table: pd.DataFrame) -> list[list[int]]:
    """Row numbers of each group of patients that are linked by shared images."""
    parent = {name: name for name in table["patient"].unique()}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for names in table.groupby("stored_hash")["patient"].unique():
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(table["patient"]):
        rows[root(name)].append(number)
    return list(rows.values())


def _group_hash(images: "pd.Series[str]", seed: int) -> str:
    return hashlib.sha256("\n".join([str(seed), *sorted(images)]).encode()).hexdigest()


def _fold_of_image(image: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\n{image}".encode()).digest()[:8]) % FOLDS


def _deal(positive: npt.NDArray[np.bool_], slices: Sequence[int]) -> list[int]:
    """The fold of each group; ties go to the fold with fewest slices, then to the first."""
    fold_of = [-1] * len(slices)
    dealt = np.zeros(FOLDS, np.int64)  # slices per fold
    for label in [*np.argsort(positive.sum(axis=0), kind="stable"), None]:
        of_label = np.zeros(FOLDS, np.int64) if label is None else _positives_per_fold(positive[:, label], fold_of)
        for group in range(len(slices)):
            if fold_of[group] >= 0 or (label is not None and not positive[group, label]):
                continue
            fold = min(range(FOLDS), key=lambda fold: (of_label[fold], dealt[fold], fold))
            fold_of[group] = fold
            dealt[fold] += slices[group]
            of_label[fold] += label is not None
    return fold_of


def _positives_per_fold(positive: npt.NDArray[np.bool_], fold_of: list[int]) -> npt.NDArray[np.int64]:
    return np.array([sum(p for p, f in zip(positive, fold_of, strict=True) if f == fold) for fold in range(FOLDS)])


def _require_both_kinds(table: pd.DataFrame, split: Split) -> None:
    folds = split.fold_of(table)
    parts = {"training": folds > VALIDATION_FOLD, "validation": folds == VALIDATION_FOLD, "test": folds == TEST_FOLD}
    for name, part in parts.items():
        values = table[ANY][part].dropna()
        if values.nunique() < 2:
            raise DataError(
                f"the {name} patients must have slices with and without haemorrhage, but of {len(values)} labelled "
                f"slices {int(values.sum())} are positive; add labelled patients"
            )


def open_split(path: Path, table: pd.DataFrame, fingerprint: str, seed: int, by: Unit = "patient") -> Split:
    """The split in `path`, made and written there if it does not exist yet.

    Raises:
        ConfigError: the file holds a split of other data or of another seed.
        DataError: the data cannot be split.
    """
    if not path.is_file():
        split = make_split(table, fingerprint, seed, by)
        write_json(path, split.as_json())
        return split
    split = Split.model_validate(read_json(path))
    if (split.fingerprint, split.seed, split.by) != (fingerprint, seed, by):
        raise ConfigError(f"{path} splits other data or has another seed or unit; give another --out")
    return split

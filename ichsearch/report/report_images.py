"""The sections of the report that show CT slices: predictions, and the most confident errors with Grad-CAM.

In: a `RunData` with its shards. Out: a `Section` each.
"""

import io
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ichsearch.data.batches import Batches
from ichsearch.dicom.windows import BRAIN
from ichsearch.labels import ANY
from ichsearch.report.grad_cam import grad_cam, has_maps
from ichsearch.report.heat import Grey, heated, windowed
from ichsearch.report.page import Label, Section, Tile
from ichsearch.report.report_scores import judged_label
from ichsearch.report.run_data import RunData
from ichsearch.report.statistics import Predictions
from ichsearch.train.lineage import WEIGHTS
from ichsearch.train.metrics import BoolArray
from ichsearch.train.setup import make_model

CPU: Final = torch.device("cpu")
"""Fast enough for a handful of slices, wherever the page is drawn."""
THRESHOLD: Final = 0.5
SHOWN: Final = 12
ERRORS: Final = 4
"""Shown of each kind, from different patients."""
NONE: Final = "none"
NAME_LETTERS: Final = 12
"""Of a slice's name, a keyed hash: enough to find it by."""

Rows = npt.NDArray[np.int64]


class Word(NamedTuple):
    """What a slice is said to show, and whether that is so."""

    text: str
    right: bool


def predictions(data: RunData) -> Section:
    """Some validation slices with what was predicted and what is there, as the paper shows them."""
    title, look_for = "Predictions", "Above: predicted. Below: there. Green ✓ is right, red ✗ is wrong."
    if data.shards is None:
        return _missing("predictions", title, look_for)
    label = judged_label(data)
    chosen = _spread(data.predictions, label)
    pictures = _pictures(data, chosen)
    return Section(
        "predictions",
        title,
        look_for,
        notes=[
            f"Best trial, a probability above {THRESHOLD:g} counts as predicted; brain window "
            f"({BRAIN.level_hu}/{BRAIN.width_hu} HU). Half of the slices are positive for {label} where so many are; "
            "drawn by chance, from different patients where that is possible."
        ],
        tiles=[_grid_tile(data.predictions, int(place), grey) for place, grey in zip(chosen, pictures, strict=True)],
    )


def _missing(name: str, title: str, look_for: str) -> Section:
    return Section(name, title, look_for, notes=["Missing: the shards are not at hand; name them with --data."])


def _spread(given: Predictions, label: str) -> Rows:
    """Places of slices to show: as many with the label as without, each patient once before any is shown again."""
    order = np.random.default_rng(0).permutation(len(given.slices))
    patients = pd.Series(given.of_patient[order])
    order = order[np.argsort(patients.groupby(patients).cumcount().to_numpy(), kind="stable")]
    positive = given.positive[order, given.labels.index(label)]
    half = order[positive][: SHOWN // 2]
    return np.sort(np.concatenate([half, order[~positive][: SHOWN - len(half)]]))


def _pictures(data: RunData, places: Rows) -> list[Grey]:
    """The slices as the shards hold them, in the brain window."""
    stored, rows = data.stored(data.manifest.settings.size), data.rows[places].tolist()
    in_order = {row: stored.read(row, row + 1)[0] for row in sorted(rows)}  # shard after shard
    return [windowed(in_order[row]) for row in rows]


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def _grid_tile(given: Predictions, place: int, grey: Grey) -> Tile:
    there, said = given.positive[place], given.probabilities[place] > THRESHOLD
    above, below = _as_words(given.labels, said, there), _as_words(given.labels, there, said)
    told = [", ".join(f"{text} ({'right' if right else 'wrong'})" for text, right in side) for side in (above, below)]
    alt = f"CT slice {_name(given, place)}: predicted {told[0]}; there: {told[1]}."
    return Tile(_png(grey), alt, [Label(*word) for word in above], [Label(*word) for word in below])


def _name(given: Predictions, place: int) -> str:
    return str(given.slices[place])[:NAME_LETTERS]


def _as_words(labels: Sequence[str], these: BoolArray, others: BoolArray) -> list[Word]:
    """The subtypes of one side, each right if the other side has it; `any` where it stands alone, else `none`."""
    said = {label: bool(right) for label, is_said, right in zip(labels, these, others, strict=True) if is_said}
    shown = [label for label in said if label != ANY] or list(said)
    return [Word(label, said[label]) for label in shown] or [Word(NONE, not others.any())]


def errors(data: RunData) -> Section:
    """The slices that the best trial is most wrong about, and where it looked."""
    label = judged_label(data)
    title = "Most confident errors"
    look_for = (
        "Heat far from any blood is a shortcut; an error that a reader would share is a hard slice or a wrong label."
    )
    if data.shards is None:
        return _missing("errors", title, look_for)
    alarms, missed = _worst(data.predictions, label)
    chosen = np.concatenate([alarms, missed])
    heats, note = _heats(data, chosen, label)
    pictures = _pictures(data, chosen)
    tiles = [
        _error_tile(data.predictions, int(place), label, grey, heats[number] if heats is not None else None)
        for number, (place, grey) in enumerate(zip(chosen, pictures, strict=True))
    ]
    counts = f"{len(alarms)} false alarms and {len(missed)} missed slices for {label}, one a patient, the worst first."
    return Section("errors", title, look_for, notes=[counts, note], tiles=tiles)


def _worst(given: Predictions, label: str) -> tuple[Rows, Rows]:
    """Places of the negative slices with the highest and the positive ones with the lowest probability."""
    column = given.labels.index(label)
    rising, positive = np.argsort(given.probabilities[:, column], kind="stable"), given.positive[:, column]

    def first(order: Rows, kind: BoolArray) -> Rows:
        ordered = order[kind[order]]
        _, at = np.unique(given.of_patient[ordered], return_index=True)  # of each patient the worst
        return ordered[np.sort(at)[:ERRORS]]

    return first(rising[::-1], ~positive), first(rising, positive)


def _heats(data: RunData, places: Rows, label: str) -> tuple[npt.NDArray[np.float32] | None, str]:
    """Grad-CAM of some slices, (n, S, S), and what is to be said of it; None where there is none."""
    config = data.best_config
    if not has_maps(config):
        return None, f"No Grad-CAM: {config.backbone} makes tokens, no maps of the image."
    if not (data.folder.trial(data.best.name) / WEIGHTS).is_file():
        missing = f"trials/{data.best.name}/{WEIGHTS}"
        return None, f"No Grad-CAM: {missing} is not there; how many are kept is up to keep.best and keep.disk_gb."
    batches = Batches(data.slices, data.rows[places], config.recipe, CPU)
    inputs = torch.cat([batch.clone() for batch in batches.evaluate()])
    heat, side = grad_cam(best_model(data), inputs, config.labels.index(label))
    maps = f"maps of {side} × {side} pixels of the {config.size} px that the model saw"
    return heat.numpy(), f"Right of each slice: Grad-CAM for {label}, from {maps}."


def best_model(data: RunData) -> nn.Module:
    """The model of the best trial, on the CPU, with the weights of its best epoch."""
    data.folder.bring(data.folder.trial(data.best.name))
    model = make_model(data.best_config, None, CPU)
    model.load_state_dict(load_file(data.folder.trial(data.best.name) / WEIGHTS))
    return model


def _error_tile(given: Predictions, place: int, label: str, grey: Grey, heat: npt.NDArray[np.float32] | None) -> Tile:
    there = [name for name, is_there in zip(given.labels, given.positive[place], strict=True) if is_there]
    shown = ", ".join([name for name in there if name != ANY] or there or [NONE])
    said = f"{label} {given.probabilities[place, given.labels.index(label)]:.3f}"
    name = _name(given, place)
    alt = f"CT slice {name}: probability of {said}, but there: {shown}."
    overlay = None if heat is None else _png(heated(grey, heat))
    return Tile(
        _png(grey), alt, [Label(said, right=False)], [Label(f"there: {shown}"), Label(f"slice {name}")], overlay
    )

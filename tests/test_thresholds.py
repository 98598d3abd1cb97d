"""Operating points: chosen on validation predictions as their definition has it, undefined where one class lacks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_runs import draw_truth, predicted
from sklearn.metrics import roc_curve

from ichsearch.deploy.thresholds import operating_points


def write(folder: Path, truth: list[int], probabilities: list[float]) -> Path:
    frame = pd.DataFrame({"slice": range(len(truth)), "patient": "p", "label_any": truth})
    frame["probability_any"] = np.array(probabilities, np.float32)
    frame.to_parquet(folder / "predictions.parquet")
    return folder / "predictions.parquet"


@pytest.mark.parametrize("percent", [90, 95])
def test_points_are_those_of_scikit_learns_roc_curve(tmp_path: Path, percent: int) -> None:
    frame = predicted(draw_truth(60), 1.0)
    frame.to_parquet(tmp_path / "predictions.parquet")
    alarms, found, _ = roc_curve(frame["label_any"], frame["probability_any"], drop_intermediate=False)
    point = operating_points(tmp_path / "predictions.parquet")["any"][f"specificity_{percent}"]
    best = int(np.flatnonzero(alarms <= (100 - percent) / 100 + 1e-12)[-1])
    assert point is not None
    assert point.sensitivity == pytest.approx(found[best])
    assert point.specificity >= percent / 100
    positive = frame["probability_any"] >= np.float32(point.threshold)
    assert positive[frame["label_any"] == 1].mean() == pytest.approx(point.sensitivity)
    assert 1 - positive[frame["label_any"] == 0].mean() == pytest.approx(point.specificity)
    assert not np.isclose(frame["probability_any"], point.threshold, atol=1e-7).any()  # rounding moves no slice


def test_youden_has_the_highest_sum(tmp_path: Path) -> None:
    point = operating_points(write(tmp_path, [0, 0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.5]))["any"]["youden"]
    assert point is not None
    assert (point.threshold, point.sensitivity) == (
        pytest.approx(0.25),
        1.0,
    )  # halfway between the lowest positive one and the next
    assert point.specificity == pytest.approx(2 / 3)


def test_equal_probabilities_are_never_parted(tmp_path: Path) -> None:
    point = operating_points(write(tmp_path, [0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]))["any"]["specificity_90"]
    assert point is not None
    assert (point.sensitivity, point.specificity) == (0.0, 1.0)
    assert point.threshold > 0.5


def test_a_label_of_one_class_has_none(tmp_path: Path) -> None:
    assert set(operating_points(write(tmp_path, [0, 0], [0.1, 0.2]))["any"].values()) == {None}

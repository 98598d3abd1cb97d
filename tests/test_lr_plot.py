"""The LR finder's curve as a picture."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ichsearch.report.lr_plot import draw_curve
from ichsearch.train.config import InputConfig
from ichsearch.train.lr_finder import read_curve


def test_the_curve_is_drawn_as_a_png(tmp_path: Path) -> None:
    config = InputConfig(backbone="resnet18", batch_size=16, size=64)
    lrs = np.logspace(-7, 1, 100)
    curve = read_curve(config, lrs.tolist(), ((np.log10(lrs) + 2) ** 2 + 0.3).tolist(), 100)
    draw_curve(curve, tmp_path / "curve.png")
    picture = imread(tmp_path / "curve.png")
    assert picture.shape == (630, 1050, 4)
    assert picture[..., :3].std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.parametrize("points", [0, 1, 2])
def test_a_curve_that_ended_at_once_is_drawn_too(tmp_path: Path, points: int) -> None:
    config = InputConfig(backbone="resnet18", batch_size=16, size=64)
    draw_curve(read_curve(config, [1e-7, 1e-6][:points], [0.7, 3.0][:points], 100), tmp_path / "curve.png")
    assert imread(tmp_path / "curve.png").shape == (630, 1050, 4)

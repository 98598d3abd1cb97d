"""Channels: each against its formula written a second time, and `hist` against fastai's own."""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
import torch
from slice_sets import make_slices
from torch import Tensor

from ichsearch.data.channels import CHANNELS, Channels, InputMaker, depth, hist_breaks

CPU = torch.device("cpu")
EVERY_HU = np.arange(-1024, 3072, dtype=np.int16).reshape(1, 1, 64, 64)
BREAKS = np.array([-1000, 0, 30, 31, 80], np.int16)


def made(hu: Tensor, channels: Channels, breaks: npt.NDArray[np.int16] = BREAKS) -> npt.NDArray[np.float32]:
    out = torch.full((len(hu), CHANNELS[channels], *hu.shape[2:]), float("nan"))
    InputMaker(channels, breaks, CPU).fill(hu, out)
    result: npt.NDArray[np.float32] = out.numpy()
    return result


def normalised(shown: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ImageNet's grey statistics."""
    return (shown - 0.449) / 0.226


def through(hu: npt.NDArray[np.int16], low: float, high: float) -> npt.NDArray[np.float64]:
    """Black at `low`, white at `high`."""
    return normalised(np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1))


@pytest.mark.parametrize("kind", [torch.int16, torch.float32])
def test_hu_is_the_soft_tissue_window(kind: torch.dtype) -> None:
    shown = made(torch.from_numpy(EVERY_HU).to(kind), "hu")
    np.testing.assert_allclose(shown, through(EVERY_HU, -150, 230), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int16, torch.float32])
def test_windows_are_brain_subdural_and_bone(kind: torch.dtype) -> None:
    shown = made(torch.from_numpy(EVERY_HU).to(kind), "windows")
    for channel, (low, high) in enumerate([(0, 80), (-20, 180), (-800, 2000)]):
        np.testing.assert_allclose(shown[:, channel], through(EVERY_HU[:, 0], low, high), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int16, torch.float32])
def test_neighbours_are_three_slices_in_the_subdural_window(kind: torch.dtype) -> None:
    hu = np.random.default_rng(2).integers(-200, 300, (5, 3, 16, 16)).astype(np.int16)
    np.testing.assert_allclose(made(torch.from_numpy(hu).to(kind), "neighbours"), through(hu, -20, 180), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int16, torch.float32])
def test_hist_is_straight_between_its_breaks_and_flat_beyond(kind: torch.dtype) -> None:
    shown = made(torch.from_numpy(EVERY_HU).to(kind), "hist")
    expected = normalised(np.interp(EVERY_HU.astype(np.float64), BREAKS, [0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_hist_of_hu_that_augmentation_left_between_whole_numbers() -> None:
    hu = torch.linspace(-1500, 3500, 64 * 64).reshape(1, 1, 64, 64)
    expected = normalised(np.interp(hu.numpy().astype(np.float64), BREAKS, [0, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(made(hu, "hist"), expected, atol=1e-4)


def test_hist_of_a_data_set_of_one_value_is_a_constant() -> None:
    breaks = hist_breaks(np.full((2, 8, 8), -1024, np.int16))
    assert breaks.tolist() == [-1024]
    assert np.isfinite(made(torch.from_numpy(EVERY_HU), "hist", breaks)).all()


@pytest.mark.parametrize("channels", ["hu", "windows", "neighbours", "hist"])
@pytest.mark.parametrize(("batch", "side"), [(3, 256), (70, 48), (5, 260)])
def test_images_that_a_block_does_not_hold_evenly_are_all_made(channels: Channels, batch: int, side: int) -> None:
    hu = torch.from_numpy(
        np.random.default_rng(0).integers(-1024, 3072, (batch, depth(channels), side, side)).astype(np.int16)
    )
    shown = made(hu, channels)
    assert not np.isnan(shown).any()
    np.testing.assert_array_equal(shown[-1], made(hu[-1:], channels)[0])


def test_breaks_have_equally_many_pixels_between_them() -> None:
    hu = np.random.default_rng(3).normal(300, 250, 200_000).round().clip(-1024, 3071).astype(np.int16)
    breaks = hist_breaks(hu)
    assert (np.diff(breaks) > 0).all()
    assert len(breaks) == 102
    between = np.histogram(hu, breaks)[0][1:-1] / hu.size
    np.testing.assert_allclose(between, 0.01, atol=0.002)


def test_breaks_and_scaling_are_fastai_s() -> None:
    pytest.importorskip("fastai.basics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fastai.medical.imaging")
    hu = make_slices(patients=6, slices=4, size=64).hu[:, None]
    breaks = hist_breaks(hu)
    floats = torch.from_numpy(hu).float()
    theirs = floats.freqhist_bins()  # type: ignore[operator]  # fastai patches Tensor
    np.testing.assert_array_equal(breaks, theirs.numpy())
    expected = normalised(floats.hist_scaled(theirs).numpy())  # type: ignore[operator]
    for given in (torch.from_numpy(hu), floats):
        np.testing.assert_allclose(made(given, "hist", breaks), expected, atol=1e-5)

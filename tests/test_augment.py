"""Augmentation against torch's flip, trigonometry and SciPy's Gaussian filter."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ichsearch.data.augment import MAX_BLUR_OF_SIDE, MAX_ROTATION_DEG, Draw, apply, draw

SIDE = 33
CENTRE = SIDE // 2


def drawn(*, flipped: bool = False, rotation_deg: float = 0.0, blur_px: float = 0.0, side: int = SIDE) -> Draw:
    """The same draw for a batch of one."""
    return Draw(torch.tensor([flipped]), torch.tensor([rotation_deg]), torch.tensor([blur_px / side]))


def noise(batch: int = 1, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(4)) * 100


def spot(right: float, down: float) -> Tensor:
    """A soft spot, `right` and `down` pixels from the middle."""
    y, x = np.mgrid[:SIDE, :SIDE] - CENTRE
    image = np.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * 1.5**2))
    return torch.from_numpy(image).float()[None, None]


def place(image: Tensor) -> tuple[float, float]:
    """Centre of mass, in pixels to the right of and below the middle."""
    weights = image[0, 0].numpy() / float(image.sum())
    y, x = np.mgrid[:SIDE, :SIDE] - CENTRE
    return float((weights * x).sum()), float((weights * y).sum())


def test_strength_zero_is_exactly_the_identity() -> None:
    images = noise(batch=16)
    result = apply(images, draw(16, 0.0, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(result, images, rtol=0, atol=0)


@pytest.mark.parametrize("side", [32, 33, 64, 100])
def test_a_flip_is_left_for_right(side: int) -> None:
    images = noise(side=side)
    torch.testing.assert_close(apply(images, drawn(flipped=True)), images.flip(-1), rtol=0, atol=1e-2)


@pytest.mark.parametrize("degrees", [-15.0, -5.0, 10.0, 15.0])
@pytest.mark.parametrize(("right", "down"), [(9, 0), (0, 9), (-6, 5)])
def test_a_point_turns_counterclockwise_by_the_angle(degrees: float, right: float, down: float) -> None:
    angle = math.radians(degrees)
    expected = (right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle))
    assert place(apply(spot(right, down), drawn(rotation_deg=degrees))) == pytest.approx(expected, abs=0.05)


def test_a_point_is_flipped_before_it_turns() -> None:
    one = place(apply(spot(8, 3), drawn(flipped=True, rotation_deg=12)))
    other = place(apply(spot(-8, 3), drawn(rotation_deg=12)))
    assert one == pytest.approx(other, abs=0.01)
    assert one[0] < -5


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 2.0])
def test_a_blur_is_a_gaussian_filter(sigma: float) -> None:
    images = noise()
    expected = gaussian_filter(images[0, 0].numpy().astype(np.float64), sigma, mode="nearest", truncate=8)
    result = apply(images, drawn(blur_px=sigma))[0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=0.02 * float(images.std()))


def test_a_blur_keeps_a_constant_and_the_sum_of_a_spot() -> None:
    constant = torch.full((1, 1, SIDE, SIDE), -1000.0)
    torch.testing.assert_close(apply(constant, drawn(blur_px=1.7)), constant)
    assert float(apply(spot(2, 1), drawn(blur_px=1.7)).sum()) == pytest.approx(float(spot(2, 1).sum()), rel=1e-5)


def test_each_image_of_a_batch_gets_its_own_draw() -> None:
    images = noise(batch=4)
    mixed = Draw(
        flipped=torch.tensor([False, True, False, False]),
        rotation_deg=torch.tensor([0.0, 0.0, 9.0, 0.0]),
        blur_of_side=torch.tensor([0.0, 0.0, 0.0, 1.2 / SIDE]),
    )
    result = apply(images, mixed)
    alone = [drawn(), drawn(flipped=True), drawn(rotation_deg=9.0), drawn(blur_px=1.2)]
    for index, one in enumerate(alone):
        torch.testing.assert_close(result[index], apply(images[index : index + 1], one)[0], rtol=0, atol=0.02)


def test_corners_that_turn_in_are_filled_from_the_border() -> None:
    constant = torch.full((1, 1, SIDE, SIDE), -1000.0)
    torch.testing.assert_close(apply(constant, drawn(rotation_deg=15.0)), constant)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_draws_fill_their_ranges_and_stay_in_them(strength: float) -> None:
    many = draw(20_000, strength, torch.Generator().manual_seed(1))
    assert float(many.flipped.float().mean()) == pytest.approx(0.5 * strength, abs=0.02)
    largest = MAX_ROTATION_DEG * strength
    assert -largest <= float(many.rotation_deg.min()) < -0.99 * largest
    assert 0.99 * largest < float(many.rotation_deg.max()) <= largest
    assert float(many.rotation_deg.mean()) == pytest.approx(0, abs=0.02 * largest)
    assert 0 <= float(many.blur_of_side.min()) < 0.01 * MAX_BLUR_OF_SIDE
    assert 0.99 * MAX_BLUR_OF_SIDE * strength < float(many.blur_of_side.max()) <= MAX_BLUR_OF_SIDE * strength


def test_the_paper_turns_by_fifteen_degrees() -> None:
    assert MAX_ROTATION_DEG == 15


def test_a_draw_depends_on_its_generator_alone() -> None:
    one, other = (draw(8, 1.0, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.manual_seed(0)
    for field in ("flipped", "rotation_deg", "blur_of_side"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert not torch.equal(one.rotation_deg, draw(8, 1.0, torch.Generator().manual_seed(6)).rotation_deg)

"""Augmentation against torch's flip, trigonometry, SciPy's Gaussian filter and statistics; both ways to warp agree."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ichsearch.data import augment
from ichsearch.data.augment import (
    AIR_HU,
    ERASED_SHARE,
    KINDS,
    MAX_ASPECT,
    MAX_BLUR_OF_SIDE,
    MAX_GAIN_CHANGE,
    MAX_NOISE_HU,
    MAX_OFFSET_HU,
    MAX_ROTATION_DEG,
    MAX_SCALE_CHANGE,
    MAX_SHIFT_OF_SIDE,
    Augmentation,
    Draw,
    Kind,
    apply,
    draw,
)
from ichsearch.data.warp import gaussian_taps, warp_by_batch, warp_by_image

SIDE = 65
CENTRE = SIDE // 2
EVERYTHING = Augmentation(strength=1, kinds=KINDS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity(batch: int = 1) -> Draw:
    return draw(batch, Augmentation(strength=0, kinds=KINDS), generator())


def one(**changes: Any) -> Draw:
    """A draw for one image, the identity but for the named fields."""
    return replace(identity(), **{name: torch.tensor([value]) for name, value in changes.items()})


def noise(batch: int = 1, channels: int = 1, side: int = SIDE) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=generator(4)) * 100


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


@pytest.mark.parametrize("augmentation", [Augmentation(strength=0, kinds=KINDS), Augmentation(strength=1, kinds=())])
def test_without_strength_or_kinds_the_images_themselves_come_back(augmentation: Augmentation) -> None:
    images = noise(batch=16)
    before = images.clone()
    result = apply(images, draw(16, augmentation, generator()))
    assert result is images
    assert torch.equal(result, before)


def test_the_images_given_stay_as_they_are() -> None:
    images = noise(batch=8)
    before = images.clone()
    assert not torch.equal(apply(images, draw(8, EVERYTHING, generator())), before)
    assert torch.equal(images, before)


@pytest.mark.parametrize("side", [32, 33, 64, 100])
def test_a_flip_is_left_for_right(side: int) -> None:
    images = noise(side=side)
    torch.testing.assert_close(apply(images, one(flipped=True)), images.flip(-1), rtol=0, atol=1e-2)


@pytest.mark.parametrize("degrees", [-15.0, -5.0, 10.0, 15.0])
@pytest.mark.parametrize(("right", "down"), [(18, 0), (0, 18), (-12, 10)])
def test_a_point_turns_counterclockwise_by_the_angle(degrees: float, right: float, down: float) -> None:
    angle = math.radians(degrees)
    expected = (right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle))
    assert place(apply(spot(right, down), one(rotation_deg=degrees))) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("right", "down"), [(4.0, 0.0), (-2.5, 3.25)])
def test_a_shift_moves_a_point_to_the_right_and_down(right: float, down: float) -> None:
    moved = apply(spot(3, -5), one(shift_of_side=[right / SIDE, down / SIDE]))
    assert place(moved) == pytest.approx((3 + right, -5 + down), abs=0.01)


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_a_scale_enlarges_about_the_middle(scale: float) -> None:
    image = spot(10, -8)
    scaled = apply(image, one(scale=scale))
    assert place(scaled) == pytest.approx((10 * scale, -8 * scale), abs=0.05)
    assert float(scaled.sum()) == pytest.approx(float(image.sum()) * scale**2, rel=0.03)


def test_a_point_is_flipped_then_turned_and_scaled_then_shifted() -> None:
    angle = math.radians(12)
    turned = (-8 * math.cos(angle) + 3 * math.sin(angle), 3 * math.cos(angle) + 8 * math.sin(angle))
    expected = (1.1 * turned[0] + 2, 1.1 * turned[1] - 4)
    drawn = one(flipped=True, rotation_deg=12.0, scale=1.1, shift_of_side=[2 / SIDE, -4 / SIDE])
    assert place(apply(spot(8, 3), drawn)) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 2.0])
def test_a_blur_is_a_gaussian_filter(sigma: float) -> None:
    images = noise()
    expected = gaussian_filter(images[0, 0].numpy().astype(np.float64), sigma, mode="nearest", truncate=8)
    result = apply(images, one(blur_of_side=sigma / SIDE))[0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=0.02 * float(images.std()))


@pytest.mark.parametrize("sigma", [1.0, 1.4, 2.0])
def test_a_point_becomes_as_wide_as_the_sigma(sigma: float) -> None:
    point = torch.zeros(1, 1, SIDE, SIDE)
    point[..., CENTRE, CENTRE] = 1000
    weights = apply(point, one(blur_of_side=sigma / SIDE))[0, 0].sum(dim=0) / 1000
    offsets = torch.arange(SIDE) - CENTRE
    assert float((weights * offsets**2).sum().sqrt()) == pytest.approx(sigma, rel=0.03)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)


def test_noise_has_its_deviation_and_no_mean() -> None:
    images = torch.full((2, 1, 256, 256), 40.0)
    changes = apply(images, replace(identity(2), noise_hu=torch.tensor([8.0, 0.5]))) - images
    assert changes.std(dim=(1, 2, 3)).tolist() == pytest.approx([8.0, 0.5], rel=0.02)
    assert changes.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0, 0], abs=4 * 8 / 256)
    neighbours = torch.corrcoef(torch.stack([changes[0, 0, :, :-1].flatten(), changes[0, 0, :, 1:].flatten()]))
    assert float(neighbours[0, 1]) == pytest.approx(0, abs=0.02)


def test_images_and_channels_have_noise_of_their_own() -> None:
    images = torch.full((2, 3, 64, 64), 40.0)
    changes = apply(images, replace(identity(2), noise_hu=torch.tensor([5.0, 5.0]))) - images
    assert float((torch.corrcoef(changes.reshape(6, -1)) - torch.eye(6)).abs().max()) < 0.1


def test_gain_multiplies_about_water_and_offset_adds() -> None:
    images = noise()
    result = apply(images, one(gain=1.04, offset_hu=-3.0))
    torch.testing.assert_close(result, images * 1.04 - 3, rtol=0, atol=1e-3)


def test_a_rectangle_of_the_drawn_place_and_area_is_air() -> None:
    images = noise(side=64)
    expected = images.clone()
    expected[..., 8:16, 32:48] = AIR_HU
    assert torch.equal(apply(images, one(erased=[0.5, 0.125, 0.25, 0.125])), expected)


def test_what_is_erased_shows_nothing_of_the_other_kinds() -> None:
    drawn = one(erased=[0.5, 0.125, 0.25, 0.125], blur_of_side=0.03, noise_hu=9.0, gain=1.04, offset_hu=-3.0)
    result = apply(noise(side=64), drawn)
    assert int((result == AIR_HU).sum()) == 8 * 16
    assert (result[..., 8:16, 32:48] == AIR_HU).all()


def test_a_drawn_rectangle_has_its_area_and_lies_inside() -> None:
    images = torch.zeros(500, 1, 128, 128)
    drawn = draw(500, Augmentation(strength=1, kinds=("erasing",)), generator())
    area = (apply(images, drawn) == AIR_HU).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(area, drawn.erased[:, 2] * drawn.erased[:, 3], rtol=0, atol=0.01)
    assert 0.4 < float((area > 0).float().mean()) < 0.6


def test_corners_that_turn_in_are_filled_from_the_border() -> None:
    constant = torch.full((1, 1, SIDE, SIDE), -1000.0)
    moved = one(rotation_deg=15.0, scale=0.9, shift_of_side=[0.06, 0.06], blur_of_side=1.7 / SIDE)
    torch.testing.assert_close(apply(constant, moved), constant)


def test_hu_stay_in_the_range_of_shards() -> None:
    images = torch.empty(64, 1, 32, 32).uniform_(-1024, 3071, generator=generator())
    result = apply(images, draw(64, Augmentation(strength=1, kinds=("noise", "gain")), generator()))
    assert float(result.min()) == -1024
    assert float(result.max()) == 3071


def test_each_image_of_a_batch_gets_its_own_draw() -> None:
    images, drawn = noise(batch=12), draw(12, EVERYTHING, generator(2))
    result = apply(images, drawn)
    for index in range(12):
        alone = Draw(**{field.name: getattr(drawn, field.name)[index : index + 1] for field in fields(Draw)})
        torch.testing.assert_close(apply(images[index : index + 1], alone)[0], result[index], rtol=0, atol=1e-3)


def test_the_channels_of_an_image_change_alike() -> None:
    images = noise(batch=12).repeat(1, 3, 1, 1)
    kinds: tuple[Kind, ...] = ("flip", "rotation", "blur", "shift_scale", "erasing", "gain")
    result = apply(images, draw(12, Augmentation(strength=1, kinds=kinds), generator(2)))
    assert torch.equal(result[:, 0], result[:, 1])
    assert torch.equal(result[:, 0], result[:, 2])
    assert not torch.equal(result, images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [64, 101, 256])
def test_a_cpu_and_a_gpu_move_and_blur_alike(channels: int, side: int) -> None:
    images, drawn = noise(16, channels, side), draw(16, EVERYTHING, generator(3))
    maps, taps = augment._maps(drawn), gaussian_taps(drawn.blur_of_side * side)
    by_image = warp_by_image(images, maps, taps)
    assert float((by_image - images).abs().max()) > 100
    torch.testing.assert_close(by_image, warp_by_batch(images, maps, taps), rtol=0, atol=0.1)  # at the border as well


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_draw_gives_the_same_images_on_a_gpu() -> None:
    images, drawn = noise(16, 3, 256), draw(16, EVERYTHING, generator(3))
    on_gpu = apply(images.cuda(), drawn)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), apply(images, drawn), rtol=0, atol=0.1)


def test_threads_change_nothing() -> None:
    images, drawn = noise(5), draw(5, EVERYTHING, generator(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = apply(images, drawn)
        torch.set_num_threads(3)
        assert torch.equal(apply(images, drawn), alone)
    finally:
        torch.set_num_threads(before)


def test_a_draw_kept_as_json_gives_the_same_images() -> None:
    images, drawn = noise(batch=32), draw(32, EVERYTHING, generator(5))
    kept = Draw.from_record(json.loads(json.dumps(drawn.record(), allow_nan=False)))
    for field in fields(Draw):
        assert torch.equal(getattr(kept, field.name), getattr(drawn, field.name))
        assert getattr(kept, field.name).dtype == getattr(drawn, field.name).dtype
    assert torch.equal(apply(images, kept), apply(images, drawn))


def test_a_draw_depends_on_its_generator_alone() -> None:
    first = draw(8, EVERYTHING, generator(5)).record()
    torch.manual_seed(0)
    assert draw(8, EVERYTHING, generator(5)).record() == first
    other = draw(8, EVERYTHING, generator(6)).record()
    assert not [name for name in first if first[name] == other[name]]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("flip", {"flipped"}),
        ("rotation", {"rotation_deg"}),
        ("blur", {"blur_of_side"}),
        ("shift_scale", {"scale", "shift_of_side"}),
        ("erasing", {"erased"}),
        ("noise", {"noise_hu"}),
        ("gain", {"gain", "offset_hu"}),
    ],
)
def test_a_kind_draws_its_fields_and_no_others_whatever_stands_beside_it(kind: Kind, names: set[str]) -> None:
    nothing, everything = identity(16).record(), draw(16, EVERYTHING, generator()).record()
    alone = draw(16, Augmentation(strength=1, kinds=(kind,)), generator()).record()
    assert {name for name in alone if alone[name] != nothing[name]} == names
    assert {name: alone[name] for name in names} == {name: everything[name] for name in names}


def ranges(strength: float) -> dict[str, tuple[float, float]]:
    """Lowest and highest of each field."""
    changes = {
        "rotation_deg": MAX_ROTATION_DEG,
        "shift_of_side": MAX_SHIFT_OF_SIDE,
        "offset_hu": MAX_OFFSET_HU,
    }
    factors = {"scale": MAX_SCALE_CHANGE, "gain": MAX_GAIN_CHANGE}
    sizes = {"blur_of_side": MAX_BLUR_OF_SIDE, "noise_hu": MAX_NOISE_HU}
    return (
        {name: (-strength * most, strength * most) for name, most in changes.items()}
        | {name: (1 - strength * most, 1 + strength * most) for name, most in factors.items()}
        | {name: (0, strength * most) for name, most in sizes.items()}
    )


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_draws_fill_their_ranges_evenly_and_stay_in_them(strength: float) -> None:
    many = draw(20_000, Augmentation(strength=strength, kinds=KINDS), generator(1))
    for name, (low, high) in ranges(strength).items():
        values, margin = getattr(many, name), 0.01 * (high - low)
        assert low - 1e-6 <= float(values.min()) < low + margin, name
        assert high - margin < float(values.max()) <= high + 1e-6, name
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=margin), name


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_strength_scales_how_often_images_are_flipped_and_erased(strength: float) -> None:
    many = draw(20_000, Augmentation(strength=strength, kinds=KINDS), generator(1))
    left, top, width, height = many.erased[many.erased[:, 2] > 0].unbind(dim=1)
    assert float(many.flipped.float().mean()) == pytest.approx(0.5 * strength, abs=0.02)
    assert len(width) / 20_000 == pytest.approx(0.5 * strength, abs=0.02)
    area, aspect = width * height, width / height
    assert (float(area.min()), float(area.max())) == pytest.approx(ERASED_SHARE, rel=0.02)
    assert (float(aspect.min()), float(aspect.max())) == pytest.approx((1 / MAX_ASPECT, MAX_ASPECT), rel=0.02)
    assert float(torch.cat([left, top]).min()) >= 0
    assert float(torch.cat([left + width, top + height]).max()) <= 1 + 1e-6


def test_the_default_is_the_papers() -> None:
    assert MAX_ROTATION_DEG == 15
    assert MAX_BLUR_OF_SIDE * 256 == 2
    assert Augmentation(strength=1).kinds == ("flip", "rotation", "blur")


def test_an_augmentation_is_a_value() -> None:
    named = Augmentation(strength=0.5, kinds=("noise", "flip", "noise"))
    assert named == Augmentation(strength=0.5, kinds=("flip", "noise"))
    assert len({named, Augmentation.model_validate_json(named.model_dump_json())}) == 1


@pytest.mark.parametrize(
    "settings", [{"strength": 1.1}, {"strength": -0.1}, {"strength": 1, "kinds": ("mirror",)}, {"power": 1}]
)
def test_other_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(settings)

"""The brain's share, mask, box and crop against slow references of fastai's formulae."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import head_hu
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ichsearch.dicom.brain import CropBox, bounding_square, brain_mask, brain_share, cropped, union_box
from ichsearch.dicom.windows import BONE, BRAIN, SUBDURAL


def reference_mask(hu: NDArray[np.int16], taps: int) -> NDArray[np.bool_]:
    """fastai's `mask_from_blur` tap by tap, with the box that its cut Gaussian is: mean / 80 > 0.05."""
    shown = np.clip(hu.astype(np.int64), 0, 80)
    shown[shown == 80] = 0
    box = np.ones(taps, np.int64)
    total = ndimage.convolve1d(ndimage.convolve1d(shown, box, axis=0, mode="nearest"), box, axis=1, mode="nearest")
    return np.asarray(total * 20 > 80 * taps**2)


def mask_of(side: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), np.bool_)
    for top, bottom, left, right in boxes:
        mask[top : bottom + 1, left : right + 1] = True
    return mask


def contains(outer: CropBox, inner: CropBox) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and outer.top + outer.side >= inner.top + inner.side
        and outer.left + outer.side >= inner.left + inner.side
    )


def test_windows_have_the_edges_radiologists_use() -> None:
    edges = [(window.low_hu, window.high_hu) for window in (BRAIN, SUBDURAL, BONE)]

    assert edges == [(0, 80), (-20, 180), (-800, 2000)]


def test_brain_share_leaves_out_both_edges_of_the_window() -> None:
    assert brain_share(np.array([[-1, 0], [80, 81]], np.int16)) == 0
    assert brain_share(np.array([[1, 79], [0, 80]], np.int16)) == 0.5
    assert brain_share(np.full((4, 4), 40, np.int16)) == 1


@pytest.mark.parametrize(("side", "taps"), [(512, 77), (64, 9), (100, 15), (430, 65)])
def test_the_mask_is_fastais_box_mean_of_the_brain_window(side: int, taps: int) -> None:
    rng = np.random.default_rng(side)
    hu = head_hu(side, seed=side, centre=(side * 0.4, side * 0.55))
    hu[: side // 8] = rng.integers(-1024, 200, (side // 8, side))
    hu[:, : side // 10] = 30

    mask = brain_mask(hu)

    assert 0.1 < mask.mean() < 0.9
    assert np.array_equal(mask, reference_mask(hu, taps))


def test_the_mask_of_another_box_size_differs() -> None:
    hu = head_hu(512)

    assert np.array_equal(brain_mask(hu), reference_mask(hu, 77))
    assert not np.array_equal(brain_mask(hu), reference_mask(hu, 75))


@pytest.mark.parametrize("hu", [-1024, 0, 80, 1000], ids=["air", "black", "white", "bone"])
def test_air_and_bone_have_no_mask(hu: int) -> None:
    assert not brain_mask(np.full((64, 64), hu, np.int16)).any()


@pytest.mark.parametrize(("hu", "masked"), [(4, False), (5, True)])
def test_the_threshold_is_five_percent_of_the_window(hu: int, masked: bool) -> None:
    assert brain_mask(np.full((64, 64), hu, np.int16)).all() == masked


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((10, 19, 30, 39), CropBox(10, 30, 10)),
        ((10, 49, 5, 14), CropBox(10, 5, 40)),
        ((5, 14, 10, 49), CropBox(5, 10, 40)),
        ((10, 49, 50, 59), CropBox(10, 24, 40)),
        ((50, 59, 10, 49), CropBox(24, 10, 40)),
        ((0, 63, 20, 30), CropBox(0, 0, 64)),
        ((0, 63, 0, 63), CropBox(0, 0, 64)),
        ((63, 63, 63, 63), CropBox(63, 63, 1)),
    ],
)
def test_the_shorter_side_grows_from_its_low_corner_and_shifts_inside(
    box: tuple[int, int, int, int], square: CropBox
) -> None:
    assert bounding_square(mask_of(64, box)) == square


def test_the_square_holds_every_part_of_the_mask() -> None:
    assert bounding_square(mask_of(64, (3, 4, 50, 52), (20, 22, 30, 31))) == CropBox(3, 30, 23)


def test_an_empty_mask_gives_the_whole_frame() -> None:
    assert bounding_square(mask_of(64)) is None
    assert union_box([None, None], 64) == CropBox(0, 0, 64)
    assert union_box([], 64) == CropBox(0, 0, 64)


def test_slices_without_brain_have_no_say_in_the_series_box() -> None:
    assert union_box([None, CropBox(3, 4, 20), None], 64) == CropBox(3, 4, 20)


def test_the_series_box_is_a_square_round_all_boxes_inside_the_frame() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        sides = rng.integers(1, 40, 4)
        boxes = [CropBox(*rng.integers(0, 64 - side + 1, 2).tolist(), int(side)) for side in sides]

        union = union_box([*boxes, None], 64)

        assert all(contains(union, box) for box in boxes)
        assert contains(CropBox(0, 0, 64), union)
        height = max(box.top + box.side for box in boxes) - min(box.top for box in boxes)
        width = max(box.left + box.side for box in boxes) - min(box.left for box in boxes)
        assert union.side == max(height, width)


@pytest.mark.parametrize("hu", [-1024, -1, 0, 37, 3071])
@pytest.mark.parametrize("size", [16, 50, 96])
def test_a_constant_image_stays_constant(hu: int, size: int) -> None:
    image = cropped(np.full((64, 64), hu, np.int16), CropBox(5, 3, 50), size)

    assert image.dtype == np.int16
    assert image.shape == (size, size)
    assert np.all(image == hu)


def test_a_crop_of_the_stored_size_is_the_box_itself() -> None:
    hu = np.random.default_rng(4).integers(-1024, 3072, (64, 64)).astype(np.int16)

    assert np.array_equal(cropped(hu, CropBox(7, 20, 32), 32), hu[7:39, 20:52])


def test_a_crop_shows_the_box_and_not_what_lies_beside_it() -> None:
    hu = np.full((64, 64), 3071, np.int16)
    hu[8:40, 16:48] = 25

    assert np.all(cropped(hu, CropBox(8, 16, 32), 20)[1:-1, 1:-1] == 25)


def test_shrinking_keeps_the_mean_instead_of_picking_pixels() -> None:
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 1000).astype(np.int16)

    small = cropped(checkerboard, CropBox(0, 0, 64), 16)

    assert np.abs(small[1:-1, 1:-1] - 500).max() <= 20


def test_rounding_is_to_the_nearest_hu(tmp_path: Path) -> None:
    hu = head_hu(64, seed=9)
    Image.fromarray(hu.astype(np.float32)).save(tmp_path / "hu.tiff")
    with Image.open(tmp_path / "hu.tiff") as image:
        exact = np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR, box=(2, 1, 62, 61)))

    assert np.abs(cropped(hu, CropBox(1, 2, 60), 40) - exact).max() <= 0.5

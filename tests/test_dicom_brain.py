"""The brain's share, box and crop against slow references of fastai's formulae."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import head_hu
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ichsearch.dicom.brain import CropBox, bounding_square, cropped, locate_brain, union_box
from ichsearch.dicom.windows import BONE, BRAIN, SUBDURAL


def reference_edges(hu: NDArray[np.int16]) -> tuple[int, int, int, int] | None:
    """fastai's `mask_from_blur` tap by tap: first and last row, first and last column of blur / 80 > 0.05."""
    shown = np.clip(hu.astype(np.float64), 0, 80)
    shown[shown == 80] = 0
    sigma = 0.3 * len(hu)
    reach = int(sigma / 4)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    blurred = shown
    for axis in (0, 1):
        blurred = ndimage.correlate1d(blurred, taps / taps.sum(), axis=axis, mode="nearest")
    rows, columns = (np.flatnonzero((blurred > 4).any(axis=axis)) for axis in (1, 0))
    return (rows[0], rows[-1], columns[0], columns[-1]) if len(rows) else None


def assert_box_is_the_references(hu: NDArray[np.int16]) -> None:
    top, bottom, left, right = reference_edges(hu) or (0, 0, 0, 0)
    assert locate_brain(hu)[1] == bounding_square(top, left, bottom + 1, right + 1, len(hu))


def brain_share(hu: NDArray[np.int16]) -> float:
    return locate_brain(hu)[0]


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


@pytest.mark.parametrize("side", [512, 64, 100, 255, 256, 257, 430, 638, 768, 1024])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_box_is_that_of_fastais_blurred_brain_window(side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hu = head_hu(side, seed=seed, centre=(side * rng.uniform(0.3, 0.7), side * rng.uniform(0.3, 0.7)))
    hu[: side // 8] = rng.integers(-1024, 60 + 70 * seed, (side // 8, side))

    assert_box_is_the_references(hu)


def test_faint_and_scattered_brain_has_the_references_box() -> None:
    """Blurs that stay near the threshold for many pixels, where a rough one cannot tell."""
    rng = np.random.default_rng(5)
    for _ in range(60):
        hu = np.full((512, 512), -1000, np.int16)
        for _ in range(3):
            top, left = rng.integers(0, 500, 2)
            height, width = rng.integers(5, 120, 2)
            hu[top : top + height, left : left + width] = rng.integers(1, 80)
        if reference_edges(hu):
            assert_box_is_the_references(hu)
        else:
            assert locate_brain(hu)[1] is None


@pytest.mark.parametrize("side", [512, 511, 510])
@pytest.mark.parametrize("levels", [(0, 1, 2), (0, 0, 0, 17, 79)])
def test_sparse_pixels_and_values_that_round_away_have_the_references_box(side: int, levels: tuple[int, ...]) -> None:
    """What a rough blur loses: halves and quarters of a unit, and a bright rim that is repeated beyond the frame."""
    rng = np.random.default_rng(7)
    for share in (0.02, 0.1, 0.5):
        hu = np.full((side, side), -1000, np.int16)
        part = hu[: rng.integers(side // 8, side), : rng.integers(2, side // 4)]
        part[rng.random(part.shape) < share] = rng.choice(levels)
        part[:1] = rng.choice(levels, part.shape[1])
        part[:, :1] = rng.choice(levels, (len(part), 1))
        hu += 5 * (hu >= 0)
        if reference_edges(hu):
            assert_box_is_the_references(hu)
        else:
            assert locate_brain(hu)[1] is None


def test_a_frame_larger_than_any_of_clinical_ct_has_the_box_of_its_half() -> None:
    hu = head_hu(2048, seed=1, centre=(900.0, 1100.0))

    box = locate_brain(hu)[1]

    top, bottom, left, right = reference_edges(hu) or (0, 0, 0, 0)
    exact = bounding_square(top, left, bottom + 1, right + 1, 2048)
    assert box is not None
    assert np.abs(np.subtract(box, exact)).max() <= 4


@pytest.mark.parametrize("side", [1, 2, 3, 13, 14, 63, 257])
def test_frames_of_any_size_have_a_box(side: int) -> None:
    assert locate_brain(np.full((side, side), 30, np.int16)) == (1.0, CropBox(0, 0, side))


@pytest.mark.parametrize("hu", [-1024, 0, 80, 1000], ids=["air", "black", "white", "bone"])
@pytest.mark.parametrize("side", [64, 512])
def test_air_and_bone_have_no_box(side: int, hu: int) -> None:
    assert locate_brain(np.full((side, side), hu, np.int16)) == (0.0, None)


@pytest.mark.parametrize(("hu", "box"), [(4, None), (5, CropBox(0, 0, 64))])
def test_the_threshold_is_five_percent_of_the_window(hu: int, box: CropBox | None) -> None:
    assert locate_brain(np.full((64, 64), hu, np.int16))[1] == box


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
    top, bottom, left, right = box
    assert bounding_square(top, left, bottom + 1, right + 1, 64) == square


def test_a_series_without_brain_has_the_whole_frame() -> None:
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

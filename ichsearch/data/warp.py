"""Images moved and blurred: by OpenCV, image after image, on a CPU; by torch, the batch at once, on a GPU.

In: (B, K, S, S) float32 images, an affine map and a blur's sigma for each. Out: images of the same form. Both ways
interpolate bilinearly, repeat the border outwards and use the same Gaussian; on a CPU OpenCV takes a fifth of torch's
time (`tests/benchmarks/augmentation.py`).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

BLUR_REACH: Final = 3
"""Sigmas at which a Gaussian is cut off."""

FloatArray = npt.NDArray[np.float32]
FloatMap = npt.NDArray[np.float64]

cv2.setNumThreads(1)  # an image is too small to be shared out; the images of a batch are


def warp(images: Tensor, maps: Tensor, sigma_px: Tensor) -> Tensor:
    """Each image moved, then blurred; all its channels alike.

    Args:
        images: (B, K, S, S) float32 on any device.
        maps: (B, 2, 3) float64 on the CPU: where a pixel of the result, (right, down) of the image's middle, comes
            from; lengths are shares of the side.
        sigma_px: (B,) float32 on the CPU.

    Returns:
        (B, K, S, S) float32 on the same device; `images` themselves if none moves or is blurred.
    """
    if _all_stay(maps) and not sigma_px.any():
        return images
    way = warp_by_image if images.device.type == "cpu" else warp_by_batch
    return way(images, maps, gaussian_taps(sigma_px))


def _all_stay(maps: Tensor) -> bool:
    return torch.equal(maps, torch.eye(2, 3, dtype=maps.dtype).expand_as(maps))


def gaussian_taps(sigma_px: Tensor) -> Tensor:
    """(B, T) weights of each image's Gaussian, zero beyond its own reach; sigma 0 has one tap."""
    reach_px = torch.ceil(BLUR_REACH * sigma_px)[:, None]
    offsets = torch.arange(-int(reach_px.max()), int(reach_px.max()) + 1)[None]
    weights = torch.exp(-0.5 * (offsets / sigma_px.clamp(min=1e-3)[:, None]) ** 2) * (offsets.abs() <= reach_px)
    return weights / weights.sum(dim=1, keepdim=True)


def warp_by_image(images: Tensor, maps: Tensor, taps: Tensor) -> Tensor:
    """`warp` by OpenCV, the images shared out to as many threads as torch has."""
    result = torch.empty_like(images)
    jobs = (images.numpy(), result.numpy(), _pixel_maps(maps, images.shape[-1]), taps.numpy())
    threads = min(torch.get_num_threads(), len(images))
    if threads == 1:
        list(map(_warp_image, *jobs))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(_warp_image, *jobs))
    return result


def _pixel_maps(maps: Tensor, side: int) -> FloatMap:
    """(B, 2, 3) the maps with the origin at the first pixel's middle and lengths in pixels, as OpenCV wants them."""
    linear, shift = maps[:, :, :2].numpy(), maps[:, :, 2:].numpy()
    middle = np.full((2, 1), (side - 1) / 2)
    pixel_maps: FloatMap = np.concatenate([linear, middle - linear @ middle + shift * side], axis=2)
    return pixel_maps


def _warp_image(image: FloatArray, result: FloatArray, pixel_map: FloatMap, taps: FloatArray) -> None:
    """Write the channels of one (K, S, S) image to `result`."""
    side = image.shape[-1]
    moves = not np.array_equal(pixel_map, np.eye(2, 3))
    taps = taps[taps > 0]
    for source, target in zip(image, result, strict=True):
        moved = source
        if moves:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            moved = cv2.warpAffine(source, pixel_map, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        if len(taps) > 1:
            cv2.sepFilter2D(moved, -1, taps, taps, dst=target, borderType=cv2.BORDER_REPLICATE)
        else:
            target[:] = moved


def warp_by_batch(images: Tensor, maps: Tensor, taps: Tensor) -> Tensor:
    """`warp` by torch on the images' device."""
    if not _all_stay(maps):
        grid = _grid(maps.to(images.device, images.dtype), images.shape[-1])
        images = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return _blurred(images, taps.to(images.device)) if taps.shape[1] > 1 else images


def _grid(maps: Tensor, side: int) -> Tensor:
    """(B, S, S, 2) where each pixel comes from, x and y from -1 to 1; `affine_grid` would compute it in TF32."""
    places = (torch.arange(side, device=maps.device) + 0.5) * (2 / side) - 1
    right, down, shift = (maps[:, None, None, :, column] for column in range(3))
    return right * places[None, None, :, None] + down * places[None, :, None, None] + 2 * shift


def _blurred(images: Tensor, taps: Tensor) -> Tensor:
    """Columns, then rows, as one convolution with a group a channel."""
    batch, depth, side, _ = images.shape
    kernels = taps.repeat_interleave(depth, dim=0)[:, None]  # (B * K, 1, T)
    reach = taps.shape[1] // 2
    planes = images.reshape(1, batch * depth, side, side)
    planes = conv2d(pad(planes, (0, 0, reach, reach), mode="replicate"), kernels[..., None], groups=batch * depth)
    planes = conv2d(pad(planes, (reach, reach, 0, 0), mode="replicate"), kernels[:, :, None], groups=batch * depth)
    return planes.reshape(images.shape)

"""Flips, crops and resized crops of batches, of bytes as well as of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from orchestrator.data.augmentation import AugmentationContext, augmentations
from orchestrator.data.scaled_images import PixelScale, images_in_cache
from orchestrator.data.threads import SERIAL_VALUES, in_threads
from pruning.hyperparameters import Between

Array = NDArray[Any]  # bytes or float32, [N, C, H, W]
Window = tuple[int, int, bool]  # (top, left, whether it is flipped)
COPIED_VALUES = 1500  # of an image that is cropped and flipped by copying its rows
FLIPPED_VALUES = 10_000  # of an image that torch flips faster than NumPy copies it
CROP_TRIES = 10  # as in torchvision's RandomResizedCrop, before the crop from the centre
Fraction = Annotated[float, Between(0.0, 1.0, open_low=True)]


@augmentations.register(
    summary="left and right swapped in half of the images", draws_by_micro_batch=True, reads_bytes=True
)
def flip(images: Tensor, context: AugmentationContext) -> Tensor:
    """Swap left and right in half of the images."""
    is_flipped, top, left = _draw_moves(images, context, pad=0)
    values = prod(images.shape[1:])
    if images.device.type == "cpu" and values >= FLIPPED_VALUES:
        return _flipped(images, is_flipped)
    if images.device.type == "cpu" and values >= COPIED_VALUES:
        return _copied_windows(images, top, left, is_flipped)
    return _gathered_windows(images, top, left, is_flipped, pad=0)


@augmentations.register(
    summary="flipped, and moved by up to an eighth of the height",
    paper="He et al., CVPR 2016",
    draws_by_micro_batch=True,
    reads_bytes=True,
)
def crop_flip(images: Tensor, context: AugmentationContext) -> Tensor:
    """Swap left and right in half of the images, and move each by up to an eighth of the height.

    That is 4 pixels at 32 and at 28, and 1 at 8; zeros (the mean colour, once scaled) come in from outside.
    """
    pad = max(1, (images.shape[2] + 4) // 8)
    is_flipped, top, left = _draw_moves(images, context, pad=pad)
    if images.device.type != "cpu" or prod(images.shape[1:]) < COPIED_VALUES:
        return _gathered_windows(context.scaled(images), top, left, is_flipped, pad=pad)
    if (scale := context.byte_scale(images)) is None:
        return _copied_windows(images, top, left, is_flipped)
    return _scaled_windows(images, top, left, is_flipped, scale)


def _draw_moves(images: Tensor, context: AugmentationContext, *, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw whether each image is flipped, and where its window begins, from -pad to pad, [N, 1]."""
    count = len(images)
    draws = (context.choices(below, count) for below in (2, 2 * pad + 1, 2 * pad + 1))
    flips, left, top = context.send(*draws)
    return flips == 1, top - pad, left - pad


def _gathered_windows(images: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor, *, pad: int) -> Tensor:
    """Return the window of each image that begins at (top, left), flipped or not, with zeros from outside."""
    count, channels, height, width = images.shape
    across = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(is_flipped, width - 1 - across, across) + left + pad
    rows = torch.arange(height, device=images.device) + top + pad
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    # One gather over flat pixels: 4 to 6 times the speed of indexing by row and column
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    return padded.gather(2, pixels[:, None, :].expand(count, channels, -1)).view(images.shape)


def _flipped(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Return each image flipped or as it is, image by image, so that each stays in the processor's cache."""
    out, flags, width = (
        torch.empty(images.shape, dtype=images.dtype),
        is_flipped[:, 0].tolist(),
        images.shape[3],
    )
    is_shared = torch.get_num_threads() > 1
    rows = max(1, SERIAL_VALUES // width) if is_shared else prod(images.shape[1:3])

    def work(part: slice) -> None:
        for image, target, flipped in zip(images[part], out[part], flags[part], strict=True):
            if not flipped:
                np.copyto(target.numpy(), image.numpy())
                continue
            runs = image.reshape(-1, width).split(rows), target.view(-1, width).split(rows)
            for run, mirrored in zip(*runs, strict=True):
                mirrored.copy_(run.flip(1))

    in_threads(work, len(images), values=prod(images.shape[1:]))
    return out


def _copied_windows(images: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor) -> Tensor:
    """Return the window of each image that begins at (top, left), flipped or not, with zeros from outside.

    Image by image on the CPU, which copies rows; as fast as a gather from 1,500 values an image on.
    """
    windows, draws = torch.zeros(images.shape, dtype=images.dtype), _per_image(images, top, left, is_flipped)
    _copy_windows(windows.numpy(), images.numpy(), draws)
    return windows


def _scaled_windows(
    images: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor, scale: PixelScale
) -> Tensor:
    """Return the same of bytes, scaled: zeros are not of bytes. A few images at a time, in the cache."""
    scaled, step = torch.empty(images.shape), images_in_cache(images.shape)
    source, target, draws = images.numpy(), scaled.numpy(), _per_image(images, top, left, is_flipped)

    def work(part: slice) -> None:
        windows = np.empty((step, *images.shape[1:]), dtype=np.uint8)
        for start in range(part.start, part.stop, step):
            block = slice(start, min(start + step, part.stop))
            pixels = windows[: block.stop - block.start]
            _copy_windows(pixels, source[block], draws[block])
            scale.write(target[block], pixels)
            _set_outside_to_zero(target[block], draws[block])

    in_threads(work, len(images), values=prod(images.shape[1:]))
    return scaled


def _per_image(images: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor) -> list[Window]:
    """Return where the window of each image begins, at most beside the image, and whether it is flipped."""
    height, width = images.shape[2:]
    down, right = top.clamp(-height, height), left.clamp(-width, width)
    return list(zip(down[:, 0].tolist(), right[:, 0].tolist(), is_flipped[:, 0].tolist(), strict=True))


def _copy_windows(windows: Array, images: Array, draws: Sequence[Window]) -> None:
    """Copy into each window what of it lies inside of its image."""
    height, width = images.shape[2:]
    for image, window, (down, right, flipped) in zip(images, windows, draws, strict=True):
        rows, columns = (
            slice(max(0, -start), side - max(0, start)) for start, side in ((down, height), (right, width))
        )
        pixels = image[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
        (window[:, :, ::-1] if flipped else window)[:, rows, columns] = pixels


def _set_outside_to_zero(windows: Array, draws: Sequence[Window]) -> None:
    """Set to zero what of each window lies outside of its image."""
    height, width = windows.shape[2:]
    for window, (down, right, flipped) in zip(windows, draws, strict=True):
        beside = -right if flipped else right
        if down:
            window[:, slice(0, -down) if down < 0 else slice(height - down, None)] = 0
        if beside:
            window[:, :, slice(0, -beside) if beside < 0 else slice(width - beside, None)] = 0


@augmentations.register(
    summary="a random part of each image, resized to the whole",
    paper="Szegedy et al., CVPR 2015",
    reads_bytes=True,
    rounds_bytes=True,
    revision=2,  # 1 read floats alone
)
def resized_crop(
    images: Tensor, context: AugmentationContext, *, scale: Fraction = 0.08, ratio: Fraction = 0.75
) -> Tensor:
    """Resize a random part of each image to the size of the image, bilinearly, as torchvision does.

    The part has `scale` to 1 of the area, and `ratio` to 1 / `ratio` as width by height, uniform in its
    logarithm. Bytes are rounded to whole numbers, as by torchvision and Pillow; `digits`, and what follows an
    augmentation that is not of bytes, stay floats. It does not flip: `resized_crop + flip` is the usual
    augmentation of ImageNet.
    """
    count, _, height, width = images.shape
    ranges = ((scale, 1.0, CROP_TRIES), (math.log(ratio), -math.log(ratio), CROP_TRIES), (0.0, 1.0, 2))
    draws = [context.fractions(low, high, count, columns) for low, high, columns in ranges]
    parts, aspects, place = context.send(*draws)
    area, aspect = parts * (height * width), _applied(np.exp, aspects)
    heights, widths = (_applied(np.sqrt, size).round() for size in (area / aspect, area * aspect))
    size = _first_that_fits(heights, widths, images, ratio)
    free = torch.stack([height - size[:, 0], width - size[:, 1]], dim=1)
    start = (place * (free + 1)).floor().minimum(free)
    resize = _resized if images.device.type == "cpu" else _sampled
    return resize(images, start, size)


def _applied(function: np.ufunc, values: Tensor) -> Tensor:
    """Return a function of each of a few numbers. On a CPU by NumPy: MKL would wake all threads for them."""
    if values.device.type == "cpu":
        return torch.from_numpy(function(values.numpy()))
    on_device: Tensor = getattr(torch, function.__name__)(values)
    return on_device


def _first_that_fits(heights: Tensor, widths: Tensor, images: Tensor, ratio: float) -> Tensor:
    """Return (height, width) [N, 2] of each image's first crop that fits, else of the largest allowed."""
    height, width = images.shape[2:]
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    largest = min(height, round(width / ratio)), min(width, round(height / ratio))
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    fits_once = fits.any(1, keepdim=True)
    sides = (
        torch.where(fits_once, tries.gather(1, first), float(side))
        for tries, side in zip((heights, widths), largest, strict=True)
    )
    return torch.cat(list(sides), dim=1)


def _resized(images: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """Resize the part of each image, (top, left) `start` and (height, width) `size` [N, 2], on a CPU.

    As torchvision.transforms.v2.functional.resized_crop with antialiasing, to the bit. Torch resizes bytes on
    one thread, so that threads take images of their own, and floats on all.
    """
    resized = torch.empty(images.shape, dtype=images.dtype)
    source, target, parts = images.numpy(), resized.numpy(), torch.cat([start, size], 1).long().tolist()

    def work(part: slice) -> None:
        for image, whole, (top, left, height, width) in zip(
            source[part], target[part], parts[part], strict=True
        ):
            pixels = np.ascontiguousarray(image[:, top : top + height, left : left + width])
            resized_part = functional.interpolate(
                torch.from_numpy(pixels)[None], images.shape[2:], mode="bilinear", antialias=True
            )
            np.copyto(whole, resized_part[0].numpy())

    if images.dtype == torch.uint8:
        in_threads(work, len(images), values=prod(images.shape[1:]))
    else:
        work(slice(0, len(images)))
    return resized


def _sampled(images: Tensor, start: Tensor, size: Tensor) -> Tensor:
    """Resize the part of each image on any device, all at once, in floats that are rounded for bytes."""
    floats = images if images.is_floating_point() else images.to(torch.float32)
    count, _, height, width = images.shape
    rows = _sampled_positions(start[:, 0], size[:, 0], height)
    columns = _sampled_positions(start[:, 1], size[:, 1], width)
    # Filled in: stacking float64 and converting it after takes four times as long.
    grid = torch.empty((count, height, width, 2), dtype=floats.dtype, device=images.device)
    grid[..., 0], grid[..., 1] = columns.to(floats.dtype)[:, None, :], rows.to(floats.dtype)[:, :, None]
    sampled = functional.grid_sample(floats, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled if floats is images else sampled.round_().to(images.dtype)


def _sampled_positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return where `size` pixels of a crop are read, [N, size] in [-1, 1] between the first and last pixel.

    As torch's `interpolate` resizes the crop alone: nothing outside of it is read.
    """
    pixel = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    inside = (pixel * (length / size)[:, None] - 0.5).clamp(min=0.0).minimum(length[:, None] - 1)
    return 2 * (start[:, None] + inside) / max(size - 1, 1) - 1

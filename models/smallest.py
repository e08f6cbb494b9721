"""Whether a network runs on images of a size, and the smallest size on which it does."""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 512  # pixels: a network that needs larger images is refused without a size


def check_images(label: str, net: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Raise ValueError, with the smallest size that works, where a network cannot take such images.

    The network is on `meta`, so that nothing is computed.
    """
    problem = _problem(net, input_shape)
    if not problem:
        return
    channels, height, width = input_shape
    smallest = _smallest(net, channels)
    if smallest > max(height, width) or smallest > min(height, width):
        advice = f"it takes images from {smallest}x{smallest} up" if smallest <= LARGEST else problem
    else:
        advice = problem
    raise ValueError(f"{label} cannot take images of {height}x{width}: {advice}")


def _smallest(net: nn.Module, channels: int) -> int:
    """Return the smallest side, in pixels, of square images that the network takes; LARGEST + 1 for none."""
    low, high = 1, LARGEST + 1
    while low < high:
        middle = (low + high) // 2
        if _problem(net, (channels, middle, middle)):
            low = middle + 1
        else:
            high = middle
    return low


@torch.no_grad()
def _problem(net: nn.Module, shape: tuple[int, int, int]) -> str:
    try:
        net(torch.empty((2, *shape), device="meta"))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ""

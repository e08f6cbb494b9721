"""Whether a network runs on images of a size, and the smallest size on which it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 512  # pixels: a network that needs larger images is refused without a size
Shape = tuple[int, int, int]


def check_images(label: str, net: nn.Module, input_shape: Shape, *, native: str = "") -> None:
    """Raise ValueError, with the smallest size that works, where a network cannot take such images.

    The network is on `meta`, so that nothing is computed. `native` is the size for which it was made, if that
    is known.
    """
    reason = problem(net, input_shape)
    if not reason:
        return
    channels, height, width = input_shape
    smallest = _smallest(net, channels)
    if min(height, width) < smallest <= LARGEST:
        reason = f"it takes images from {smallest}x{smallest} up"
    elif native:
        reason += f"; it is made for {native}"
    raise ValueError(f"{label} cannot take images of {height}x{width}: {reason}")


@torch.no_grad()
def problem(net: nn.Module, input_shape: Shape) -> str:
    """Return why a network on `meta` does not run on such images; "" if it does."""
    try:
        with torch.device("meta"):
            logits = net(torch.empty((2, *input_shape)))
    except Exception as error:  # noqa: BLE001  # whatever another library's code raises for a size
        return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
    return "" if isinstance(logits, Tensor) and logits.dim() == 2 else "it does not return one row of logits"


def _smallest(net: nn.Module, channels: int) -> int:
    """Return the smallest side of square images that the network takes; LARGEST + 1 where no size is one.

    A network that takes multiples of a size alone has none.
    """
    low, high = 1, LARGEST + 1
    while low < high:
        middle = (low + high) // 2
        if problem(net, (channels, middle, middle)):
            low = middle + 1
        else:
            high = middle
    return LARGEST + 1 if problem(net, (channels, low + 1, low + 1)) else low

"""A plain convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from models.mlp import check_widths

SMALLEST = 8  # pixels, each side


def cnn(
    input_shape: tuple[int, int, int], num_classes: int, *, widths: Sequence[int] = (32, 64, 128)
) -> nn.Module:
    """Blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pool, then a global average and a linear layer.

    One block per width; a block pools only while its map is at least 2 pixels each way. Images from 8x8 up.
    """
    channels, side = input_shape[0], min(input_shape[1:])
    if side < SMALLEST:
        raise ValueError(
            f"cnn takes images from {SMALLEST}x{SMALLEST} up, not {input_shape[1]}x{input_shape[2]}"
        )
    blocks = nn.Sequential()
    for width in check_widths(widths):
        blocks.append(_block(channels, width, pool=side >= 2))
        channels, side = width, side // 2
    tail = OrderedDict(
        average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), output=nn.Linear(channels, num_classes)
    )
    return nn.Sequential(OrderedDict(blocks=blocks, **tail))


def _block(ins: int, outs: int, *, pool: bool) -> nn.Module:
    # No bias: the batch norm that follows has its own.
    block = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(ins, outs, 3, padding=1, bias=False), norm=nn.BatchNorm2d(outs), relu=nn.ReLU()
        )
    )
    if pool:
        block.add_module("pool", nn.MaxPool2d(2))
    return block

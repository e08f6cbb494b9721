"""VGG networks (Simonyan & Zisserman, ICLR 2015) as the pruning literature runs them on 32x32 images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from models.options import check_integer, check_member, draw_convolutions

WIDTHS = (1, 2, 4, 8, 8)  # of the five stages, times `width`
# Depth -> 3x3 convolutions in each stage (table 1 of the paper: A, B, D, E).
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    input_shape: tuple[int, int, int], num_classes: int, *, depth: int = 16, width: int = 64
) -> nn.Module:
    """A VGG with batch norm, and one linear layer behind instead of three (Li et al., ICLR 2017).

    `depth` is 11, 13, 16 or 19; `width` is that of the first stage, 64 in the paper. A stage ends with a max
    pool while its map has at least 2 pixels each way, so that images of any size fit.
    """
    check_member("depth", depth, STAGES)
    channels, side = input_shape[0], min(input_shape[1:])
    features = nn.Sequential()
    for factor, count in zip(WIDTHS, STAGES[depth], strict=True):
        for _ in range(count):
            outs = factor * check_integer("width", width)
            # No bias: the batch norm that follows has its own.
            features.append(nn.Conv2d(channels, outs, 3, padding=1, bias=False))
            features.append(nn.BatchNorm2d(outs))
            features.append(nn.ReLU())
            channels = outs
        if side >= 2:
            features.append(nn.MaxPool2d(2))
            side //= 2
    draw_convolutions(features)
    tail = OrderedDict(
        average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), output=nn.Linear(channels, num_classes)
    )
    return nn.Sequential(OrderedDict(features=features, **tail))

"""DenseNet-121 (Huang et al., CVPR 2017) as torchvision has it, with a stem for small images."""

from __future__ import annotations

import re

from torch import nn

SMALLEST = 8  # pixels, each side: three transitions halve the map
SMALL_STEM_BELOW = 64  # pixels: torchvision's own stem halves twice more
FORMER_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")


def densenet121(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """torchvision's densenet121, randomly initialised, for any number of image channels.

    Below 64 pixels the 7x7 stride-2 stem and its max pool become a 3x3 stride-1 convolution and an identity,
    under the same names (`features.conv0`, `features.pool0`). Images from 8x8 up.
    """
    # Here, not above: torchvision takes over a second to import, and the other models do not need it.
    from models.torchvision_compat import models

    channels, side = input_shape[0], min(input_shape[1:])
    if side < SMALLEST:
        raise ValueError(
            f"densenet121 takes images from {SMALLEST}x{SMALLEST} up, not {input_shape[1]}x{input_shape[2]}"
        )
    net: nn.Module = models.densenet121(weights=None, num_classes=num_classes)
    features = net.get_submodule("features")
    small = side < SMALL_STEM_BELOW
    if small:
        features.pool0 = nn.Identity()
    if small or channels != 3:
        features.conv0 = _stem(channels, small=small)
    return net


# The layers are torchvision's, so its version is part of a result's key.
densenet121.__dict__["built_from"] = ("torchvision",)


def current_name(name: str) -> str:
    """Return a tensor's name in torchvision's densenet; in its pre-trained files `norm1` is `norm.1`."""
    return FORMER_NAME.sub(r"\1\2", name)


def _stem(channels: int, *, small: bool) -> nn.Conv2d:
    kernel, stride = (3, 1) if small else (7, 2)
    conv = nn.Conv2d(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)  # torchvision's own initialisation
    return conv

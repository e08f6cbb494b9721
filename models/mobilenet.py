"""MobileNetV2 (Sandler et al., CVPR 2018) for small images, with names of tensors that are torchvision's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.options import check_positive, draw_convolutions

# Expansion, channels, blocks, stride of the first (table 2 of the paper). The stride of the second row is 2
# there, as is the first convolution's: 32x32 images would be 1x1 at the end.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280
DROPOUT = 0.2


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise convolution, a linear 1x1 projection; a shortcut where possible."""

    def __init__(self, ins: int, outs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = ins * expansion
        layers = [_layer(ins, hidden, 1)] if expansion != 1 else []
        layers.append(_layer(hidden, hidden, 3, stride=stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, outs, 1, bias=False), nn.BatchNorm2d(outs))
        self.has_shortcut = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """`features`, an average, and a `classifier` of dropout and one linear layer."""

    def __init__(self, channels: int, num_classes: int, width: float) -> None:
        super().__init__()
        ins = scaled(FIRST, width)
        features: list[nn.Module] = [_layer(channels, ins, 3)]
        for expansion, outs, count, stride in STAGES:
            for index in range(count):
                block = InvertedResidual(ins, scaled(outs, width), 1 if index else stride, expansion)
                features.append(block)
                ins = scaled(outs, width)
        last = scaled(LAST, max(1.0, width))
        self.features = nn.Sequential(*features, _layer(ins, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(last, num_classes))
        draw_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def mobilenet_v2(input_shape: tuple[int, int, int], num_classes: int, *, width: float = 1.0) -> nn.Module:
    """MobileNetV2 for small images: the first two of its five strides are 1.

    `width` multiplies the channels, which are rounded to multiples of 8.
    """
    return MobileNetV2(input_shape[0], num_classes, check_positive("width", width))


def _canonical(options: dict[str, Any]) -> dict[str, Any]:  # literals
    return {**options, "width": check_positive("width", options["width"])}  # 1 is 1.0


mobilenet_v2.__dict__["canonical"] = _canonical


def scaled(channels: int, width: float) -> int:
    """Return the multiple of 8 nearest to channels x width, at least 8 and not below 90% of it."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels * width else nearest


def _layer(ins: int, outs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(ins, outs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), nn.ReLU6())

"""Residual networks (He et al., CVPR 2016) for small images: those of the CIFAR experiments, 18 and 50.

Names of tensors are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.options import check_integer, check_member, draw_convolutions

Shape = tuple[int, int, int]
Block = Callable[[int, int, int], nn.Module]  # channels in, width and stride -> a block
EXPANSION = 4  # of a bottleneck's width


class ZeroPadding(nn.Module):
    """The parameter-free shortcut (option A): every second pixel, and zeros for the further channels.

    The zeros come last: channel i of the input is channel i of the output, also once channels are cut out.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, channels: int) -> Tensor:
        x = F.avg_pool2d(x, 1, self.stride)  # every pixel an average of itself
        return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, ins: int, width: int, stride: int, *, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(ins, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + _shortcut_of(self.downsample, x, out.shape[1])).relu()


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 (with the stride, as in torchvision) and 1x1, and a shortcut."""

    def __init__(self, ins: int, width: int, stride: int, *, shortcut: str) -> None:
        super().__init__()
        outs = EXPANSION * width
        self.conv1 = nn.Conv2d(ins, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outs)
        self.downsample = _shortcut(ins, outs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + _shortcut_of(self.downsample, x, out.shape[1])).relu()


class ResNet(nn.Module):
    """A 3x3 convolution, stages `layer1`, ... of which all but the first halve the map, an average, `fc`."""

    def __init__(
        self, channels: int, num_classes: int, block: Block, widths: Sequence[int], counts: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        ins = widths[0]
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        for stage, width, count in zip(self.stages, widths, counts, strict=True):
            blocks = nn.Sequential()
            for index in range(count):
                stride = 2 if index == 0 and stage != "layer1" else 1
                blocks.append(block(ins, width, stride))
                ins = _outs(blocks[-1])
            self.add_module(stage, blocks)
        self.fc = nn.Linear(ins, num_classes)
        draw_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def resnet(input_shape: Shape, num_classes: int, *, depth: int = 20, shortcut: str = "A") -> nn.Module:
    """The residual network of He et al.'s CIFAR experiments: 16, 32, 64 channels in three stages.

    `depth` is 6n + 2: 20, 32, 44, 56 or 110 in the paper. `shortcut` where the width changes: A pads with
    zeros, as in the paper's CIFAR experiments; B is a 1x1 convolution with batch norm.
    """
    if check_integer("depth", depth) < 8 or (depth - 2) % 6:
        raise ValueError(f"depth is {depth}; give 6n + 2, such as 20, 32, 44, 56 or 110")
    check_member("shortcut", shortcut, ("A", "B"))
    block = partial(BasicBlock, shortcut=shortcut)
    return ResNet(input_shape[0], num_classes, block, (16, 32, 64), (depth // 6,) * 3)


def resnet18(input_shape: Shape, num_classes: int) -> nn.Module:
    """ResNet-18 with a stem for small images: a 3x3 convolution, and no max pool.

    Otherwise as `torchvision.resnet18`, with the same names of tensors.
    """
    block = partial(BasicBlock, shortcut="B")
    return ResNet(input_shape[0], num_classes, block, (64, 128, 256, 512), (2, 2, 2, 2))


def resnet50(input_shape: Shape, num_classes: int) -> nn.Module:
    """ResNet-50 with a stem for small images: a 3x3 convolution, and no max pool.

    Otherwise as `torchvision.resnet50`, with the same names of tensors.
    """
    block = partial(Bottleneck, shortcut="B")
    return ResNet(input_shape[0], num_classes, block, (64, 128, 256, 512), (3, 4, 6, 3))


def _shortcut(ins: int, outs: int, stride: int, option: str) -> nn.Module | None:
    if ins == outs and stride == 1:
        return None
    if option == "A":
        return ZeroPadding(stride)
    return nn.Sequential(nn.Conv2d(ins, outs, 1, stride=stride, bias=False), nn.BatchNorm2d(outs))


def _shortcut_of(shortcut: nn.Module | None, x: Tensor, channels: int) -> Tensor:
    if shortcut is None:
        return x
    out: Tensor = shortcut(x, channels) if isinstance(shortcut, ZeroPadding) else shortcut(x)
    return out


def _outs(block: nn.Module) -> int:
    norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    assert isinstance(norm, nn.BatchNorm2d)
    return norm.num_features

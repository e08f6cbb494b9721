"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from models.options import check_integer, draw_convolutions

STAGES = (16, 32, 64)  # channels, times the width


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; the shortcut is a 1x1 one where shapes differ.

    That convolution reads what the first of the two reads, as in the authors' code.
    """

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(ins)
        self.conv1 = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        same = ins == outs and stride == 1
        self.shortcut = None if same else nn.Conv2d(ins, outs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        out: Tensor = self.conv2(self.bn2(self.conv1(active)).relu())
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 convolution to 16 channels, three stages of blocks, batch norm, ReLU, an average, `output`."""

    def __init__(self, channels: int, num_classes: int, *, blocks: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, STAGES[0], 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        ins = STAGES[0]
        for number, outs in enumerate(width * stage for stage in STAGES):
            for index in range(blocks):
                self.blocks.append(WideBlock(ins, outs, 2 if number and not index else 1))
                ins = outs
        self.norm = nn.BatchNorm2d(ins)
        self.output = nn.Linear(ins, num_classes)
        draw_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.conv(images))).relu()
        logits: Tensor = self.output(x.mean((2, 3)))
        return logits


def wide_resnet(
    input_shape: tuple[int, int, int], num_classes: int, *, depth: int = 16, width: int = 4
) -> nn.Module:
    """WRN-depth-width, without dropout: `width` times 16, 32, 64 channels in three pre-activation stages.

    `depth` is 6n + 4: 16, 22, 28 or 40 in the paper.
    """
    if check_integer("depth", depth) < 10 or (depth - 4) % 6:
        raise ValueError(f"depth is {depth}; give 6n + 4, such as 16, 22, 28 or 40")
    blocks = (depth - 4) // 6
    return WideResNet(input_shape[0], num_classes, blocks=blocks, width=check_integer("width", width))

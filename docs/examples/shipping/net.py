from torch import nn


class Block(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def small(input_shape, num_classes, *, width=16):
    return nn.Sequential(
        Block(input_shape[0], width),
        nn.MaxPool2d(2),
        Block(width, 2 * width),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, num_classes),
    )

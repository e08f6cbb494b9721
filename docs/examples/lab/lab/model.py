"""A model: a function of the image shape and the number of classes."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn


class Maxout(nn.Module):
    """One hidden layer; each unit is the maximum of several linear units."""

    def __init__(self, features: int, units: int, pieces: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(features, units) for _ in range(pieces))
        self.output = nn.Linear(units, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        highest = self.hidden[0](x)
        for piece in self.hidden[1:]:
            highest = highest.maximum(piece(x))
        logits: Tensor = self.output(highest)
        return logits


def maxout(
    input_shape: tuple[int, int, int], num_classes: int, *, units: int = 32, pieces: int = 2
) -> nn.Module:
    """A maxout network with one hidden layer (Goodfellow et al., ICML 2013)."""
    if units < 1 or pieces < 1:
        raise ValueError(f"units is {units} and pieces is {pieces}; give 1 or more of each")
    return Maxout(prod(input_shape), units, pieces, num_classes)

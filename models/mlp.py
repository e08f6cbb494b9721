"""The perceptrons: one linear layer (`slp`), or several with ReLU between them (`mlp`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

LARGEST = 10**9  # beyond it torch's own errors speak of overflow and not of widths


class MLP(nn.Module):
    """Linear layers with a ReLU between them; `hidden.0` ... and `output`."""

    def __init__(self, features: int, widths: Sequence[int], num_classes: int, *, bias: bool) -> None:
        super().__init__()
        ins = [features, *widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(ins, widths, strict=False))
        self.output = nn.Linear(ins[-1], num_classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        logits: Tensor = self.output(x)
        return logits


def slp(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """One linear layer with a bias; its prunable units are input features."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(prod(input_shape), num_classes)))


def mlp(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    widths: Sequence[int] = (1000, 1000, 500, 200),
    bias: bool = False,
) -> nn.Module:
    """A fully connected ReLU network with hidden `widths`; without biases unless `bias`."""
    if not isinstance(bias, bool):
        raise ValueError(f"bias is {bias!r}; give True or False")
    return MLP(prod(input_shape), check_widths(widths), num_classes, bias=bias)


def check_widths(widths: object) -> tuple[int, ...]:
    """Return `widths` as a tuple. ValueError unless it is a list of integers from 1 to LARGEST."""
    values = tuple(widths) if isinstance(widths, (list, tuple)) else ()
    if not values or not all(type(width) is int and 0 < width <= LARGEST for width in values):
        raise ValueError(f"widths is {widths!r:.200}; give a list of positive integers such as [256, 256]")
    return values

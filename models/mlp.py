"""The multi-layer perceptron; by default the bias-free one often used to set weight against unit pruning."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from models.widths import checked_widths


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
    return MLP(prod(input_shape), checked_widths(widths), num_classes, bias=bias)

"""The single-layer perceptron: softmax regression, no hidden layer."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import nn


def slp(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """One linear layer with a bias; its prunable units are input features."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), output=nn.Linear(prod(input_shape), num_classes)))

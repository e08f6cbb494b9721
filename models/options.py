"""Checks of the options of models, and the initial weights that convolutional networks share."""

from __future__ import annotations

from collections.abc import Collection
from math import isfinite

from torch import nn

LARGEST = 10**9  # beyond it torch's own errors speak of overflow and not of widths


def check_integer(name: str, value: object) -> int:
    """Return an option that is an integer from 1 up. ValueError for anything else."""
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"{name} is {value!r:.80}; give a positive integer")
    return value


def check_positive(name: str, value: object) -> float:
    """Return an option that is a number above 0. ValueError for anything else."""
    if type(value) not in (int, float) or not isfinite(value) or not 0 < value <= LARGEST:  # type: ignore[arg-type,operator]
        raise ValueError(f"{name} is {value!r:.80}; give a number above 0")
    return float(value)  # type: ignore[arg-type]


def check_member(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError for an option that is none of a few values."""
    if not any(type(value) is type(member) and value == member for member in allowed):  # 11.0 equals 11
        *first, last = map(str, allowed)
        raise ValueError(f"{name} is {value!r:.80}; give {', '.join(first)} or {last}")


def draw_convolutions(net: nn.Module) -> None:
    """Draw the filters of all convolutions from He et al.'s normal distribution (2015, eq. 14; fan out)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

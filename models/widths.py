"""The `widths` option: units per hidden layer, channels per block."""

from __future__ import annotations


def checked_widths(widths: object) -> tuple[int, ...]:
    """`widths` as a tuple; raises ValueError unless it is a non-empty list of positive integers."""
    values = tuple(widths) if isinstance(widths, (list, tuple)) else ()
    if not values or not all(type(width) is int and width > 0 for width in values):
        raise ValueError(f"widths is {widths!r}; give a list of positive integers such as [256, 256]")
    return values

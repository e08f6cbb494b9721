"""The `widths` option: units per hidden layer, channels per block."""

from __future__ import annotations

LARGEST = 10**9  # beyond, torch's own errors are of its numbers' overflow


def checked_widths(widths: object) -> tuple[int, ...]:
    """`widths` as a tuple; raises ValueError unless it is a list of integers, 1 to LARGEST."""
    values = tuple(widths) if isinstance(widths, (list, tuple)) else ()
    if not values or not all(type(width) is int and 0 < width <= LARGEST for width in values):
        raise ValueError(f"widths is {widths!r:.200}; give a list of positive integers such as [256, 256]")
    return values

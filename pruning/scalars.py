"""Numbers as people hand them over: Python's own, numpy's scalars, tensors without a dimension.

`np.float32(0.1)` is the float that it holds, 0.10000000149011612, not the decimal that was written.
"""

from __future__ import annotations

import operator
from contextlib import suppress
from numbers import Real


def plain(value: object) -> object:
    """A scalar of numpy or torch as Python's; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if getattr(value, "ndim", None) == 0 and callable(item) else value


def real_number(value: object) -> float | None:
    """`float(value)`; None for what is no real number, for bools, and beyond what a float holds."""
    value = plain(value)
    with suppress(OverflowError):
        return None if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    return None


def whole_number(value: object) -> int | None:
    """The int that a value stands for; None for what is none, such as 3.0, and for bools."""
    value = plain(value)
    with suppress(TypeError):
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    return None

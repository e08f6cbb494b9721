"""What Ray offers no option for is replaced in its modules, for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(place: Any, **values: Any) -> Iterator[None]:  # a module or a class, and whatever it holds
    """Within the block the attributes of `place` have these values."""
    before = {name: getattr(place, name) for name in values}
    for name, value in values.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)

"""Whether builders load trained weights: not on `meta`, and not where any weights will do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_IS_WANTED = ContextVar("trained weights are wanted", default=True)


@contextmanager
def random_weights() -> Iterator[None]:
    """Within the block networks have random weights also where their text names trained ones."""
    token = _IS_WANTED.set(False)
    try:
        yield
    finally:
        _IS_WANTED.reset(token)


def loads_weights() -> bool:
    """Return whether a builder loads the trained weights that its options name."""
    return _IS_WANTED.get() and torch.empty(0).device.type != "meta"

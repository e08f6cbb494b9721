"""Fewer looks for garbage while a store answers with thousands of runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (100_000, 20, 100)  # objects made between two looks, and looks between deeper ones


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Garbage is looked for rarely within the block.

    A page of runs is a hundred thousand small objects that live as long as the page; looking through them
    again and again took three fifths of the time of reading ten thousand runs.
    """
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)

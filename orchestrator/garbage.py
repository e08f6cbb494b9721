"""When Python looks for garbage: rarely, where much is made that stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects made between two looks, and looks between deeper ones.
USUALLY = (700, 10, 10)
RARELY = (100_000, 20, 100)


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Garbage is looked for rarely within the block.

    What imports and pages of runs make are hundreds of thousands of small objects that stay. Looking
    through them again and again took a sixth of all importing, and three fifths of reading 10,000 runs.
    """
    with _every(RARELY):
        yield


@contextmanager
def collected_again() -> Iterator[None]:
    """Within such a block: as Python does by itself, but never in what is there by now; at its end, all."""
    gc.freeze()
    try:
        with _every(USUALLY):
            yield
    finally:
        gc.collect()  # before the memory of what comes next is added to it


@contextmanager
def _every(counts: tuple[int, int, int]) -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*counts)
    try:
        yield
    finally:
        gc.set_threshold(*before)

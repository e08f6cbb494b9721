"""The dense networks behind the settings of a table: each seed's counts once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def dense_sets(settings: Sequence[DataFrame]) -> list[tuple[int, DataFrame]]:
    """The rows to average, one per seed, and before which of the settings their mean is told.

    One set of all seeds where each seed has one dense network, though some settings lack a seed; else a
    set for each choice of networks.
    """
    import pandas

    if not settings:
        return []
    key = "dense_key" if all("dense_key" in rows for rows in settings) else "seed"
    every = pandas.concat(list(settings)).drop_duplicates(key)
    if every["seed"].is_unique:
        return [(0, every)]
    seen: set[tuple[str, ...]] = set()
    sets = []
    for number, rows in enumerate(settings):
        names = tuple(sorted(map(str, rows[key])))
        if names not in seen:
            seen.add(names)
            sets.append((number, rows))
    return sets

"""Signs beside a mean: trials at chance, layers without a living weight, seeds that were stopped early."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.comparing.setting import STOPPED

if TYPE_CHECKING:
    from pandas import DataFrame

AT_CHANCE, EMPTY, SURVIVORS = "†", "‡", "§"
MEANINGS = {
    AT_CHANCE: "at chance on validation images, at least one seed",
    EMPTY: "a layer without a living weight, at least one seed",
    SURVIVORS: "the mean of survivors: other seeds of this setting were stopped early",
}


def marks(rows: DataFrame) -> str:
    """The signs of a setting, from its rows as `settings` yields them; "" where nothing is to be said."""
    signs = AT_CHANCE if count(rows, "at_chance") else ""
    signs += EMPTY if count(rows, "empty_layers") else ""
    return signs + (SURVIVORS if rows.attrs.get(STOPPED) else "")


def dense_marks(rows: DataFrame) -> str:
    """The sign of the dense networks behind a setting's rows; "" where they are better than chance."""
    return AT_CHANCE if count(rows, "dense_at_chance") else ""


def count(rows: DataFrame, column: str) -> int:
    """How many seeds have it; 0 for results of before it was recorded."""
    return int(rows[column].fillna(False).astype(bool).sum()) if column in rows else 0


def legend(texts: Iterable[str]) -> str:
    """What the signs in these texts mean; "" without signs."""
    whole = "".join(texts)
    return "; ".join(f"{sign} {meaning}" for sign, meaning in MEANINGS.items() if sign in whole)

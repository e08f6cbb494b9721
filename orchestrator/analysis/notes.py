"""Marks beside means, and settings stopped early on every seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.settings import (
    NETWORK,
    STOPPED,
    amount_label,
    method_label,
    panel_title,
    point_label,
    setting_columns,
)

if TYPE_CHECKING:
    from pandas import DataFrame


AT_CHANCE, EMPTY, SURVIVORS = "†", "‡", "§"
MEANINGS = {
    AT_CHANCE: "at chance on validation images, at least one seed",
    EMPTY: "a layer without a living weight, at least one seed",
    SURVIVORS: "the mean of survivors: other seeds of this setting were stopped early",
}


def marks(rows: DataFrame) -> str:
    """Return the signs of a setting, from its rows as `settings` yields them; "" where none applies."""
    signs = AT_CHANCE if count_seeds(rows, "at_chance") else ""
    signs += EMPTY if count_seeds(rows, "empty_layers") else ""
    return signs + (SURVIVORS if rows.attrs.get(STOPPED) else "")


def dense_marks(rows: DataFrame) -> str:
    """Return the sign of the dense networks behind a setting's rows; "" where they are better than chance."""
    return AT_CHANCE if count_seeds(rows, "dense_at_chance") else ""


def count_seeds(rows: DataFrame, column: str) -> int:
    """Return for how many seeds a column is true; 0 for results of versions that did not record it."""
    return int(rows[column].fillna(False).astype(bool).sum()) if column in rows else 0


def legend(texts: Iterable[str]) -> str:
    """Return what the signs in these texts mean; "" without signs."""
    text = "".join(texts)
    return "; ".join(f"{sign} {meaning}" for sign, meaning in MEANINGS.items() if sign in text)


MOST_SETTINGS = 20  # that a note names


@dataclass(frozen=True)
class StoppedSetting:
    """A setting with its rows of every status; at least one was stopped early."""

    label: str
    rows: DataFrame

    def count(self, status: str) -> int:
        """Return how many seeds have this status."""
        return int((self.rows["status"] == status).sum())

    @property
    def at_every_seed(self) -> bool:
        """Whether no seed has finished, and none is left to run."""
        return not self.count("finished") and not self.count("missing")


def stopped_settings(results: DataFrame) -> Iterator[StoppedSetting]:
    """Yield every setting of which a seed was stopped early, in the order of the plan."""
    if not (results["status"] == "stopped").any():
        return
    columns = setting_columns(results)
    has_networks = results.groupby(list(NETWORK), dropna=False).ngroups > 1
    is_search = bool(results.attrs.get("objectives"))
    for values, rows in results.groupby(columns, sort=False, dropna=False):
        if not (rows["status"] == "stopped").any():
            continue
        setting = dict(zip(columns, values, strict=True))
        method = point_label(setting) if is_search else method_label(setting)
        network = f", {panel_title(setting)}" if has_networks else ""
        yield StoppedSetting(f"{method} at {amount_label(rows)}{network}", rows)


def stopped_note(results: DataFrame) -> str:
    """Return a sentence on the settings that are in no table; "" where there are none."""
    texts = [_text(setting) for setting in stopped_settings(results) if setting.at_every_seed]
    if not texts:
        return ""
    rest = f"; and {len(texts) - MOST_SETTINGS} more" if len(texts) > MOST_SETTINGS else ""
    return f"Stopped at every seed, and so in no table: {'; '.join(texts[:MOST_SETTINGS])}{rest}."


def _text(stopped: StoppedSetting) -> str:
    count, failed = stopped.count("stopped"), stopped.count("failed")
    seeds = f"{count} seed" if count == 1 else f"{count} seeds"
    return f"{stopped.label} ({seeds}{f', {failed} more failed' if failed else ''})"

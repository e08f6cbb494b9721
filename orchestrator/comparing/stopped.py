"""Settings of which no seed has finished, because all were stopped early: in no table, so told beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.setting import (
    amount_label,
    method_label,
    panel_title,
    point_label,
    setting_columns,
)

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_SETTINGS = 20


@dataclass(frozen=True)
class Stopped:
    """A setting with its rows of every status; at least one was stopped early."""

    label: str
    rows: DataFrame

    def count(self, status: str) -> int:
        return int((self.rows["status"] == status).sum())

    @property
    def at_every_seed(self) -> bool:
        """Whether none has finished and none may still."""
        return not self.count("finished") and not self.count("missing")


def stopped_settings(results: DataFrame) -> Iterator[Stopped]:
    """Every setting of which a seed was stopped, in the order of the plan."""
    if not (results["status"] == "stopped").any():
        return
    columns = setting_columns(results)
    several = results.groupby(["model", "dataset", "batch_size"], dropna=False).ngroups > 1
    for values, rows in results.groupby(columns, sort=False, dropna=False):
        setting = dict(zip(columns, values, strict=True))
        found = Stopped(_label(setting, rows, has_network=several), rows)
        if found.count("stopped"):
            yield found


def stopped_note(results: DataFrame) -> str:
    """A sentence on the settings that are in no table; "" where there are none."""
    texts = [_text(one) for one in stopped_settings(results) if one.at_every_seed]
    if not texts:
        return ""
    more = f"; and {len(texts) - MOST_SETTINGS} more" if len(texts) > MOST_SETTINGS else ""
    return f"Stopped at every seed, and so in no table: {'; '.join(texts[:MOST_SETTINGS])}{more}."


def _text(stopped: Stopped) -> str:
    count, failed = stopped.count("stopped"), stopped.count("failed")
    seeds = f"{count} seed" if count == 1 else f"{count} seeds"
    return f"{stopped.label} ({seeds}{f', {failed} more failed' if failed else ''})"


def _label(setting: Mapping[str, object], rows: DataFrame, *, has_network: bool) -> str:
    is_search = bool(rows.attrs.get("objectives"))
    method = point_label(setting) if is_search else method_label(setting)
    label = f"{method} at {amount_label(rows)}"
    return f"{label}, {panel_title(setting)}" if has_network else label

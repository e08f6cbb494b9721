"""Differences between methods along each axis, paired by seed, with Holm's correction within a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pandas import DataFrame

from orchestrator.analysis.intervals import Interval
from orchestrator.analysis.paired import LEVEL, holm
from orchestrator.analysis.rankings import gain_at, orders

Record = dict[str, Any]  # what JSON holds
AXES = ("amount", "sparsity", "parameters", "effective", "physical")
GRANULARITIES = (("weights", "units"), ("weights", "channels"), ("units", "channels"))
CHOICES = (
    ("weights", "weights, taylor"),
    ("weights", "weights, random"),
    ("weights, taylor", "weights, random"),
    ("channels", "channels, taylor"),
    ("channels", "channels, random"),
    ("weights", "weights, global"),
)


def interval_record(mean: Interval | None) -> Record:
    """Return an interval as JSON: fractions with six digits, `p` as it is; empty for None."""
    if mean is None:
        return {}
    ends = {"low": mean.low, "high": mean.high}
    return {
        "mean": round(mean.mean, 6),
        **{name: None if value is None else round(value, 6) for name, value in ends.items()},
        "cut": mean.is_cut,
        "n": mean.count,
        "p": mean.p,
    }


def all_pairs(rows: DataFrame, axes: Sequence[str] = AXES) -> list[Record]:
    """Return the mean gain of every method over every other along each axis, a record per panel and pair."""
    records = []
    for panel, of_panel in rows.groupby("panel", sort=False):
        # A column that tells rows apart would make methods of them.
        for order in orders(of_panel.drop(columns=["panel", "requested"]), axes):
            gains = {axis: interval_record(gain) for axis, gain in order.gains.items()}
            records.append({"panel": panel, "first": order.first, "second": order.second, "gains": gains})
    return records


def of_names(pairs: Sequence[Record], names: Sequence[tuple[str, str]]) -> list[Record]:
    """Return the pairs of methods of these names."""
    return [pair for pair in pairs if (pair["first"], pair["second"]) in names]


def correct(pairs: Sequence[Record]) -> int:
    """Write Holm's p-values into the gains of these pairs, one family; return the number of tests."""
    gains = [gain for pair in pairs for gain in pair["gains"].values() if gain.get("p") is not None]
    for gain, p in zip(gains, holm([gain["p"] for gain in gains]), strict=True):
        gain["p_holm"] = p
    return len(gains)


def sign(gain: Record) -> int:
    """Return 1 or -1 where a gain differs from 0 after the correction, 0 otherwise."""
    p = gain.get("p_holm")
    return 0 if p is None or p > LEVEL else (1 if gain["mean"] > 0 else -1)


def turns(pair: Record) -> bool:
    """Whether its first method is ahead along one axis and behind along another, after the correction."""
    return {1, -1} <= {sign(gain) for gain in pair["gains"].values()}


def gain_at_points(rows: DataFrame, points: Sequence[tuple[str, str, str, str, float]]) -> list[Record]:
    """Return the gains at (panel, first, second, axis, value), for those that both methods reach."""
    records = []
    for panel, first, second, axis, value in points:
        of_panel = rows[rows["panel"] == panel]
        lines = [of_panel[of_panel["technique"] == name] for name in (first, second)]
        gain = gain_at(*lines, axis, value) if not any(line.empty for line in lines) else None
        record = {"panel": panel, "first": first, "second": second, "axis": axis, "value": value}
        records.append({**record, "gains": {axis: interval_record(gain)}})
    return records

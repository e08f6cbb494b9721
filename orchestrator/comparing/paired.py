"""Differences to a baseline, paired by seed: same network, same data, same amount, same seed.

Networks of one seed start from the same dense bits, so most of the spread between seeds cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import How, Interval, interval
from orchestrator.comparing.setting import AXES, NETWORK, axis_columns, settings, telling
from orchestrator.errors import UsageError, unknown

if TYPE_CHECKING:
    from pandas import DataFrame, Series

DENSE = "dense"
TRIPLE = ("criterion", "granularity", "scope")  # a technique is these three


@dataclass(frozen=True)
class Baseline:
    """What settings are compared with: values of columns, or nothing for each trial's dense network."""

    text: str
    values: Mapping[str, object]

    @property
    def is_dense(self) -> bool:
        return not self.values


@dataclass(frozen=True)
class Difference:
    """A setting's test accuracy minus its baseline's, over the seeds that both have."""

    setting: Mapping[str, object]
    difference: Interval


def read_baseline(text: str, results: DataFrame) -> Baseline:
    """`dense`, a technique, or `column=value, column=value`.

    UsageError, with near names, for what is none of them, and for a baseline that nothing pairs with.
    """
    if text.strip() == DENSE:
        return Baseline(DENSE, {})
    values: dict[str, object] = {}
    for part in _parts(text):
        column, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or "(" in column:
            column, value = "technique", part.strip()
        values[column] = _value(column, value, results)
    found = Baseline(", ".join(f"{column}={value}" for column, value in values.items()), values)
    if not differences(results, found):
        raise UsageError(
            f"--baseline {text}: no finished trial differs from it in that alone, at the same amount and "
            "seed; `--baseline dense` takes each trial's own dense network"
        )
    return found


def default_baseline(results: DataFrame) -> Baseline:
    """The first value of the first axis that has several, if trials pair by it; else the dense networks."""
    finished = results[results["status"] == "finished"]
    for column in (c for c in AXES if c not in NETWORK and c in finished.columns):
        values = finished[column].dropna().unique()
        if len(values) > 1:
            found = Baseline(f"{column}={values[0]}", {column: values[0]})
            if differences(results, found):
                return found
    return Baseline(DENSE, {})


def differences(results: DataFrame, baseline: Baseline, *, how: How = "t") -> list[Difference]:
    """Each setting that has trials with a partner, the baseline itself left out, in the order of the plan."""
    finished = results[results["status"] == "finished"]
    if finished.empty:
        return []
    if baseline.is_dense:
        gains = finished["final/accuracy"] - finished["ipa/accuracy"]
    else:
        gains = _gains(finished, baseline)
    found = []
    for setting, rows in settings(results):
        own = gains.reindex(rows.index).dropna()
        if len(own):
            found.append(Difference(setting, interval(own.tolist(), how=how)))
    return found


def _gains(finished: DataFrame, baseline: Baseline) -> Series[float]:
    """Row -> its accuracy minus its partner's, for the rows that have one and are not the baseline's."""
    is_base = finished[list(baseline.values)].eq(list(baseline.values.values())).all(axis=1)
    columns = [*_matched(finished, baseline), "seed"]
    base = finished.loc[is_base, [*columns, "final/accuracy"]].drop_duplicates(columns)
    others = finished.loc[~is_base, [*columns, "final/accuracy"]]
    joined = others.reset_index().merge(base, on=columns, suffixes=("", " of the baseline"))
    gains = joined["final/accuracy"] - joined["final/accuracy of the baseline"]
    return gains.set_axis(joined["index"])


def _matched(finished: DataFrame, baseline: Baseline) -> list[str]:
    """The columns in which partners agree: all that tell settings apart beside those of the baseline.

    A technique is a name for three other axes, and each of those a part of it: where one side is
    the baseline's, the other comes last, and says nothing more.
    """
    given = list(baseline.values)
    rest = [c for c in axis_columns(finished) if c not in given]
    last = [c for c in rest if c == "technique"] if any(c in TRIPLE for c in given) else []
    ordered = [*(c for c in rest if c not in last), *last]
    first = [*given, *(c for c in (*NETWORK, "amount") if c not in given)]
    return [c for c in telling(finished, first, ordered) if c not in given]


def _value(column: str, text: str, results: DataFrame) -> object:
    columns = axis_columns(results)
    if column not in columns:
        raise UsageError(f"--baseline: {unknown('column', column, [*columns, DENSE])}")
    known = {str(value): value for value in results[column].dropna().unique()}
    if text in known:
        return known[text]
    short = [name for name in known if name.partition("(")[0] == text]
    if len(short) == 1:
        return known[short[0]]
    kind = column if column != "technique" else "technique of these trials (or column=value)"
    raise UsageError(f"--baseline: {unknown(kind, text, known)}")


def _parts(text: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part for part in parts if part.strip()]

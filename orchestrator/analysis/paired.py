"""Differences to a baseline, paired by seed: same network, same data, same amount, same seed.

Networks of one seed start from the same dense bits, so most of the spread between seeds cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import DIFFERENCE, Interval, IntervalMethod, interval
from orchestrator.analysis.notes import marks
from orchestrator.analysis.settings import (
    AXES,
    NETWORK,
    amount_label,
    axis_columns,
    distinguishing_columns,
    is_by_criterion,
    settings,
)
from orchestrator.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from pandas import DataFrame, Series

DENSE = "dense"
LEVEL = 0.05 + 1e-12  # that rounding does not decide
NOTHING_PRUNED = "0%"  # and nothing trained
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
    """A setting's test accuracy minus its baseline's, over the seeds that both have.

    `p_holm` is the p-value of its paired t test, corrected for all the comparisons made with it; None
    where there is no test: with fewer than three pairs, without a spread, or with a bootstrap.
    """

    setting: Mapping[str, object]
    difference: Interval
    amount: str
    marks: str = ""
    p_holm: float | None = None

    @property
    def survives(self) -> bool:
        """Whether it differs from 0 at 5%, for all comparisons together."""
        return self.p_holm is not None and self.p_holm <= LEVEL

    @property
    def p_text(self) -> str:
        """The corrected p-value, with a star where it survives; "" without a test."""
        if self.p_holm is None:
            return ""
        text = "<0.001" if self.p_holm < 0.001 else f"{self.p_holm:.3f}"
        return f"{text} *" if self.survives else text


def read_baseline(text: str, results: DataFrame) -> Baseline:
    """`dense`, the name of a technique, criterion, schedule or recovery, or `column=value, column=value`.

    UsageError, with near names, for what is none of them, and for a baseline that nothing pairs with.
    """
    if text.strip() == DENSE:
        return Baseline(DENSE, {})
    values: dict[str, object] = {}
    for part in _parts(text):
        column, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or "(" in column:
            value = part.strip()
            column = _column_of(value, results)
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
    unnamed = (*NETWORK, "technique") if is_by_criterion(results) else NETWORK
    for column in (c for c in AXES if c not in unnamed and c in finished.columns):
        values = finished[column].dropna().unique()
        if len(values) > 1:
            found = Baseline(f"{column}={values[0]}", {column: values[0]})
            if differences(results, found):
                return found
    return Baseline(DENSE, {})


def differences(results: DataFrame, baseline: Baseline, *, how: IntervalMethod = "t") -> list[Difference]:
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
        if is_equal(rows, baseline):
            continue
        own = gains.reindex(rows.index).dropna()
        if len(own):
            whole = interval(own.tolist(), how=how, bounds=DIFFERENCE)
            found.append(Difference(setting, whole, amount_label(rows), marks(rows)))
    return corrected(found)


def is_equal(rows: DataFrame, baseline: Baseline) -> bool:
    """Whether a setting equals its baseline by definition: at amount 0 nothing is pruned.

    Without recovery it is the dense network; with one it equals a baseline that is pruned otherwise.
    """
    if float(rows["amount"].iloc[0]) != 0:
        return False
    if baseline.values and set(baseline.values) <= {"technique", *TRIPLE}:
        return True
    return amount_label(rows) == NOTHING_PRUNED and "recover" not in baseline.values


def corrected(untested: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction for all of them that have a test."""
    adjusted = iter(holm([item.difference.p for item in untested if item.difference.p is not None]))
    return [item if item.difference.p is None else replace(item, p_holm=next(adjusted)) for item in untested]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for there being many of them (Holm, Scandinavian Journal of Statistics, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before it.
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = floor
    return adjusted


def verdict(gains: Sequence[Interval]) -> str:
    """How many comparisons these differences are, and how many of them are more than chance."""
    tested = [gain for gain in gains if gain.p is not None]
    if not tested:
        return f"{len(gains)} comparisons, none tested: a test needs three pairs or more, and a t interval."
    alone = sum(gain.leaves_zero_out for gain in tested)
    survive = sum(p <= LEVEL for p in holm([gain.p for gain in tested if gain.p is not None]))
    untested = f" ({rest} more are not tested)" if (rest := len(gains) - len(tested)) else ""
    return (
        f"{len(tested)} comparisons{untested}: by their own 95% intervals {alone} of them are not 0, after "
        f"Holm's correction for all of them {survive}."
    )


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
    return [c for c in distinguishing_columns(finished, first, ordered) if c not in given]


def _column_of(name: str, results: DataFrame) -> str:
    """The axis that has a value of this name, in the words of the space: its techniques, or their parts."""
    names = (*TRIPLE, "technique") if is_by_criterion(results) else ("technique", *TRIPLE)
    for column in (*names, "schedule", "recover", "when", "prepare", "distill"):
        if column in results and name in {v for text in _known(column, results) for v in (text, _bare(text))}:
            return column
    return names[0]


def _bare(text: str) -> str:
    return text.partition("(")[0]


def _known(column: str, results: DataFrame) -> dict[str, object]:
    return {str(value): value for value in results[column].dropna().unique()}


def _value(column: str, text: str, results: DataFrame) -> object:
    columns = axis_columns(results)
    if column not in columns:
        raise UsageError(f"--baseline: {unknown_name('column', column, [*columns, DENSE])}")
    known = _known(column, results)
    if text in known:
        return known[text]
    for item in results.attrs.get("excluded", ()):
        if item.get("left_out") == text:
            raise UsageError(
                f"--baseline {text}: planned once, as {item['planned']}, which is the same by definition; "
                f"give --baseline {item['planned']}"
            )
    short = [name for name in known if _bare(name) == text]
    if len(short) == 1:
        return known[short[0]]
    kind = column if column != "technique" else "technique of these trials (or column=value)"
    raise UsageError(f"--baseline: {unknown_name(kind, text, known)}")


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

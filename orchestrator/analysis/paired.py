"""Differences to a baseline, paired by seed: same network, same data, same amount, same seed.

Networks of one seed start from the same dense weights, so most of the spread between seeds cancels.
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
    TRIPLE,
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
LEVEL = 0.05 + 1e-12  # rounding must not decide
NOTHING_PRUNED = "0%"  # nothing trained either: that is `0% (trained on)`


@dataclass(frozen=True)
class Baseline:
    """What settings are compared with: values of columns, or no values for each trial's dense network."""

    text: str
    values: Mapping[str, object]

    @property
    def is_dense(self) -> bool:
        """Whether it is each trial's own dense network."""
        return not self.values


@dataclass(frozen=True)
class Difference:
    """A setting's test accuracy minus its baseline's, over the seeds that both have.

    `p_holm` is the p-value of its paired t test with Holm's correction for all comparisons; None without a
    test: with fewer than three pairs, without a spread, or with a bootstrap.
    """

    setting: Mapping[str, object]
    difference: Interval
    amount: str
    marks: str = ""
    p_holm: float | None = None

    @property
    def survives(self) -> bool:
        """Whether it differs from 0 at 5% after the correction."""
        return self.p_holm is not None and self.p_holm <= LEVEL

    @property
    def p_text(self) -> str:
        """The corrected p-value, with a star where the difference survives; "" without a test."""
        if self.p_holm is None:
            return ""
        text = "<0.001" if self.p_holm < 0.001 else f"{self.p_holm:.3f}"
        return f"{text} *" if self.survives else text


def read_baseline(text: str, results: DataFrame) -> Baseline:
    """Parse `dense`, a technique, criterion, schedule or recovery, or `column=value, column=value`.

    Raises UsageError, with near names, for any other text, and for a baseline that no trial pairs with.
    """
    if text.strip() == DENSE:
        return Baseline(DENSE, {})
    values: dict[str, object] = {}
    for item in _split(text):
        column, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or "(" in column:  # the equals sign of an option, as in `polynomial(power=3)`
            value = item.strip()
            column = _column_of(value, results)
        values[column] = _value(column, value, results)
    baseline = Baseline(", ".join(f"{column}={value}" for column, value in values.items()), values)
    if not differences(results, baseline):
        raise UsageError(
            f"--baseline {text}: no finished trial differs from it in that alone, at the same amount and "
            "seed; `--baseline dense` takes each trial's own dense network"
        )
    return baseline


def default_baseline(results: DataFrame) -> Baseline:
    """Return the first value of the first axis with several values by which trials pair; else `dense`."""
    finished = results[results["status"] == "finished"]
    unnamed = (*NETWORK, "technique") if is_by_criterion(results) else NETWORK
    for column in (c for c in AXES if c not in unnamed and c in finished.columns):
        values = finished[column].dropna().unique()
        if len(values) > 1:
            baseline = Baseline(f"{column}={values[0]}", {column: values[0]})
            if differences(results, baseline):
                return baseline
    return Baseline(DENSE, {})


def differences(results: DataFrame, baseline: Baseline, *, method: IntervalMethod = "t") -> list[Difference]:
    """Return the difference of each setting that pairs with the baseline, in the order of the plan."""
    finished = results[results["status"] == "finished"]
    if finished.empty:
        return []
    if baseline.is_dense:
        gains = finished["final/accuracy"] - finished["ipa/accuracy"]
    else:
        gains = _gains(finished, baseline)
    pairs = []
    for setting, rows in settings(results):
        gains_of_setting = gains.reindex(rows.index).dropna()
        if len(gains_of_setting) and not is_equal(rows, baseline):
            mean = interval(gains_of_setting.tolist(), method=method, bounds=DIFFERENCE)
            pairs.append(Difference(setting, mean, amount_label(rows), marks(rows)))
    adjusted = iter(holm([pair.difference.p for pair in pairs if pair.difference.p is not None]))
    return [pair if pair.difference.p is None else replace(pair, p_holm=next(adjusted)) for pair in pairs]


def is_equal(rows: DataFrame, baseline: Baseline) -> bool:
    """Return whether a setting equals its baseline by definition: at amount 0 nothing is pruned.

    Without recovery it is the dense network. With one it equals a baseline that only prunes in another way.
    """
    if float(rows["amount"].iloc[0]) != 0:
        return False
    if baseline.values and set(baseline.values) <= {"technique", *TRIPLE}:
        return True
    return amount_label(rows) == NOTHING_PRUNED and "recover" not in baseline.values


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, Scandinavian Journal of Statistics, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it.
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = floor
    return adjusted


def verdict(gains: Sequence[Interval]) -> str:
    """Summarize in a sentence how many of these differences are not 0, before and after the correction."""
    tested = [gain for gain in gains if gain.p is not None]
    if not tested:
        return f"{len(gains)} comparisons, none tested: a test needs three pairs or more, and a t interval."
    uncorrected = sum(gain.leaves_zero_out for gain in tested)
    corrected = sum(p <= LEVEL for p in holm([gain.p for gain in tested if gain.p is not None]))
    untested = len(gains) - len(tested)
    return (
        f"{len(tested)} comparisons{f' ({untested} more are not tested)' if untested else ''}: by their own "
        f"95% intervals {uncorrected} of them are not 0, after Holm's correction for all of them {corrected}."
    )


def _gains(finished: DataFrame, baseline: Baseline) -> Series[float]:
    """Row -> its accuracy minus its partner's, for rows with a partner that are not the baseline's."""
    is_base = finished[list(baseline.values)].eq(list(baseline.values.values())).all(axis=1)
    columns = [*_pairing_columns(finished, baseline), "seed"]
    # One partner for each trial: a second baseline trial of equal columns would count a trial twice.
    base = finished.loc[is_base, [*columns, "final/accuracy"]].drop_duplicates(columns)
    compared = finished.loc[~is_base, [*columns, "final/accuracy"]]
    pairs = compared.reset_index().merge(base, on=columns, suffixes=("", " of the baseline"))
    gains = pairs["final/accuracy"] - pairs["final/accuracy of the baseline"]
    return gains.set_axis(pairs["index"])


def _pairing_columns(finished: DataFrame, baseline: Baseline) -> list[str]:
    """The columns in which partners agree: all that tell settings apart beside those of the baseline.

    A technique names a criterion, a granularity and a scope. Where the baseline fixes one of these, the
    technique comes last, so that partners need not agree in it where the three already tell rows apart.
    """
    fixed = list(baseline.values)
    columns = [c for c in axis_columns(finished) if c not in fixed]
    if any(c in TRIPLE for c in fixed):
        columns.sort(key=lambda column: column == "technique")
    first = [*fixed, *(c for c in (*NETWORK, "amount") if c not in fixed)]
    return [c for c in distinguishing_columns(finished, first, columns) if c not in fixed]


def _column_of(name: str, results: DataFrame) -> str:
    """The axis with a value of this name; techniques first, unless the space has none."""
    names = (*TRIPLE, "technique") if is_by_criterion(results) else ("technique", *TRIPLE)
    for column in (*names, "schedule", "recover", "when", "prepare", "distill"):
        texts = _values_by_text(column, results) if column in results else {}
        if name in texts or name in map(_without_options, texts):
            return column
    return names[0]


def _without_options(text: str) -> str:
    return text.partition("(")[0]


def _values_by_text(column: str, results: DataFrame) -> dict[str, object]:
    return {str(value): value for value in results[column].dropna().unique()}


def _value(column: str, text: str, results: DataFrame) -> object:
    columns = axis_columns(results)
    if column not in columns:
        raise UsageError(f"--baseline: {unknown_name('column', column, [*columns, DENSE])}")
    values = _values_by_text(column, results)
    if text in values:
        return values[text]
    for item in results.attrs.get("excluded", ()):
        if item.get("left_out") == text:
            raise UsageError(
                f"--baseline {text}: planned once, as {item['planned']}, which is the same by definition; "
                f"give --baseline {item['planned']}"
            )
    same_name = [name for name in values if _without_options(name) == text]
    if len(same_name) == 1:
        return values[same_name[0]]
    kind = column if column != "technique" else "technique of these trials (or column=value)"
    raise UsageError(f"--baseline: {unknown_name(kind, text, values)}")


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    items, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            items.append("")
        else:
            items[-1] += character
    return [item for item in items if item.strip()]

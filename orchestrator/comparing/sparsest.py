"""The highest sparsity that a method reaches within a tolerance of the dense network.

Seed by seed: of a method's networks, after every round of every trial, the sparsest whose validation
accuracy is at most `tolerance` below that of the same seed's dense network. Its test accuracy is then
reported beside that dense network's, so nothing is chosen on test images. A seed without such a network
counts as the dense network that it is left with: sparsity 0, compression 1, nothing lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import AMOUNT, DIFFERENCE, How, Interval, interval
from orchestrator.comparing.setting import methods, setting_columns

if TYPE_CHECKING:
    from pandas import DataFrame, Index

ROUNDING = 1e-9  # 0.96 - 0.95 is a little more than 0.01


@dataclass(frozen=True)
class Sparsest:
    """Of a method: `found` of `seeds` had a network within the tolerance; means are over all seeds.

    None where no seed has one. `loss` is the test accuracy of the dense networks minus theirs, paired
    by seed; `stopped` counts trials that were stopped early, whose rounds are not looked at.
    """

    method: Mapping[str, object]
    seeds: int
    found: int
    sparsity: Interval | None
    compression: Interval | None
    accuracy: Interval | None
    loss: Interval | None
    stopped: int = 0


def within(rows: DataFrame, tolerance: float) -> Index:
    """The rows, one per seed that has one, with the sparsest network within the tolerance (a fraction)."""
    is_near = rows["final/val_accuracy"] >= rows["ipa/val_accuracy"] - tolerance - ROUNDING
    near = rows[is_near & (rows["final/sparsity"] > 0)]  # a network that is not pruned is none
    # Of equally sparse ones the more accurate on validation images.
    ranked = near.sort_values(["final/sparsity", "final/val_accuracy"], ascending=False, kind="stable")
    return ranked.drop_duplicates("seed").sort_values("seed").index


def sparsest(
    results: DataFrame, *, tolerance: float, how: How = "t", earlier: DataFrame | None = None
) -> list[Sparsest]:
    """One entry per method, in the order of the plan.

    `earlier` are networks of rounds before the last, as rows of `results` (see `rounds.earlier_networks`).
    """
    columns = [c for c in setting_columns(results) if c != "amount"]
    before = {} if earlier is None or earlier.empty else _by_method(earlier, columns)
    return [
        _sparsest(method, rows, before.get(_key(method)), tolerance, how) for method, rows in methods(results)
    ]


def _by_method(earlier: DataFrame, columns: list[str]) -> dict[tuple[str, ...], DataFrame]:
    groups = earlier.groupby(columns, sort=False, dropna=False)
    return {_key(dict(zip(columns, values, strict=True))): rows for values, rows in groups}


def _key(method: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(map(str, method.values()))


def _sparsest(
    method: Mapping[str, object], rows: DataFrame, earlier: DataFrame | None, tolerance: float, how: How
) -> Sparsest:
    import pandas

    every = rows if earlier is None else pandas.concat([rows, earlier], ignore_index=True)
    best = every.loc[within(every, tolerance)]
    seeds = rows.drop_duplicates("seed")
    stopped = int(rows.attrs.get("stopped", 0))
    if best.empty:
        return Sparsest(method, len(seeds), 0, None, None, None, None, stopped)
    dense = seeds[~seeds["seed"].isin(best["seed"])]["ipa/accuracy"].tolist()
    none = len(dense)
    loss = (best["ipa/accuracy"] - best["final/accuracy"]).tolist()
    return Sparsest(
        method,
        len(seeds),
        len(best),
        interval([*best["final/sparsity"].tolist(), *[0.0] * none], how=how),
        interval([*best["final/compression"].tolist(), *[1.0] * none], how=how, bounds=AMOUNT),
        interval([*best["final/accuracy"].tolist(), *dense], how=how),
        interval([*loss, *[0.0] * none], how=how, bounds=DIFFERENCE),
        stopped,
    )

"""The highest sparsity that a method reaches within a tolerance of the dense network.

Seed by seed: of a method's networks, the sparsest whose validation accuracy is at most `tolerance` below
that of the same seed's dense network. Its test accuracy is then reported beside that dense network's,
so nothing is chosen on test images. Only networks at the end of their trial are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.interval import How, Interval, interval
from orchestrator.comparing.setting import methods

if TYPE_CHECKING:
    from pandas import DataFrame, Index

ROUNDING = 1e-9  # 0.96 - 0.95 is a little more than 0.01


@dataclass(frozen=True)
class Sparsest:
    """Of a method: `found` of `seeds` had a network within the tolerance; means are over those that had.

    `loss` is the test accuracy of the dense networks minus theirs, paired by seed.
    """

    method: Mapping[str, object]
    seeds: int
    found: int
    sparsity: Interval | None
    compression: float | None
    accuracy: Interval | None
    loss: Interval | None


def within(rows: DataFrame, tolerance: float) -> Index:
    """The rows, one per seed that has one, with the sparsest network within the tolerance (a fraction)."""
    near = rows[rows["final/val_accuracy"] >= rows["ipa/val_accuracy"] - tolerance - ROUNDING]
    # Of equally sparse ones the more accurate on validation images.
    ranked = near.sort_values(["final/sparsity", "final/val_accuracy"], ascending=False, kind="stable")
    return ranked.drop_duplicates("seed").sort_values("seed").index


def sparsest(results: DataFrame, *, tolerance: float, how: How = "t") -> list[Sparsest]:
    """One entry per method, in the order of the plan."""
    found = []
    for method, rows in methods(results):
        chosen = rows.loc[within(rows, tolerance)]
        seeds = int(rows["seed"].nunique())
        if chosen.empty:
            found.append(Sparsest(method, seeds, 0, None, None, None, None))
            continue
        loss = chosen["ipa/accuracy"] - chosen["final/accuracy"]
        found.append(
            Sparsest(
                method,
                seeds,
                len(chosen),
                interval(chosen["final/sparsity"].tolist(), how=how),
                float(chosen["final/compression"].mean()),
                interval(chosen["final/accuracy"].tolist(), how=how),
                interval(loss.tolist(), how=how),
            )
        )
    return found

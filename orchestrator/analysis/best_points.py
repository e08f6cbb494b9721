"""The best points of a search: those that no other point beats in every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.tables import Table, figure
from orchestrator.planning.plan import Plan
from orchestrator.trial.params import DEFAULTS, without_defaults

if TYPE_CHECKING:
    from pandas import DataFrame

TEST_ACCURACY = "final/accuracy"
NOTE = (
    "Chosen by the objectives alone; the test accuracy is told, and had no say. Points are numbered in the "
    "order in which they were asked for."
)


@dataclass(frozen=True)
class FrontPoint:
    """A point of which every trial is finished: means over its seeds. `number` counts from 1."""

    number: int
    params: Mapping[str, Any]  # values of axes, of any type
    objectives: Mapping[str, float]
    accuracy: float
    seeds: int

    def to_json(self) -> dict[str, Any]:  # JSON
        means = {**self.objectives, TEST_ACCURACY: self.accuracy}
        return {"point": self.number, "params": dict(self.params), "means": means, "seeds": self.seeds}


def finished_points(plan: Plan, results: DataFrame) -> list[FrontPoint]:
    """The finished points of a search, in the order in which they were asked for."""
    objectives = plan.space.search.objectives
    done = results[results["status"] == "finished"].set_index("key", drop=False)
    found = []
    for number, point in enumerate(plan.points, start=1):
        if all(key in done.index for key in point.keys):
            rows = done.loc[list(point.keys)]
            means = {name: _mean(rows, name) for name in (*objectives, TEST_ACCURACY)}
            wanted = {name: means[name] for name in objectives}
            if not any(isnan(value) for value in means.values()):
                found.append(FrontPoint(number, point.params, wanted, means[TEST_ACCURACY], len(rows)))
    return found


def _mean(rows: DataFrame, name: str) -> float:
    """NaN where a run of before the metric was measured is among them."""
    return fsum(rows[name]) / len(rows) if name in rows else nan


def best_points(plan: Plan, results: DataFrame) -> list[FrontPoint]:
    """The Pareto front of a search, the best by the first objective first; nothing for a grid."""
    ways = plan.space.search.objectives
    points = finished_points(plan, results)
    scores = [[(1 if ways[name] == "max" else -1) * v for name, v in p.objectives.items()] for p in points]
    chosen = sorted(front(scores), key=lambda n: (scores[n], -n), reverse=True)
    return [points[number] for number in chosen]


def front(scores: Sequence[Sequence[float]]) -> list[int]:
    """The rows that no other is at least as good as everywhere and better than somewhere; more is better.

    Equal rows are on it together.
    """
    kept: list[int] = []
    for number in sorted(range(len(scores)), key=lambda n: list(scores[n]), reverse=True):
        if not any(_beats(scores[other], scores[number]) for other in kept):
            kept.append(number)
    return kept


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(one) != list(other) and all(a >= b for a, b in zip(one, other, strict=True))


def best_table(plan: Plan, results: DataFrame) -> Table | None:
    """The best points as a table: what was chosen for each, and what came of it."""
    points = best_points(plan, results)
    if not points:
        return None
    ways = plan.space.search.objectives
    names = list(dict.fromkeys(name for point in plan.points for name in point.params))
    header = ["point", *names, *(name.removeprefix("final/") for name in ways), "test accuracy", "seeds"]
    rows = [
        [
            str(point.number),
            *(_shown(name, point.params.get(name)) for name in names),
            *(figure(value) for value in point.objectives.values()),
            figure(point.accuracy),
            str(point.seeds),
        ]
        for point in points
    ]
    goals = " and ".join(f"{name} ({way})" for name, way in ways.items())
    title = f"the best point by {goals}" if len(ways) == 1 else f"Pareto front of {goals}"
    return Table(title, header, rows, NOTE)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return without_defaults(name, value) if name in DEFAULTS else str(value)

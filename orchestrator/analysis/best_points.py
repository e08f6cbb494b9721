"""The best points of a search: those that no other point dominates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.pareto import front
from orchestrator.analysis.tables import Table
from orchestrator.formatting import format_number
from orchestrator.planning.plan import Plan
from orchestrator.trial.params import DEFAULTS, without_defaults

if TYPE_CHECKING:
    from pandas import DataFrame

TEST_ACCURACY = "final/accuracy"
NOTE = (
    "Selected by the objectives alone: the test accuracy is shown, and did not decide. Points are numbered "
    "in the order in which the search proposed them."
)


@dataclass(frozen=True)
class FrontPoint:
    """A point of which every trial is finished: means over its seeds. `number` counts from 1.

    `violation`: by how much it misses the constraint that it misses most; 0 or less where it keeps to all.
    """

    number: int
    params: Mapping[str, Any]  # values of axes, of any type
    objectives: Mapping[str, float]
    accuracy: float
    seeds: int
    violation: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the point as the summary of a sweep has it."""
        means = {**self.objectives, TEST_ACCURACY: self.accuracy}
        missed = {"violation": self.violation} if self.violation > 0 else {}
        return {
            "point": self.number,
            "params": dict(self.params),
            "means": means,
            "seeds": self.seeds,
            **missed,
        }


def finished_points(plan: Plan, results: DataFrame) -> list[FrontPoint]:
    """Return the points of which every seed has finished, in the order in which the search proposed them."""
    search = plan.space.search
    objectives = search.objectives
    read = {*objectives, TEST_ACCURACY, *(name for limit in search.limits for name in limit.names)}
    done = results[results["status"] == "finished"].set_index("key", drop=False)
    points = []
    for number, point in enumerate(plan.points, start=1):
        if all(key in done.index for key in point.keys):
            rows = done.loc[list(point.keys)]
            means = {name: _mean(rows, name) for name in read}
            scores = {name: means[name] for name in objectives}
            # NaN has no order: such a point could neither be beaten nor beat another.
            if not any(isnan(value) for value in means.values()):
                missed = max((limit.violation(means) for limit in search.limits), default=0.0)
                accuracy = means[TEST_ACCURACY]
                points.append(FrontPoint(number, point.params, scores, accuracy, len(rows), missed))
    return points


def _mean(rows: DataFrame, name: str) -> float:
    """NaN where one of the runs is of a version that did not measure it."""
    return fsum(rows[name]) / len(rows) if name in rows else nan


def best_points(plan: Plan, results: DataFrame) -> list[FrontPoint]:
    """Return the Pareto front of a search, the best by the first objective first; nothing for a grid.

    Of the points that keep to the constraints; where none does, the one that misses them least.
    """
    signs = {name: 1 if goal == "max" else -1 for name, goal in plan.space.search.objectives.items()}
    finished = finished_points(plan, results)
    points = [point for point in finished if point.violation <= 0]
    if not points:
        return sorted(finished, key=lambda point: point.violation)[:1]
    scores = [[signs[name] * value for name, value in point.objectives.items()] for point in points]
    return [points[n] for n in sorted(front(scores), key=lambda n: (scores[n], -n), reverse=True)]


def best_table(plan: Plan, results: DataFrame) -> Table | None:
    """Return the best points as a table: their values of the axes, and their results."""
    points = best_points(plan, results)
    if not points:
        return None
    objectives = plan.space.search.objectives
    names = list(dict.fromkeys(name for point in plan.points for name in point.params))
    header = [
        "point",
        *names,
        *(name.removeprefix("final/") for name in objectives),
        "test accuracy",
        "seeds",
    ]
    rows = [
        [
            str(point.number),
            *(_text(name, point.params.get(name)) for name in names),
            *(format_number(value) for value in point.objectives.values()),
            format_number(point.accuracy),
            str(point.seeds),
        ]
        for point in points
    ]
    goals = " and ".join(f"{name} ({goal})" for name, goal in objectives.items())
    title = f"the best point by {goals}" if len(objectives) == 1 else f"Pareto front of {goals}"
    if limits := ", ".join(f"{name} {text}" for name, text in plan.space.search.constraints.items()):
        title += f", with {limits}"
    if points[0].violation > 0:
        title = f"no point keeps to {limits}: the nearest misses it by {points[0].violation:.2%}"
    return Table(title, header, rows, NOTE)


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return without_defaults(name, value) if name in DEFAULTS else str(value)

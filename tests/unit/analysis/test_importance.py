"""Importance of a search's axes: against variances worked by hand, and what is left out."""

from __future__ import annotations

from itertools import product

import pytest
from pandas import DataFrame

from orchestrator.analysis.importance import (
    MIN_POINTS,
    SearchedPoint,
    common_axes,
    importances,
    searched_points,
)


def points(slope: float) -> list[SearchedPoint]:
    """A full grid of `slope` x + y + 0 z: x has slope^2 times the variance of y, and z none."""
    levels = [n / 5 for n in range(6)]
    return [
        SearchedPoint({"x": x, "y": y, "z": z}, {"final/accuracy": slope * x + y})
        for x, y, z in product(levels, levels, ("a", "b"))
    ]


@pytest.mark.parametrize("slope", [1.0, 2.0, 3.0])
def test_shares_are_those_of_the_variances_of_an_additive_objective(slope: float) -> None:
    rows = importances(points(slope), "final/accuracy")
    shares = {row.axis: row.share for row in rows}
    assert shares["x"] == pytest.approx(slope**2 / (slope**2 + 1), abs=0.03)
    assert shares["y"] == pytest.approx(1 / (slope**2 + 1), abs=0.03)
    assert shares["z"] < 0.01
    assert sum(shares.values()) == pytest.approx(1)
    assert all(row.lowest <= row.share <= row.highest for row in rows)
    assert rows == sorted(rows, key=lambda row: -row.share)
    assert rows == importances(points(slope), "final/accuracy")  # the same twice


def test_an_axis_over_many_decades_counts_by_its_logarithm() -> None:
    grid = [
        SearchedPoint({"train.lr": 10.0**-n, "seedless": m}, {"loss": float(n) + m})
        for n, m in product(range(5), range(5))
    ]
    shares = {row.axis: row.share for row in importances(grid, "loss")}
    assert shares["train.lr"] == pytest.approx(0.5, abs=0.05)


def test_an_option_that_not_every_point_has_is_left_out() -> None:
    some = points(1.0)
    some[0] = SearchedPoint({**some[0].params, "erk.power": 1.0}, some[0].objectives)
    assert common_axes(some) == ["x", "y", "z"]


def test_few_points_one_axis_and_a_constant_objective_have_no_importance() -> None:
    assert importances(points(1.0)[: MIN_POINTS - 1], "final/accuracy") == []
    line = [SearchedPoint({"x": float(n), "y": 1}, {"loss": float(n)}) for n in range(20)]
    assert importances(line, "loss") == []
    flat = [SearchedPoint(point.params, {"loss": 1.0}) for point in points(1.0)]
    assert importances(flat, "loss") == []


def test_points_are_the_means_over_seeds_of_those_that_finished() -> None:
    plan = {
        "search": {"objectives": {"final/accuracy": "max"}},
        "asked": [
            {"params": {"x": 1}, "keys": ["a", "b"]},
            {"params": {"x": 2}, "keys": ["c", "d"]},
            {"params": {"x": 3}, "keys": []},
        ],
    }
    results = DataFrame(
        {
            "key": ["a", "b", "c", "d"],
            "status": ["finished", "finished", "finished", "failed"],
            "final/accuracy": [0.5, 0.7, 0.9, float("nan")],
        }
    )
    (point,) = searched_points(plan, results)
    assert point.params == {"x": 1}
    assert point.objectives["final/accuracy"] == pytest.approx(0.6)

"""Importance of a search's axes, and variance components: against variances worked by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pandas import DataFrame

from orchestrator.analysis.importance import (
    MIN_POINTS,
    SearchedPoint,
    common_axes,
    importances,
    searched_points,
    variance_components,
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


def test_a_table_of_two_by_two_worked_by_hand() -> None:
    # Means of rows 2 and 5, of columns 2.5 and 4.5, of all 3.5; the rest is +-0.5 in every cell.
    values = np.array([[1.5, 2.5], [3.5, 6.5]])
    # SS: rows 2 * (1.5^2 + 1.5^2) = 9, columns 2 * (1 + 1) = 4, rest 4 * 0.25 = 1, each with one degree.
    assert variance_components(values, ("row", "column")) == pytest.approx(
        {"row": (9 - 1) / 2, "column": (4 - 1) / 2, "rest": 1.0}
    )


def test_effects_that_add_up_leave_no_rest() -> None:
    a, b, c = np.array([0.0, 1.0, 5.0]), np.array([2.0, 2.5]), np.array([0.0, 0.1, 0.2, 0.7])
    values = a[:, None, None] + b[None, :, None] + c[None, None, :]
    components = variance_components(values, ("a", "b", "c"))
    expected = {"a": a.var(ddof=1), "b": b.var(ddof=1), "c": c.var(ddof=1), "rest": 0.0}
    assert components == pytest.approx(expected, abs=1e-12)


def test_the_estimates_are_right_on_average() -> None:
    random = np.random.default_rng(0)
    estimates = []
    for _ in range(400):
        a, b = random.normal(0, 2, 6), random.normal(0, 1, 6)
        values = a[:, None] + b[None, :] + random.normal(0, 0.5, (6, 6))
        estimates.append(list(variance_components(values, ("a", "b")).values()))
    assert np.mean(estimates, axis=0) == pytest.approx([4.0, 1.0, 0.25], rel=0.1)


def test_a_factor_without_effect_is_zero_and_not_negative() -> None:
    values = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert variance_components(values, ("a", "b")) == {"a": 0.0, "b": 0.0, "rest": pytest.approx(1.0)}


@pytest.mark.parametrize(("shape", "factors"), [((3,), ("a",)), ((3, 1), ("a", "b")), ((3, 3), ("a",))])
def test_a_design_without_enough_levels_is_refused(shape: tuple[int, ...], factors: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="give"):
        variance_components(np.ones(shape), factors)

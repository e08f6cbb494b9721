"""Variance components: by hand, exactly for effects that add up, and on average for drawn ones."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.analysis.variance_components import variance_components


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

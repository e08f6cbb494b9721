"""The Pareto front: its law, and who is on it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_rows import frame, row

from orchestrator.analysis.pareto import candidates, check_measured, front, members
from orchestrator.errors import UsageError

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30)


def dominates(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Lower cost, higher gain."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_no_member_is_dominated_and_every_other_point_is(points: list[tuple[int, int]]) -> None:
    numbers = front([(-float(cost), float(gain)) for cost, gain in points])
    on = [points[number] for number in numbers]
    off = [point for number, point in enumerate(points) if number not in numbers]
    assert not [point for point in on if any(dominates(other, point) for other in points)]
    assert all(any(dominates(other, point) for other in on) for point in off)


def test_a_front_by_hand() -> None:
    #              cheap and bad, dominated, dearer and better, twice the same, dearer and no better
    points = [(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.9), (4, 0.9)]
    assert sorted(front([(-cost, gain) for cost, gain in points])) == [0, 2, 3]
    assert front([]) == []
    assert front([(1, math.nan), (0, 0.5)]) == [1]


def measured(technique: str, amount: float, val: float, test: float, **more: object) -> dict[str, object]:
    costs = {"final/macs_effective": 100 * (1 - amount), "ipa/macs_effective": 100.0}
    accuracies = {"final/val_accuracy": val, "ipa/val_accuracy": 0.90, "ipa/accuracy": 0.80}
    return row(technique, amount, accuracy=test, dense_key="d", **costs, **accuracies, **more)


def test_validation_accuracy_decides_and_test_accuracy_is_told() -> None:
    results = frame(
        measured("weight", 0.5, val=0.80, test=0.99),  # dominated on validation images
        measured("neuron", 0.5, val=0.85, test=0.10),
    )
    found = {one.method: one for one in candidates(results, "macs")}
    assert [name for name, one in found.items() if one.on_front] == ["dense", "neuron"]
    assert found["neuron"].accuracy.mean == 0.10
    assert found["dense"].amount is None
    assert (found["dense"].cost, found["dense"].accuracy.mean) == (100.0, 0.80)


def test_what_equals_a_dense_network_is_left_out_of_its_front() -> None:
    results = frame(
        measured("weight", 0.0, val=0.90, test=0.80), measured("weight", 0.5, val=0.70, test=0.70)
    )
    assert [(one.method, one.amount) for one in members(candidates(results, "macs"))] == [
        ("weight", 0.5),
        ("dense", None),
    ]


def test_data_sets_have_fronts_of_their_own() -> None:
    results = frame(
        measured("weight", 0.5, val=0.80, test=0.80),
        measured("weight", 0.5, val=0.20, test=0.20, dataset="cifar10", key="b"),
    )
    results["dense_key"] = ["a", "b"]
    assert sum(one.on_front for one in candidates(results, "macs") if one.amount is not None) == 2


def test_means_are_over_seeds_and_a_dense_network_counts_once() -> None:
    rows = [
        measured(t, 0.5, val=v, test=v) | {"seed": s, "dense_key": f"d{s}"}
        for t in ("weight", "neuron")
        for s, v in enumerate((0.6, 0.8))
    ]
    dense, *others = candidates(frame(*rows), "macs")
    assert (dense.accuracy.count, dense.accuracy.mean) == (2, 0.80)
    assert [one.val_accuracy for one in others] == pytest.approx([0.7, 0.7])


def test_a_cost_that_was_not_measured_has_no_candidates() -> None:
    assert candidates(frame(row()), "latency") == []


def test_a_cost_that_nothing_was_measured_of_is_refused() -> None:
    with pytest.raises(UsageError, match="--pareto latency: no finished trial has it; `orchestrate latency"):
        check_measured(frame(row()), "latency")
    check_measured(frame(row()), "macs")

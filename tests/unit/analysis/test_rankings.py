"""Which method is ahead along which axis, worked by hand on straight lines."""

from __future__ import annotations

import pytest
from result_rows import Row, frame, row

from orchestrator.analysis.rankings import gain_at, orders, turning


def point(technique: str, seed: int, sparsity: float, macs: float, accuracy: float) -> Row:
    costs = {
        "final/sparsity": sparsity,
        "final/macs_effective": 640 * macs,
        "final/macs_physical": 640 * macs,
    }
    return row(technique, sparsity, seed, accuracy, **costs)


def lines(seed: int) -> list[Row]:
    """Over sparsity weight is 0.1 ahead everywhere; at equal MACs neuron is."""
    weight = [point("weight", seed, s, 1 - s, 1 - s) for s in (0.0, 0.5, 0.75)]
    neuron = [point("neuron", seed, s, (1 - s) ** 4, 0.9 - s - 0.002 * seed) for s in (0.0, 0.5, 0.75)]
    return weight + neuron


def test_the_gain_along_an_axis_is_the_mean_distance_of_the_lines() -> None:
    (order,) = orders(frame(*lines(0)))
    assert (order.first, order.second) == ("weight", "neuron")
    sparsity, effective = order.gains["sparsity"], order.gains["effective"]
    assert sparsity is not None
    assert effective is not None
    assert sparsity.mean == pytest.approx(0.1)
    # In common are MACs from 1/4 to 1; weight has 1, 0.5, 0.25 at log2 0, -1, -2, neuron 0.9 at 0 and
    # 0.4 at -4, so 0.65 at -2: means of 0.5625 and 0.775.
    assert effective.mean == pytest.approx(0.5625 - 0.775, abs=1e-3)
    assert order.turns
    assert not order.is_clear  # of one seed


def test_which_axis_turns_the_order_is_said_with_intervals() -> None:
    (first, second) = turning(frame(*(r for seed in range(4) for r in lines(seed))))
    assert first.startswith("Of 1 pair of methods, 1 changes its order (1 with intervals on both sides")
    assert second.endswith("(turns).")
    assert second.startswith("slp on digits, batch 64: weight minus neuron: over sparsity +10.3 ± 0.4")
    assert "over effective MACs -21" in second


def test_an_order_that_holds_everywhere_is_said_to_hold() -> None:
    rows = [point(t, 0, s, 1 - s, base - s) for t, base in (("a", 1.0), ("b", 0.9)) for s in (0.0, 0.5)]
    first, second = turning(frame(*rows))
    assert first.startswith("Of 1 pair of methods, none changes its order from one axis to another.")
    assert second.endswith("over sparsity +10.0, over effective MACs +10.0, over physical MACs +10.0.")


def test_one_amount_makes_no_line() -> None:
    assert list(turning(frame(row("weight"), row("neuron")))) == []


def test_lines_may_be_compared_over_amount_and_latency_too() -> None:
    rows = [
        row(t, amount, 0, accuracy, **{"final/amount": amount, **latency(ms)})
        for t, points in {
            "a": [(0.25, 8.0, 0.9), (0.75, 2.0, 0.5)],
            "b": [(0.25, 4.0, 0.8), (0.75, 1.0, 0.6)],
        }.items()
        for amount, ms, accuracy in points
    ]
    (order,) = orders(frame(*rows), ("amount", "latency"))
    amount, milliseconds = order.gains["amount"], order.gains["latency"]
    assert amount is not None
    assert milliseconds is not None
    assert amount.mean == pytest.approx(0.0)
    # From 2 to 4 ms: a rises from 0.5 to 0.7, b from 0.7 to 0.8, in the logarithm.
    assert milliseconds.mean == pytest.approx(0.6 - 0.75)


def latency(milliseconds: float) -> dict[str, float]:
    return {"final/latency_ms_p50": milliseconds, "ipa/latency_ms_p50": 8.0}


def test_the_gain_at_one_cost_is_read_off_the_lines() -> None:
    results = frame(*(r for seed in range(3) for r in lines(seed)))
    weight, neuron = (results[results["technique"] == name] for name in ("weight", "neuron"))
    gain = gain_at(weight, neuron, "effective", 0.5)
    assert gain is not None
    # Neuron has 0.9 - 0.002 seed at 1 and 0.4 - 0.002 seed at 1/16: at 1/2 a quarter of the way.
    assert gain.mean == pytest.approx(0.5 - (0.9 - 0.5 / 4 - 0.002))
    assert gain.count == 3
    assert gain_at(weight, neuron, "effective", 0.1) is None  # weight ends at 1/4
    at_half = gain_at(weight, neuron, "sparsity", 0.5)
    assert at_half is not None
    assert at_half.mean == pytest.approx(0.1 + 0.002)

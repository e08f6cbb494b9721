"""Time left, by hand."""

from __future__ import annotations

import pytest

from orchestrator.execution.progress import RateEstimate, eta_seconds


def test_each_kind_goes_by_its_own_runs() -> None:
    dense = RateEstimate(todo=2, durations=[100.0, 140.0])  # 120 each
    trials = RateEstimate(todo=30, durations=[2.0] * 4)
    assert eta_seconds([dense, trials], concurrent=2) == pytest.approx((2 * 120 + 30 * 2) / 2)
    assert eta_seconds([RateEstimate(0, [120.0]), trials], concurrent=4) == pytest.approx(15.0)


def test_what_runs_has_a_part_of_it_behind_it() -> None:
    trials = RateEstimate(todo=3, durations=[10.0], running=[4.0, 25.0])  # 6 and 0 to go, and one that waits
    assert eta_seconds([trials], concurrent=2) == pytest.approx(10.0)  # that one cannot be halved
    assert eta_seconds([trials], concurrent=1) == pytest.approx(16.0)


def test_nobody_knows_before_one_has_ended() -> None:
    assert eta_seconds([RateEstimate(2, [1.0]), RateEstimate(5)], concurrent=2) is None
    assert eta_seconds([RateEstimate(0), RateEstimate(0)], concurrent=2) == 0
    assert eta_seconds([RateEstimate(1, [5.0])], concurrent=0.2) == pytest.approx(5.0)

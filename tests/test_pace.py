"""Time left, by hand."""

from __future__ import annotations

import pytest

from orchestrator.execution.progress import Pace, seconds_left


def test_each_kind_goes_by_its_own_runs() -> None:
    dense = Pace(todo=2, took=[100.0, 140.0])  # 120 each
    trials = Pace(todo=30, took=[2.0] * 4)
    assert seconds_left([dense, trials], concurrent=2) == pytest.approx((2 * 120 + 30 * 2) / 2)
    assert seconds_left([Pace(0, [120.0]), trials], concurrent=4) == pytest.approx(15.0)


def test_what_runs_has_a_part_of_it_behind_it() -> None:
    trials = Pace(todo=3, took=[10.0], running=[4.0, 25.0])  # 6 and 0 to go, and one that waits
    assert seconds_left([trials], concurrent=2) == pytest.approx(10.0)  # that one cannot be halved
    assert seconds_left([trials], concurrent=1) == pytest.approx(16.0)


def test_nobody_knows_before_one_has_ended() -> None:
    assert seconds_left([Pace(2, [1.0]), Pace(5)], concurrent=2) is None
    assert seconds_left([Pace(0), Pace(0)], concurrent=2) == 0
    assert seconds_left([Pace(1, [5.0])], concurrent=0.2) == pytest.approx(5.0)

"""Means over seeds, and their intervals against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.comparing.interval import Interval, interval


def test_an_interval_by_hand() -> None:
    # Mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445: 2.776445 * sqrt(2.5 / 5) = 1.963243.
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half_width == pytest.approx(1.963243, abs=1e-6)


THOUSANDTHS = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)


@given(st.lists(THOUSANDTHS, min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_intervals_are_scipys(values: list[float]) -> None:
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]) == Interval(0.5, None, None, 1)
    assert interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 2)
    assert interval([0.5, 0.5]).half_width == 0.0
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_intervals_are_shown_in_percent() -> None:
    assert str(Interval(0.98765, 0.97535, 0.99995, 5)) == "98.8 ± 1.2"
    assert str(Interval(0.5, None, None, 1)) == "50.0"
    assert Interval(0.012, 0.002, 0.022, 5).text(sign="+") == "+1.2 ± 1.0"
    assert str(Interval(-0.0002, -0.0002, -0.0002, 2)) == "0.0 ± 0.0"  # and no negative zero
    assert str(Interval(0.5, 0.41, 0.6, 5, "bootstrap")) == "50.0 [41.0, 60.0]"


def test_a_bootstrap_interval_is_scipys() -> None:
    values = [0.91, 0.94, 0.95, 0.97, 0.99, 0.90]
    found = interval(values, how="bootstrap")
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    # Skewed to the left as the values are, and inside their range, as no t interval need be.
    assert 0.90 <= found.low < found.mean < found.high <= 0.99
    assert interval(values, how="bootstrap") == found


def test_a_bootstrap_interval_where_bca_is_undefined() -> None:
    assert interval([0.5, 0.5, 0.5], how="bootstrap").text() == "50.0 [50.0, 50.0]"
    two = interval([0.2, 0.4], how="bootstrap")
    # Of two values every resampled mean is one of 0.2, 0.3 and 0.4, a quarter of them at either end.
    assert (two.low, two.high) == pytest.approx((0.2, 0.4))
    assert interval([0.5], how="bootstrap") == Interval(0.5, None, None, 1, "bootstrap")

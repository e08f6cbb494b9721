"""Means over seeds, and their intervals against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis.intervals import ANY, DIFFERENCE, Interval, interval, interval_note
from orchestrator.analysis.intervals import test_set_width as width_of_the_test_set
from orchestrator.errors import UsageError


def test_an_interval_by_hand() -> None:
    # Mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445: 2.776445 * sqrt(2.5 / 5) = 1.963243.
    found = interval([1, 2, 3, 4, 5], bounds=ANY)
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half_width == pytest.approx(1.963243, abs=1e-6)


THOUSANDTHS = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)


@given(st.lists(THOUSANDTHS, min_size=3, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_intervals_are_scipys(values: list[float]) -> None:
    found = interval(values, bounds=ANY)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]) == Interval(0.5, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_intervals_are_shown_in_percent() -> None:
    assert str(Interval(0.98765, 0.97535, 0.99995, 5)) == "98.8 ± 1.2"
    assert str(Interval(0.5, None, None, 1)) == "50.0"
    assert Interval(0.012, 0.002, 0.022, 5).text(sign="+") == "+1.2 ± 1.0"
    assert str(Interval(-0.0002, -0.0002, -0.0002, 3)) == "0.0 ± 0.0"  # and no negative zero
    assert str(interval([0.91, 0.94])) == "92.5 [91.0 to 94.0]"
    assert interval([-0.01, 0.02], bounds=DIFFERENCE).text(sign="+") == "+0.5 [-1.0 to +2.0]"
    assert str(Interval(0.5, 0.41, 0.6, 5, "bootstrap")) == "50.0 [41.0, 60.0]"


def test_a_bootstrap_interval_is_scipys() -> None:
    values = [0.91, 0.94, 0.95, 0.97, 0.99, 0.90]
    found = interval(values, method="bootstrap")
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    # Skewed to the left as the values are, and inside their range, as no t interval need be.
    assert 0.90 <= found.low < found.mean < found.high <= 0.99
    assert interval(values, method="bootstrap") == found


def test_a_bootstrap_interval_where_bca_is_undefined() -> None:
    assert interval([0.5] * 6, method="bootstrap").text() == "50.0 [50.0, 50.0]"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_bootstrap_of_fewer_than_six_is_refused_in_one_line(count: int) -> None:
    with pytest.raises(UsageError, match=f"at least 6 seeds of every setting, and one has {count}") as raised:
        interval([0.9] * count, method="bootstrap")
    assert "\n" not in str(raised.value)


def test_a_bootstrap_of_fewer_than_ten_is_warned_of() -> None:
    six, ten = (interval([n / 100 for n in range(count)], method="bootstrap") for count in (6, 10))
    assert "fewer than ten" in interval_note([six], method="bootstrap")
    assert "fewer than ten" in interval_note([ten, six], method="bootstrap")
    assert "fewer than ten" not in interval_note([ten], method="bootstrap")


def test_of_two_seeds_lowest_and_highest_are_told_and_no_interval() -> None:
    found = interval([0.94, 0.90])
    assert (found.mean, found.low, found.high) == (pytest.approx(0.92), 0.90, 0.94)
    assert (found.half_width, found.p, found.kind) == (None, None, "lowest to highest")
    assert not found.leaves_zero_out
    assert interval_note([found]) == "mean [lowest to highest] of two seeds"
    assert "[lowest to highest] where there are two seeds" in interval_note(
        [found, interval([0.1, 0.2, 0.3])]
    )
    assert interval_note([interval([0.5])]) == "one seed, without an interval"


def test_intervals_of_bounded_values_stay_within_their_bounds() -> None:
    # Mean 0.98, deviation 0.02, t(0.975, 2) = 4.302653: half of 4.302653 * 0.02 / sqrt(3) = 0.049683.
    found = interval([0.96, 0.98, 1.0])
    assert found.low == pytest.approx(0.98 - 0.049683, abs=1e-6)
    assert (found.high, found.is_cut, found.half_width) == (1.0, True, None)
    assert str(found) == "98.0 -5.0/+2.0"
    assert found.kind == "95% t, cut"
    assert "is cut" in interval_note([found])
    low = interval([0.0, 0.02, 0.04])
    assert (low.low, low.is_cut) == (0.0, True)
    whole = interval([0.96, 0.98, 1.0], bounds=ANY)
    assert whole.high == pytest.approx(0.98 + 0.049683, abs=1e-6)
    assert not interval([0.5, 0.51, 0.52]).is_cut


def test_equal_values_at_a_bound_are_their_own_interval() -> None:
    found = interval([1.0, 1.0, 1.0])
    assert (found.low, found.high, str(found)) == (1.0, 1.0, "100.0 ± 0.0")


@pytest.mark.parametrize(("count", "least"), [(3, 0.945), (5, 0.945), (10, 0.945)])
def test_t_intervals_cover_95_percent_of_normal_values(count: int, least: float) -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.05, size=(4000, count))
    covered = [_covers(interval(row), 0.5) for row in draws.tolist()]
    assert least <= sum(covered) / len(covered) <= 0.96


def test_cutting_costs_no_coverage() -> None:
    # Accuracies around 95%, skewed as near a bound: both intervals cover the mean equally often.
    draws = np.random.default_rng(1).beta(57, 3, size=(4000, 3)).tolist()
    cut = [_covers(interval(row), 0.95) for row in draws]
    assert cut == [_covers(interval(row, bounds=ANY), 0.95) for row in draws]
    assert 0.92 <= sum(cut) / len(cut) <= 0.95
    assert all((interval(row).high or 0) <= 1 for row in draws)


def _covers(found: Interval, value: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= value <= found.high


def test_the_p_value_is_that_of_the_t_test() -> None:
    values = [0.01, 0.03, -0.01, 0.02]
    assert interval(values, bounds=DIFFERENCE).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert interval([0.0, 0.0, 0.0]).p == 1.0
    assert interval([0.3 - 0.2, 0.2 - 0.1, 0.1], bounds=DIFFERENCE).p is None  # no spread but of rounding


def test_the_test_set_alone_leaves_a_width() -> None:
    # 1.96 * sqrt(0.969 * 0.031 / 360) = 0.0179.
    assert width_of_the_test_set(0.969, 360) == pytest.approx(1.79, abs=0.005)


@pytest.mark.slow
def test_a_bootstrap_of_few_seeds_covers_less_than_it_says() -> None:
    draws = np.random.default_rng(2).normal(0.5, 0.05, size=(300, 6)).tolist()
    covered = sum(_covers(interval(row, method="bootstrap"), 0.5) for row in draws) / len(draws)
    assert 0.78 <= covered <= 0.91  # 85% in 1,500 draws: docs/numbers.md

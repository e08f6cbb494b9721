"""The best of a group and what no test tells from it, against scipy and by hand."""

from __future__ import annotations

import pytest
from result_rows import frame, row
from scipy import stats

from orchestrator.analysis.leaders import MOST_COMPETITORS, find_leaders
from orchestrator.errors import UsageError

BEST, NEAR, WORST = (0.90, 0.92, 0.91, 0.93), (0.89, 0.93, 0.90, 0.92), (0.60, 0.61, 0.60, 0.63)


def of(*values: float, amount: float = 0.5):  # type: ignore[no-untyped-def]  # a DataFrame
    return frame(*(row(amount=amount, seed=seed, accuracy=value) for seed, value in enumerate(values)))


def test_what_no_paired_test_tells_from_the_best_leads_with_it() -> None:
    leaders = find_leaders([[of(*WORST), of(*BEST), of(*NEAR)]])
    assert leaders.flags == [[False, True, True]]
    assert (leaders.pairs, leaders.untested) == (3, 0)
    # By scipy, times the number of pairs: the largest factor that Holm's correction may take.
    assert 3 * stats.ttest_rel(BEST, WORST).pvalue < 0.05
    assert stats.ttest_rel(BEST, NEAR).pvalue > 0.05


def test_all_pairs_of_all_groups_are_corrected_for() -> None:
    # p of the single pair is 0.0249 by scipy: alone it is below 5%, of three pairs it is not.
    one, other = (0.90, 0.92, 0.91, 0.95), (0.86, 0.90, 0.88, 0.88)
    p = stats.ttest_rel(one, other).pvalue
    assert 0.05 / 3 < p < 0.05
    assert find_leaders([[of(*one), of(*other)]]).flags == [[True, False]]
    assert find_leaders([[of(*one), of(*other)], [of(*BEST), of(*NEAR), of(*BEST)]]).flags[0] == [False] * 2


def test_no_group_without_a_difference_and_without_a_test_has_leaders() -> None:
    assert find_leaders([[of(*BEST), of(*NEAR)]]).flags == [[False, False]]
    two_seeds = find_leaders([[of(0.9, 0.91), of(0.1, 0.11)]])
    assert (two_seeds.flags, two_seeds.pairs, two_seeds.untested) == ([[False, False]], 0, 1)
    assert not two_seeds.any


def test_networks_that_nothing_was_pruned_of_are_no_pair() -> None:
    unpruned = find_leaders([[of(*BEST, amount=0.0), of(*BEST, amount=0.0)]])
    assert (unpruned.pairs, unpruned.untested) == (0, 0)


def test_too_many_competitors_are_refused() -> None:
    with pytest.raises(UsageError, match=r"201 settings compete in one table; at most 200 .* --csv"):
        find_leaders([[of(0.5)] * (MOST_COMPETITORS + 1)])

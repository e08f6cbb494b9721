"""Phases by hand: what falls, rises and falls again, and what only trembles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.pq_index import COLLAPSING, NOT_SEEN, REGULARISING, UNDERFITTING, find_phases

R, U, C, N = REGULARISING, UNDERFITTING, COLLAPSING, NOT_SEEN


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        # falls to 0.3, rises to 0.5, falls again
        ([0.5, 0.4, 0.3, 0.4, 0.5, 0.4, 0.3], [R, R, R, U, U, C, C]),
        # the last fall is one round old: not confirmed
        ([0.5, 0.4, 0.3, 0.4, 0.5, 0.4], [R, R, R, U, U, U]),
        # the rise is one round old: nothing is known yet
        ([0.5, 0.4, 0.3, 0.4], [N] * 4),
        ([0.5, 0.4, 0.3, 0.4, 0.4], [R, R, R, U, U]),
        # it never turns
        ([0.5, 0.4, 0.3, 0.2, 0.1], [N] * 5),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [N] * 5),
        ([0.3] * 5, [N] * 5),
        # noise of no more than delta, for as long as it likes
        ([0.50, 0.40, 0.405, 0.41, 0.404, 0.41, 0.30, 0.309], [N] * 8),
        # one round above, one back: no two on end
        ([0.5, 0.3, 0.4, 0.305, 0.4, 0.305, 0.4], [N] * 7),
        # a rise that comes before any fall is no turning point; what follows it is
        ([0.3, 0.5, 0.6, 0.4, 0.3, 0.5, 0.6], [N, N, R, R, R, U, U]),
        ([0.3, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1], [N] * 7),
        # a lower bottom takes the place of the first until one is confirmed
        ([0.5, 0.3, 0.4, 0.2, 0.4, 0.4], [R, R, R, R, U, U]),
        ([], []),
        ([0.5], [N]),
    ],
)
def test_sequences_by_hand(indices: list[float], expected: list[str]) -> None:
    assert find_phases(indices, delta=0.01, patience=2) == expected


def test_patience_and_delta() -> None:
    rising = [0.5, 0.3, 0.4]
    assert find_phases(rising, delta=0.01, patience=1) == [R, R, U]
    assert find_phases(rising, delta=0.01, patience=2) == [N] * 3
    assert find_phases([0.5, 0.25, 0.5], delta=0.25, patience=1) == [N] * 3  # as much as delta is noise
    assert find_phases([0.5, 0.25, 0.5], delta=0.2, patience=1) == [R, R, U]


values = st.lists(st.floats(0, 1), max_size=20)


@given(values, st.floats(0, 0.3), st.integers(1, 4))
def test_phases_come_in_their_order_and_a_claim_is_not_taken_back(
    indices: list[float], delta: float, patience: int
) -> None:
    found = find_phases(indices, delta=delta, patience=patience)
    assert len(found) == len(indices)
    assert found == sorted(found, key=[N, R, U, C].index)
    past = False
    for count in range(1, len(indices) + 1):
        now = find_phases(indices[:count], delta=delta, patience=patience)[-1] in (U, C)
        assert now or not past
        past = now


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"delta": -0.1}, r"delta: expected a number in \[0, inf\) but got -0.1"),
        ({"delta": float("nan")}, "delta: expected a number"),
        ({"delta": True}, "but got True"),
        ({"patience": 0}, "patience: expected a whole number of rounds, 1 or more, but got 0"),
        ({"patience": 1.0}, "but got 1.0"),
    ],
)
def test_bad_values(given: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find_phases([0.1], **given)  # type: ignore[arg-type]

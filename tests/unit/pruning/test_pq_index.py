"""The PQ index: six laws, the bound, the counts; numbers worked by hand or by another formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pruning.pq_index import (
    gini,
    kept_bound,
    kept_bound_rows,
    pq_index,
    pq_index_rows,
    sap_counts,
    sap_prune_count,
)

PAIRS = [(0.5, 1.0), (1.0, 2.0), (0.2, 1.0), (0.5, 2.0), (1.0, 1.2)]
pairs = st.sampled_from(PAIRS)
sizes = st.floats(0.01, 100.0)
vectors = st.lists(sizes, min_size=2, max_size=12)
signed = st.lists(st.floats(-50, 50).map(lambda x: x if abs(x) > 1e-3 else 0.0), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("values", "p", "q", "expected"),
    [
        # [3, 1] at p=1, q=2: 1 - 2^(-1/2) * 4 / sqrt(10)
        ([3.0, 1.0], 1.0, 2.0, 1 - 4 / math.sqrt(20)),
        # [4, 1, 0, 0] at p=1/2, q=1: 1 - (1/4) * (2 + 1)^2 / 5
        ([4.0, -1.0, 0.0, 0.0], 0.5, 1.0, 0.55),
        # one-hot of 10: 1 - 10^(1/1 - 1/0.5)
        ([0.0] * 9 + [7.0], 0.5, 1.0, 0.9),
        ([2.0, 2.0, 2.0], 0.5, 1.0, 0.0),
        ([0.0, 0.0], 0.5, 1.0, 0.0),
        ([], 0.5, 1.0, 0.0),
    ],
)
def test_index_worked_by_hand(values: list[float], p: float, q: float, expected: float) -> None:
    assert pq_index(values, p=p, q=q) == pytest.approx(expected, abs=1e-12)


def test_takes_tensors_of_any_shape_and_type_and_gives_python_numbers() -> None:
    values = torch.tensor([[4, -1], [0, 0]])
    assert type(pq_index(values)) is float
    assert type(sap_prune_count(values)) is int
    assert pq_index(values) == pytest.approx(0.55)
    assert math.copysign(1, pq_index([1.0, 1.0])) == 1  # no minus zero


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12),
    st.sampled_from([*PAIRS, (0.5, 4.0), (0.5, 5.0)]),
)
def test_float32_of_any_size_is_what_it_is_in_float64(values: list[float], pair: tuple[float, float]) -> None:
    p, q = pair
    narrow = torch.tensor(values, dtype=torch.float32)
    expected = pq_index(narrow.double(), p=p, q=q)
    assert pq_index(narrow, p=p, q=q) == pytest.approx(expected, abs=1e-12)
    assert gini(narrow) == gini(narrow.double())


@given(vectors, pairs, st.data())
def test_robin_hood_lowers_it(values: list[float], pair: tuple[float, float], data: st.DataObject) -> None:
    rich = max(range(len(values)), key=values.__getitem__)
    poor = min(range(len(values)), key=values.__getitem__)
    assume(values[rich] - values[poor] > 0.1)
    moved = data.draw(st.floats(0.1, 0.9)) * (values[rich] - values[poor]) / 2
    after = list(values)
    after[rich] -= moved
    after[poor] += moved
    assert pq_index(after, *pair) < pq_index(values, *pair)


@given(signed, pairs, st.floats(1e-3, 1e3))
def test_scaling_changes_nothing(values: list[float], pair: tuple[float, float], factor: float) -> None:
    scaled = [-factor * value for value in values]
    assert pq_index(scaled, *pair) == pytest.approx(pq_index(values, *pair), abs=1e-12)


@given(vectors, pairs, st.floats(0.1, 10.0))
def test_rising_tide_lowers_it(values: list[float], pair: tuple[float, float], tide: float) -> None:
    assume(max(values) - min(values) > 0.1)
    assert pq_index([value + tide for value in values], *pair) < pq_index(values, *pair)


@given(signed, pairs, st.integers(2, 4))
def test_cloning_changes_nothing(values: list[float], pair: tuple[float, float], times: int) -> None:
    assert pq_index(values * times, *pair) == pytest.approx(pq_index(values, *pair), abs=1e-12)


@given(vectors, pairs, st.floats(10.0, 1e4))
def test_bill_gates_raises_it(values: list[float], pair: tuple[float, float], gain: float) -> None:
    # Once one entry outweighs the rest, more of it is always sparser.
    huge = [values[0] + 1e5 * len(values), *values[1:]]
    huger = [huge[0] + gain, *values[1:]]
    assert pq_index(huger, *pair) > pq_index(huge, *pair)


@given(signed, pairs, st.integers(1, 5))
def test_babies_raise_it(values: list[float], pair: tuple[float, float], babies: int) -> None:
    assume(any(values))
    assert pq_index(values + [0.0] * babies, *pair) > pq_index(values, *pair)


@given(signed, pairs)
def test_lies_between_zero_and_the_one_hot_vector(values: list[float], pair: tuple[float, float]) -> None:
    p, q = pair
    assert 0.0 <= pq_index(values, p, q) <= 1 - len(values) ** (1 / q - 1 / p) + 1e-12


@pytest.mark.parametrize("huge", [[1e308, 1e308], [5e-324, 5e-324], [1e200] * 7, [1e-300, 1e-300, 1e-300]])
def test_nothing_overflows(huge: list[float]) -> None:
    assert pq_index(huge, 1.0, 2.0) == 0.0
    assert kept_bound(huge, 1.0, 2.0) == pytest.approx(len(huge))


@given(signed, pairs)
def test_bound_holds_for_every_head(values: list[float], pair: tuple[float, float]) -> None:
    """Hoelder: r heads whose tail weighs eta times as much are never fewer than the bound for eta."""
    p, q = pair
    powers = sorted((abs(value) ** p for value in values), reverse=True)
    assume(powers[0] > 0)
    for r in range(1, len(powers) + 1):
        eta = sum(powers[r:]) / sum(powers[:r])
        assert kept_bound(values, p, q, eta) <= r + 1e-9 * len(values)


@given(signed, pairs)
def test_bound_without_a_tail_is_a_ratio_of_norms(values: list[float], pair: tuple[float, float]) -> None:
    p, q = pair
    assume(any(values))
    norms = [sum(abs(value) ** power for value in values) ** (1 / power) for power in pair]
    assert kept_bound(values, p, q) == pytest.approx((norms[0] / norms[1]) ** (p * q / (q - p)), rel=1e-9)


@given(signed, st.integers(1, 9))
def test_zeros_change_the_index_but_not_the_bound(values: list[float], zeros: int) -> None:
    assume(any(values))
    assert kept_bound(values + [0.0] * zeros) == pytest.approx(kept_bound(values), rel=1e-9)


def test_bound_shrinks_by_eta() -> None:
    assert kept_bound([1.0] * 4, 0.5, 1.0, eta=1.0) == pytest.approx(1.0)  # 4 (1 + 1)^(-1 / 0.5)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("d", [1, 2, 7, 10, 20, 97, 1000])
def test_k_equal_values_are_kept_to_the_last_one(pair: tuple[float, float], d: int) -> None:
    for k in sorted({1, 2, 3, 7, d // 2, d - 1, d} & set(range(1, d + 1))):
        values = [0.3] * k + [0.0] * (d - k)
        assert kept_bound(values, *pair) == pytest.approx(k, rel=1e-9)
        assert sap_prune_count(values, *pair, beta=1.0) == d - k


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        # r = (2 + 1)^2 / 5 = 1.8 of d = 4: floor(4 * 0.55) = 2
        ([4.0, 1.0, 0.0, 0.0], {}, 2),
        ([4.0, 1.0, 0.0, 0.0], {"gamma": 1.5}, 3),
        ([4.0, 1.0, 0.0, 0.0], {"gamma": 9.0, "beta": 0.5}, 2),
        # four equal values, eta = 1: r = 4 * 2^-2 = 1, so 3 leave though all tie
        ([1.0] * 4, {"eta": 1.0}, 3),
        ([1.0] * 4, {}, 0),
        ([0.0] * 4, {}, 0),
        ([], {}, 0),
        # beta = 0.9 of 10: 9 exactly, not 8.999
        ([1.0] + [0.0] * 9, {}, 9),
        ([1.0] + [0.0] * 19, {}, 18),
    ],
)
def test_counts_worked_by_hand(values: list[float], options: dict[str, float], expected: int) -> None:
    assert sap_prune_count(values, **options) == expected


@pytest.mark.parametrize(
    ("values", "gamma", "exact", "published"),
    [
        ([1.0] * 7 + [0.0] * 13, 1.0, 13, 12),  # float32 makes r = 7.0000005, which is rounded up to 8
        ([1.0] + [0.0] * 9, 1.0, 9, 8),
        ([float(value) for value in range(1, 101)], 3.0, 32, 30),
        ([0.0, 0.0, 0.0], 1.0, 0, 0),
    ],
)
def test_published_variant(values: list[float], gamma: float, exact: int, published: int) -> None:
    assert sap_prune_count(values, gamma=gamma) == exact
    assert sap_prune_count(values, gamma=gamma, published=True) == published


@given(st.lists(st.tuples(signed, st.integers(0, 6)), min_size=1, max_size=4), pairs, st.booleans())
def test_rows_are_vectors(
    rows: list[tuple[list[float], int]], pair: tuple[float, float], published: bool
) -> None:
    """Each row of a pool, without its dead, is what the scalar functions see."""
    width = max(len(values) + dead for values, dead in rows)
    pool = torch.full((len(rows), width), 9.0, dtype=torch.float64)  # the dead still carry values
    alive = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (values, dead) in enumerate(rows):
        pool[row, dead : dead + len(values)] = torch.tensor(values, dtype=torch.float64)
        alive[row, dead : dead + len(values)] = True
    p, q = pair
    indices = pq_index_rows(pool, alive, p=p, q=q)
    bounds = kept_bound_rows(pool, alive, p=p, q=q, eta=0.1)
    counts = sap_counts(pool, alive, p=p, q=q, published=published)
    assert counts.dtype == torch.int64
    for row, (values, _) in enumerate(rows):
        assert float(indices[row]) == pytest.approx(pq_index(values, p, q), abs=1e-12)
        assert float(bounds[row]) == pytest.approx(kept_bound(values, p, q, 0.1), rel=1e-9)
        assert int(counts[row]) == sap_prune_count(values, p, q, published=published)


def test_a_row_without_a_living_entry_loses_nothing() -> None:
    values, alive = torch.ones(2, 3), torch.tensor([[False] * 3, [True] * 3])
    assert pq_index_rows(values, alive).tolist() == [0.0, 0.0]
    assert sap_counts(values, alive, eta=1.0).tolist() == [0, 2]  # the living row: r = 3 / 4
    # In float32 1 - 1 / 3 lies below 2 / 3, and three times that below 2.
    assert sap_counts(values, alive, eta=1.0, published=True).tolist() == [0, 1]


@given(signed)
def test_gini_is_the_mean_difference(values: list[float]) -> None:
    """G = sum over all pairs of ||a| - |b|| / (2 n sum |a|)."""
    assume(any(values))
    size = [abs(value) for value in values]
    pairwise = sum(abs(a - b) for a in size for b in size)
    assert gini(values) == pytest.approx(pairwise / (2 * len(size) * sum(size)), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.0, 1.0], 2 / 3), ([1.0, 3.0], 0.25), ([5.0], 0.0), ([0.0], 0.0)]
)
def test_gini_worked_by_hand(values: list[float], expected: float) -> None:
    assert gini(values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, r"p is 0.0; .* \(0, 1\]"),
        ({"p": 1.5, "q": 3.0}, r"p is 1.5; .* \(0, 1\]"),
        ({"q": 0.5}, r"q is 0.5; .* \[1, inf\)"),
        ({"q": math.inf}, r"q is inf; .* \[1, inf\)"),
        ({"p": 1.0, "q": 1.0}, "p is 1.0 and q is 1.0; p must be below q"),
        ({"p": math.nan}, r"p is nan; .* \(0, 1\]"),
        ({"p": "half"}, r"p is 'half'; .* \(0, 1\]"),
        ({"eta": -0.1}, r"eta is -0.1; .* \[0, inf\)"),
        ({"gamma": 0.0}, r"gamma is 0.0; .* \(0, inf\)"),
        ({"beta": 0.0}, r"beta is 0.0; .* \(0, 1\]"),
        ({"beta": 1.1}, r"beta is 1.1; .* \(0, 1\]"),
    ],
)
def test_bad_values_name_the_parameter_and_its_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sap_prune_count([1.0, 2.0], **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_are_refused(bad: float) -> None:
    for function in (pq_index, kept_bound, sap_prune_count, gini):
        with pytest.raises(ValueError, match="NaN or infinity"):
            function([1.0, bad])

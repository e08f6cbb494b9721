"""How much leaves: laws for every schedule, and the numbers of each worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.mask_selection import Pools, target_count
from pruning.pq_index import sap_prune_count
from pruning.schedules import rounds_of, schedules, split_into_passes

NAMES = list(schedules)
FIXED = [name for name in NAMES if not schedules.get(name).traits.get("adaptive")]
ADAPTIVE = [name for name in NAMES if name not in FIXED]


def pool(values: Tensor | list[float], alive: Tensor | None = None) -> Pools:
    rows = torch.as_tensor(values, dtype=torch.float64)
    rows = rows[None] if rows.dim() == 1 else rows
    living = torch.ones_like(rows, dtype=torch.bool) if alive is None else alive.reshape(rows.shape)
    return Pools(rows, rows, living, ("a",))


def test_every_schedule_says_what_it_is() -> None:
    assert {"one_shot", "iterative", "cubic", "threshold", "pq_index", "column_mean"} <= set(NAMES)
    for name in NAMES:
        assert schedules.get(name).traits["summary"]
        assert schedules.get(name).function.__doc__


@pytest.mark.parametrize("name", NAMES)
@given(amount=st.floats(0, 1), seed=st.integers(0, 99), rows=st.integers(1, 3), size=st.integers(1, 12))
def test_counts_are_whole_and_stop_at_the_amount(
    name: str, amount: float, seed: int, rows: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, size, generator=generator, dtype=torch.float64)
    alive = torch.rand(rows, size, generator=generator) < 0.7
    counts = schedules.get(name)(Pools(values, values, alive, ("a",)), amount=amount, round=1)
    assert counts.dtype == torch.int64
    assert counts.shape == (rows,)
    dead, ceiling = (~alive).sum(1), target_count(amount, size)
    assert ((counts >= 0) & ((counts == 0) | (dead + counts <= ceiling))).all()


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.905, 1.0])
def test_fixed_schedules_land_on_the_amount(name: str, amount: float) -> None:
    schedule = schedules.get(name)
    alive = torch.ones(1, 997, dtype=torch.bool)
    gone = [0]
    for round in range(1, rounds_of(schedule) + 1):
        count = int(schedule(pool(torch.ones(997), alive), amount=amount, round=round))
        gone.append(gone[-1] + count)
        alive[0, : gone[-1]] = False
    assert gone == sorted(gone)
    assert gone[-1] == int(amount * 997 + 0.5)
    assert int(schedule(pool(torch.ones(997), alive), amount=amount, round=round + 1)) == 0


@pytest.mark.parametrize(
    ("spec", "gone"),
    [
        ("one_shot", [80]),
        # density 0.2^(t / 4): 0.6687, 0.4472, 0.2991, 0.2
        ("iterative(rounds=4)", [33, 55, 70, 80]),
        # 0.8 (1 - (1 - t / 4)^3): 0.4625, 0.7, 0.7875, 0.8
        ("cubic(rounds=4)", [46, 70, 79, 80]),
    ],
)
def test_rounds_worked_by_hand(spec: str, gone: list[int]) -> None:
    schedule = schedules.get(spec)
    assert rounds_of(schedule) == len(gone)
    values = pool(torch.ones(100))
    assert [int(schedule(values, amount=0.8, round=t)) for t in range(1, len(gone) + 1)] == gone


@pytest.mark.parametrize(
    ("spec", "values", "expected"),
    [
        ("threshold(value=2.0, unit='absolute')", [1.0, 2.0, 3.0, 0.0], 2),
        # mean square 25: 0.8 deviations are 4
        ("threshold(value=0.8)", [1.0, 3.0, 3.0, 9.0], 3),
        ("threshold(value=0.0)", [0.0, 1.0], 0),
        ("score_below(value=2.0)", [1.0, 2.0, 3.0, 0.0], 2),
        ("score_below", [0.01, 0.0099, 0.5, 0.0], 2),
        ("score_below(value=0.0)", [0.0, 1.0], 0),
        # mean 4
        ("column_mean(fraction=1.0)", [1.0, 4.0, 7.0], 1),
        ("column_mean", [1.0, 2.0, 9.0], 1),
        # r = (2 + 1)^2 / 5 = 1.8 of 4
        ("pq_index", [4.0, 1.0, 0.0, 0.0], 2),
        ("pq_index(gamma=1.5)", [4.0, 1.0, 0.0, 0.0], 3),
        ("pq_index(p=1.0, q=2.0)", [3.0, 0.0, 0.0, 3.0], 2),
        ("pq_index", [1.0] * 7 + [0.0] * 13, 13),
        ("pq_index(published=True)", [1.0] * 7 + [0.0] * 13, 12),
    ],
)
def test_adaptive_counts_worked_by_hand(spec: str, values: list[float], expected: int) -> None:
    schedule = schedules.get(spec)
    assert int(schedule(pool(values), amount=1.0, round=1)) == expected
    assert int(schedule(pool(values), amount=0.0, round=1)) == 0
    # What is dead counts neither as a value nor as a unit that can leave.
    dead = torch.tensor([True] * len(values) + [False] * 3)
    assert int(schedule(pool([*values, 0.1, 0.0, 50.0], dead), amount=1.0, round=1)) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "threshold(value=100.0)",
        "column_mean(fraction=100.0)",
        "pq_index(gamma=100.0)",
        "score_below(value=100.0)",
    ],
)
def test_the_amount_is_the_ceiling_of_adaptive_schedules(spec: str) -> None:
    alive = torch.tensor([True] * 7 + [False] * 3)
    values = pool(torch.arange(1.0, 11.0), alive)
    assert [int(schedules.get(spec)(values, amount=a, round=1)) for a in (0.2, 0.3, 0.5, 0.8)] == [0, 0, 2, 5]


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "score_below"])
def test_adaptive_schedules_need_no_scale(name: str) -> None:
    values = torch.rand(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    schedule = schedules.get(name)
    counts = [schedule(pool(values * factor), amount=1.0, round=1).tolist() for factor in (1.0, 2.0**-20)]
    assert counts[0] == counts[1]


def test_score_below_counts_scores_and_not_values() -> None:
    scores = torch.tensor([[-3.0, -1.0, 2.0], [0.0, -1.0, -5.0]], dtype=torch.float64)
    pools = Pools(scores, scores.abs() + 9, torch.ones(2, 3, dtype=torch.bool), ("a",))
    assert schedules.get("score_below(value=-0.5)")(pools, amount=1.0, round=1).tolist() == [2, 2]


def test_sap_over_rounds_sees_only_the_living() -> None:
    """Round by round with plain lists: sort, drop, forget."""
    values = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4
    alive = torch.ones(1, 60, dtype=torch.bool)
    living = sorted(values.tolist())
    for round in range(1, 5):
        count = int(schedules.get("pq_index")(pool(values, alive), amount=1.0, round=round))
        assert count == sap_prune_count(living)
        living = living[count:]
        alive = (values >= living[0])[None]


def test_passes_shrink_geometrically_and_end_where_one_pass_would() -> None:
    alive = torch.ones(1, 1000, dtype=torch.bool)
    left = []
    for count in split_into_passes(lambda pools: torch.tensor([999]), 3):
        alive[0, : 1000 - int(alive.sum()) + int(count(pool(torch.ones(1000), alive)))] = False
        left.append(int(alive.sum()))
    assert left == [100, 10, 1]


def test_passes_keep_a_target_for_each_pool() -> None:
    def everything_of_b(pools: Pools) -> Tensor:
        return pools.alive.sum(1) * int(pools.names == ("b",))

    first, last = split_into_passes(everything_of_b, 2)
    a, b = (
        pool([1.0, 2.0]),
        Pools(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), ("b",)),
    )
    assert [int(first(a)), int(first(b)), int(last(a)), int(last(b))] == [0, 2, 0, 2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cubic(rounds=0)", r"cubic\(rounds\) is 0; it must be in \[1, 10000\]"),
        ("iterative(rounds=2.5)", "type int"),
        ("pq_index(p=1.5, q=3.0)", r"pq_index\(p\) is 1.5; it must be in \(0, 1\]"),
        ("pq_index(q=0.5)", r"pq_index\(q\) is 0.5; it must be in \[1, inf\)"),
        ("pq_index(p=1.0)", "p is 1.0 and q is 1.0; p must be below q"),
        ("pq_index(eta=-1)", r"pq_index\(eta\) is -1.0; it must be in \[0, inf\)"),
        ("pq_index(gamma=0)", r"pq_index\(gamma\) is 0.0; it must be in \(0, inf\)"),
        ("pq_index(beta=1.5)", r"pq_index\(beta\) is 1.5; it must be in \(0, 1\]"),
        ("pq_index(published=1)", "type bool"),
        ("threshold(value=-1)", r"threshold\(value\) is -1.0; it must be in \[0, inf\)"),
        ("threshold(unit='percent')", "'percent'; it must be 'std' or 'absolute'"),
        ("column_mean(fraction=-0.5)", r"column_mean\(fraction\) is -0.5; it must be in \[0, inf\)"),
        ("score_below(value='a')", "type float"),
        ("score_below(value=1e999)", r"score_below\(value\) is inf; it must be in \(-inf, inf\)"),
        ("cubik", "did you mean cubic"),
    ],
)
def test_bad_values_name_the_parameter_and_its_range(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.get(spec)

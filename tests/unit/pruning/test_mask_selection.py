"""The one step that changes a mask: exact, stable, monotone, and never by a number that is none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.mask_selection import SCOPES, Count, Pools, prune_step, target_count


def removing(*counts: int) -> Count:
    return lambda pools: torch.tensor(counts)


def step(
    scores: dict[str, Tensor],
    alive: dict[str, Tensor] | None = None,
    *,
    scope: str = "layer",
    count: Count,
    keep_one: bool = False,
) -> dict[str, Tensor]:
    scores = {name: score.double() for name, score in scores.items()}
    living = alive or {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    return prune_step(scores, scores, living, scope=scope, count=count, keep_one=keep_one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("amount", "total", "expected"),
    [(0.0, 7, 0), (1.0, 7, 7), (0.5, 7, 4), (0.25, 10, 3), (0.25, 9, 2), (0.9, 10, 9), (0.99, 10, 10)],
)
def test_target_rounds_half_up(amount: float, total: int, expected: int) -> None:
    assert target_count(amount, total) == expected


def test_the_lowest_leave_and_ties_go_by_index() -> None:
    kept = step({"a": torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0])}, count=removing(3))
    assert kept["a"].tolist() == [False, False, True, False, True]


def test_rows_are_pools_of_their_own_in_scope_unit() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    kept = step({"a": scores}, scope="unit", count=removing(1, 2, 0))
    assert kept["a"].tolist() == [[False, True, True], [True, False, False], [True, True, True]]


def test_filters_are_rows_too() -> None:
    kept = step({"a": torch.arange(8.0).reshape(2, 2, 2, 1)}, scope="unit", count=removing(1, 1))
    assert kept["a"].flatten().tolist() == [False, True, True, True] * 2


def test_layers_compete_in_scope_global() -> None:
    kept = step(
        {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([0.5, 7.0])}, scope="global", count=removing(2)
    )
    assert kept["a"].tolist() == [True, False]
    assert kept["b"].tolist() == [False, True]


def test_layers_tie_by_their_order() -> None:
    ones = {"b": torch.ones(2), "a": torch.ones(2)}
    kept = step(ones, scope="global", count=removing(3))
    assert (kept["b"].tolist(), kept["a"].tolist()) == ([False, False], [False, True])


def test_the_best_of_every_layer_stays_with_keep_one() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([8.0, 9.0])}
    for scope, count in (("global", removing(4)), ("layer", removing(2))):
        kept = step(scores, scope=scope, count=count, keep_one=True)
        assert (kept["a"].tolist(), kept["b"].tolist()) == ([False, True], [False, True])


def test_keep_one_does_not_bring_back_a_dead_layer() -> None:
    alive = {"a": torch.zeros(2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}
    scores = {"a": torch.tensor([9.0, 9.0]), "b": torch.tensor([1.0, 2.0])}
    for scope in ("global", "layer"):
        kept = step(scores, alive, scope=scope, count=removing(1), keep_one=True)
        assert (kept["a"].any().item(), kept["b"].tolist()) == (False, [False, True])


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["unit", "layer"])
def test_the_dead_never_use_up_the_count(infinite: float, scope: str) -> None:
    alive = {"a": torch.tensor([[False, True, True], [False, True, True]])}
    counts = removing(1, 1) if scope == "unit" else removing(2)
    kept = step({"a": torch.full((2, 3), infinite)}, alive, scope=scope, count=counts)
    assert int(kept["a"].sum()) == 2
    assert not kept["a"][:, 0].any()


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["unit", "layer", "global"]),
    st.data(),
)
def test_the_count_is_exact_and_nothing_revives(
    rows: list[list[int]], scope: str, data: st.DataObject
) -> None:
    """A slow and plain sort by (score, index) in each pool is the other side."""
    scores = torch.tensor(rows, dtype=torch.float64)
    alive = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=len(rows), max_size=len(rows))
        )
    )
    shape = (len(rows), 3) if scope == "unit" else (1, 3 * len(rows))
    counts = data.draw(st.lists(st.integers(0, shape[1]), min_size=shape[0], max_size=shape[0]))
    kept = step({"a": scores}, {"a": alive}, scope=scope, count=removing(*counts))["a"]
    expected = alive.reshape(shape).clone()
    for pool, count in enumerate(counts):
        living = expected[pool].nonzero().flatten().tolist()
        for index in sorted(living, key=lambda i: (float(scores.reshape(shape)[pool, i]), i))[:count]:
            expected[pool, index] = False
    assert torch.equal(kept, expected.reshape(kept.shape))
    assert not (kept & ~alive).any()


def test_schedules_see_the_pools_as_they_are() -> None:
    seen: list[Pools] = []

    def count(pools: Pools) -> Tensor:
        seen.append(pools)
        return torch.zeros(len(pools.alive), dtype=torch.int64)

    scores = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    for scope in SCOPES:
        step(scores, scope=scope, count=count)
    assert [(pools.names, tuple(pools.alive.shape)) for pools in seen] == [
        (("a",), (2, 3)), (("b",), (1, 4)),
        (("a",), (1, 6)), (("b",), (1, 4)),
        (("a", "b"), (1, 10)),
        (("a",), (1, 6)), (("b",), (1, 4)),
    ]  # fmt: skip


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="scores of 'a' contain NaN"):
        step({"a": torch.tensor([1.0, math.nan])}, count=removing(1))
    for scope in ("layer", "global"):
        with pytest.raises(ValueError, match="0 or more"):
            step({"a": torch.ones(2)}, scope=scope, count=removing(-1))


@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), infinite=st.booleans())
def test_one_pool_loses_what_a_stable_sort_puts_first(seed: int, size: int, infinite: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (size,), generator=generator).double()
    if infinite:
        scores[scores == 3], scores[scores == -3] = math.inf, -math.inf
    alive = torch.rand(size, generator=generator) < 0.6
    count = int(torch.randint(size + 1, (1,), generator=generator))
    order = sorted((float(score), n) for n, score in enumerate(scores) if alive[n])
    expected = {n for _, n in order[count:]}
    for scope in ("global", "layer"):
        kept = step({"a": scores}, {"a": alive}, scope=scope, count=removing(count))["a"]
        assert set(kept.nonzero().flatten().tolist()) == expected


def test_the_earlier_import_path_has_the_same_names() -> None:
    from pruning import step

    assert (step.Pools, step.Count, step.SCOPES, step.target_count) == (Pools, Count, SCOPES, target_count)

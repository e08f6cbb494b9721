"""Allocations: scores over costs and losses over costs, by hand and against every other choice."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pruning
from pruning.allocation import Allocation, LossCurve
from pruning.masking import Scores

MILLION = 10**6


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_alive(scores: Scores) -> dict[str, Tensor]:
    return {name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()}


def order(ranked: Scores, alive: dict[str, Tensor] | None = None) -> list[tuple[str, int]]:
    """Return (layer, unit) in the order in which they go, as the step of scope `global` takes them."""
    units = [
        (float(value), number, name, index)
        for number, (name, values) in enumerate(ranked.items())
        for index, value in enumerate(values.flatten())
        if alive is None or alive[name].flatten()[index]
    ]
    return [(name, index) for _, _, name, index in sorted(units)]


def test_scores_are_relative_to_their_layer_and_over_the_cost() -> None:
    scores = {"a": tensor(3, 4), "b": tensor(80, 60)}  # norms 5 and 100
    ranked = Allocation({"a": tensor(2, 2), "b": torch.tensor(1.0)}).rank(scores, all_alive(scores))
    torch.testing.assert_close(ranked, {"a": tensor(0.3, 0.4), "b": tensor(0.8, 0.6)})
    assert order(ranked) == [("a", 0), ("a", 1), ("b", 1), ("b", 0)]


def test_dead_units_are_no_part_of_the_norm() -> None:
    scores = {"a": tensor(3, 4, 12)}
    alive = {"a": torch.tensor([True, True, False])}
    ranked = Allocation({"a": torch.tensor(1.0)}).rank(scores, alive)
    torch.testing.assert_close(ranked["a"][:2], tensor(0.6, 0.8))


def test_what_saves_nothing_goes_last_and_a_layer_of_zeros_first() -> None:
    scores = {"free": tensor(0, 1), "dead": tensor(0, 0), "a": tensor(1, 2)}
    costs = {"free": torch.tensor(0.0), "dead": torch.tensor(5.0), "a": torch.tensor(5.0)}
    ranked = Allocation(costs).rank(scores, all_alive(scores))
    assert order(ranked)[:2] == [("dead", 0), ("dead", 1)]
    assert order(ranked)[-2:] == [("free", 0), ("free", 1)]
    assert not any(values.isnan().any() for values in ranked.values())


def test_a_unit_never_costs_less_than_one_before_it() -> None:
    # Measured are 0.2 for the first, 0.1 each for the next two, and 1.0. The 0.2, at 5 units left, are 0.2
    # again, 0.2 (5/4)^2 at 4 left, and so on: 0.2 (5/2)^2 = 1.25 and 0.2 (5/1)^2 = 5 at the end.
    curve = LossCurve((0, 1, 3, 4), (1.0, 1.2, 1.4, 2.4))
    assert curve.marginals(6).tolist() == pytest.approx([0.2, 0.2, 0.3125, 1.0, 1.25, 5.0])
    assert curve.predicted(3, 6) == pytest.approx(0.7125)
    assert LossCurve((0,), (1.0,)).marginals(2).tolist() == [math.inf, math.inf]
    infinite = LossCurve((0, 1, 2, 3), (1.0, 1.5, math.inf, math.inf))
    assert infinite.marginals(3).tolist() == [0.5, math.inf, math.inf]
    improved = LossCurve((0, 2, 4), (1.0, 0.8, 1.0))
    assert improved.marginals(4).tolist() == pytest.approx([-0.1, -0.1, 0.1, 0.1])


def test_losses_decide_between_layers_and_scores_within() -> None:
    scores = {"a": tensor(9, 7, 8), "b": tensor(1, 2, 3)}
    curves = {"a": LossCurve((0, 1, 3), (1.0, 1.1, 1.9)), "b": LossCurve((0, 2, 3), (1.0, 1.4, 2.0))}
    ranked = Allocation({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, curves).rank(
        scores, all_alive(scores)
    )
    # Of a: 0.1, 0.4, 0.4; of b: 0.2, 0.2, 0.6.
    assert order(ranked) == [("a", 1), ("b", 0), ("b", 1), ("a", 2), ("a", 0), ("b", 2)]
    # At three times the cost a's ratios are 0.033, 0.133, 0.133: all of them go before b's.
    ranked = Allocation({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}, curves).rank(
        scores, all_alive(scores)
    )
    assert order(ranked)[:3] == [("a", 1), ("a", 2), ("a", 0)]


def test_a_later_round_goes_on_where_the_one_before_it_ended() -> None:
    scores = {"a": tensor(9, 7, 8), "b": tensor(1, 2, 3)}
    curves = {"a": LossCurve((0, 1, 3), (1.0, 1.1, 1.9)), "b": LossCurve((0, 2, 3), (1.0, 1.4, 2.0))}
    allocation = Allocation({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, curves)
    alive = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False, True, True])}
    assert order(allocation.rank(scores, alive), alive) == [("b", 1), ("a", 2), ("a", 0), ("b", 2)]


sizes = st.integers(1, 4)
losses = st.integers(-20, 100)


@st.composite
def knapsacks(draw: st.DrawFn) -> tuple[dict[str, LossCurve], dict[str, int], dict[str, int]]:
    """Curves with whole losses, the sizes of the layers and their costs, of up to three layers."""
    curves, layer_sizes, costs = {}, {}, {}
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        size = draw(sizes)
        counts = sorted({0, *draw(st.sets(st.integers(1, size), min_size=1))})
        curves[name] = LossCurve(tuple(counts), tuple(float(draw(losses)) for _ in counts))
        layer_sizes[name], costs[name] = size, draw(st.integers(1, 9))
    return curves, layer_sizes, costs


@given(knapsacks(), st.integers(0, MILLION))
def test_no_other_choice_that_saves_as_much_is_predicted_to_lose_less(
    knapsack: tuple[dict[str, LossCurve], dict[str, int], dict[str, int]], seed: int
) -> None:
    curves, layer_sizes, costs = knapsack
    generator = torch.Generator().manual_seed(seed)
    scores = {
        n: torch.rand(size, generator=generator, dtype=torch.float64) for n, size in layer_sizes.items()
    }
    allocation = Allocation({n: torch.tensor(float(cost)) for n, cost in costs.items()}, curves)
    sequence = [name for name, _ in order(allocation.rank(scores, all_alive(scores)))]
    every = [
        dict(zip(curves, counts, strict=True))
        for counts in product(*(range(size + 1) for size in layer_sizes.values()))
    ]
    predicted = [
        (
            sum(costs[n] * count for n, count in choice.items()),
            sum(curves[n].predicted(count, layer_sizes[n]) for n, count in choice.items()),
        )
        for choice in every
    ]
    for length in range(len(sequence) + 1):
        taken = {name: sequence[:length].count(name) for name in curves}
        saved, loss = predicted[every.index(taken)]
        least = min(other_loss for other_saved, other_loss in predicted if other_saved >= saved)
        # Where units are still predicted to help, more of them would help more: that is not asked for.
        remaining = [curves[n].marginals(size)[taken[n] :] for n, size in layer_sizes.items()]
        if all(marginals.min(initial=0.0) >= 0 for marginals in remaining):
            assert loss <= least + 1e-9


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


WEIGHT_COSTS = {
    f"{n}.weight": torch.tensor(cost, dtype=torch.float64) for n, cost in ((0, 9), (2, 1), (4, 3))
}
WEIGHT_CURVES = {
    "0.weight": LossCurve((0, 13, 128), (1.0, 1.1, 3.0)),
    "2.weight": LossCurve((0, 26, 256), (1.0, 1.0, 2.0)),
    "4.weight": LossCurve((0, 6, 64), (1.0, 1.6, 9.0)),
}


@pytest.mark.parametrize("curves", [None, WEIGHT_CURVES])
def test_a_score_that_is_no_number_is_refused(curves: dict[str, LossCurve] | None) -> None:
    network = net()
    with torch.no_grad():
        network.get_parameter("2.weight")[3, 3] = math.nan
    with pytest.raises(ValueError, match=r"the scores of '2\.weight' contain NaN"):
        pruning.prune(network, amount=0.5, allocation=Allocation(WEIGHT_COSTS, curves))


@pytest.mark.parametrize("curves", [None, WEIGHT_CURVES])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.77, 1.0])
def test_counts_stay_exact_and_rounds_only_add(curves: dict[str, LossCurve] | None, amount: float) -> None:
    network, allocation = net(), Allocation(WEIGHT_COSTS, curves)
    masks = pruning.prune(network, amount=amount, allocation=allocation)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == int(amount * total + 0.5)
    first = pruning.prune(
        network, amount=amount, schedule="iterative(rounds=2)", round=1, allocation=allocation
    )
    second = pruning.prune(
        network, amount=amount, schedule="iterative(rounds=2)", round=2, masks=first, allocation=allocation
    )
    assert all(not (second[name] & ~first[name]).any() for name in masks)
    if curves is not None:  # whose sequence does not depend on the rounds; a norm of what is left does
        assert all(torch.equal(second[name], masks[name]) for name in masks)
    for name, mask in masks.items():  # within a layer the smallest weights go
        weights = network.get_parameter(name).detach().abs()
        if mask.any() and not mask.all():
            assert weights[~mask].max() <= weights[mask].min()


def test_units_of_cheap_layers_stay_longer_and_one_always_does() -> None:
    dear = Allocation({"0": tensor(*[100.0] * 16), "2": tensor(*[1.0] * 16)})
    masks = pruning.prune(net(), amount=0.5, granularity="unit", criterion="l2", allocation=dear)
    assert int(masks["0.bias"].sum()) == 1
    assert int(masks["2.bias"].sum()) == 15
    masks = pruning.prune(net(), amount=0.5, granularity="unit", criterion="l2", allocation=dear, round_to=4)
    assert {int(masks[f"{n}.bias"].sum()) % 4 for n in (0, 2)} == {0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "layer"}, "an allocation ranks the units of all layers: scope is 'layer'"),
        ({"granularity": "nm", "amount": 0}, "granularity 'nm' removes a fixed part of every row"),
        ({"schedule": "pq_index"}, "schedule 'pq_index' decides itself how much every layer loses"),
        ({"allocation": Allocation({})}, "the allocation says nothing of '0.weight'"),
        ({"allocation": Allocation(WEIGHT_COSTS, {})}, "the allocation says nothing of '0.weight'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    arguments = {"amount": 0.5, "allocation": Allocation(WEIGHT_COSTS), **options}
    with pytest.raises(ValueError, match=message):
        pruning.prune(net(), **arguments)  # type: ignore[arg-type]  # of several types

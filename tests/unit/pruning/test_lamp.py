"""`lamp` against the authors' definition as a plain loop, by hand, and as magnitude within a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pruning
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Masks, full_masks, prunable_layers


def scores(net: nn.Module, masks: Masks | None = None) -> dict[str, Tensor]:
    masks = masks or full_masks(net, None)
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items()}
    result: Any = criteria.get("lamp")(ScoringContext(net, weights, masks, torch.Generator()))
    return dict(result)


def linear(*rows: list[float]) -> nn.Module:
    net = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False))
    net[0].weight.data = torch.tensor(rows)
    return net


def definition(weights: list[float]) -> list[float]:
    """score(u) = W[u]^2 / sum over v >= u of W[v]^2, with W in ascending order of W^2: the paper's words."""
    order = sorted(range(len(weights)), key=lambda index: weights[index] ** 2)  # Python's sort is stable
    result = [0.0] * len(weights)
    for rank, index in enumerate(order):
        total = 0.0
        for other in order[rank:]:
            total += weights[other] ** 2
        result[index] = weights[index] ** 2 / total
    return result


def test_by_hand() -> None:
    """Squares 1, 4, 9, 16 add up to 30, 29, 25, 16 from each on."""
    got = scores(linear([1.0, -3.0], [-4.0, 2.0]))["0.weight"]
    assert got.dtype == torch.float64
    assert got.tolist() == [[1 / 30, 9 / 25], [1.0, 4 / 29]]


def test_ties_are_in_the_order_of_their_index() -> None:
    """Squares 4, 4, 1, 4: each 4 counts those after it, itself included."""
    got = scores(linear([2.0, -2.0, 1.0, 2.0]))["0.weight"]
    assert got.tolist() == [[4 / 12, 4 / 8, 1 / 13, 1.0]]


@given(st.lists(st.integers(-5, 5).filter(bool), min_size=1, max_size=30))
def test_it_is_the_definition_with_ties(values: list[int]) -> None:
    weights = [float(value) for value in values]
    got = scores(linear(weights))["0.weight"][0]
    torch.testing.assert_close(
        got, torch.tensor(definition(weights), dtype=torch.float64), rtol=1e-14, atol=0
    )


def test_every_layer_has_its_own_sum_whatever_its_shape() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6, 4))
    for name, score in scores(net).items():
        weights = dict(net.named_parameters())[name].detach()
        expected = torch.tensor(definition(weights.flatten().tolist()), dtype=torch.float64)
        torch.testing.assert_close(score.flatten(), expected, rtol=1e-12, atol=0)
        assert float(score.max()) == 1.0


def test_the_dead_count_nothing_and_zeros_are_lowest() -> None:
    net = linear([1.0, -3.0, 0.0], [-4.0, 2.0, 0.0])
    masks = full_masks(net, None)
    masks["0.weight"][1, 0] = False
    got = scores(net, masks)["0.weight"]
    assert got[0].tolist() == [1 / 14, 1.0, 0.0]
    assert got[1, 1:].tolist() == [4 / 13, 0.0]
    assert not scores(linear([0.0, 0.0]))["0.weight"].any()


def test_small_weights_keep_their_digits() -> None:
    """The total less a sum from below would be 0 behind a large weight, or negative."""
    got = scores(linear([1e8, 1e-8, 2e-8]))["0.weight"][0]
    assert float(got[0]) == 1.0
    assert 0 < float(got[1]) < float(got[2])


@given(seed=st.integers(0, 1000), amount=st.floats(0, 1), levels=st.sampled_from([2, 5, 1000]))
@pytest.mark.parametrize(
    ("granularity", "scope"), [("weight", "layer"), ("weight", "unit"), ("weight", "erk"), ("nm", "layer")]
)
def test_within_a_layer_it_is_magnitude_bit_for_bit(
    granularity: str, scope: str, seed: int, amount: float, levels: int
) -> None:
    """Few levels: many ties, zeros among them."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    for layer in prunable_layers(net).values():
        layer.weight.data = (layer.weight.data * levels).round() / levels
    options = {"amount": 0.5 if granularity == "nm" else amount, "granularity": granularity, "scope": scope}
    one, two = (pruning.prune(net, criterion=name, **options) for name in ("lamp", "magnitude"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_over_all_layers_it_is_not_and_no_layer_is_emptied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    net[2].weight.data *= 1e-3
    left = {}
    for name in ("lamp", "magnitude"):
        masks = pruning.prune(net, amount=0.99, criterion=name)
        left[name] = [int(mask.sum()) for mask in masks.values()]
    assert sum(left["lamp"]) == sum(left["magnitude"])
    assert left["magnitude"][1] == 0
    assert min(left["lamp"]) > 0


def test_global_amounts_are_those_of_the_authors_procedure() -> None:
    """Rank all scores, count each layer's survivors, and prune that many of it by magnitude."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    weights = {name: parameter.detach() for name, parameter in net.named_parameters() if parameter.dim() > 1}
    flat = [(score, name) for name, w in weights.items() for score in definition(w.flatten().tolist())]
    survivors = len(flat) - int(0.8 * len(flat) + 0.5)
    names = [name for _, name in sorted(flat, reverse=True)[:survivors]]
    masks = pruning.prune(net, amount=0.8, criterion="lamp")
    for name, weight in weights.items():
        largest = weight.abs().flatten().argsort(descending=True)[: names.count(name)]
        assert sorted(masks[name].flatten().nonzero().flatten().tolist()) == sorted(largest.tolist())

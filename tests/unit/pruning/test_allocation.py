"""Erdos-Renyi-kernel densities: worked by hand, and exact in total."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pruning
from pruning.mask_selection import allocate_erk

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (90, {"a": 60, "b": 30}),  # shapes sum to 30 and 15: two to one
        (200, {"a": 150, "b": 50}),  # b would keep 66.7 of its 50
        (250, {"a": 200, "b": 50}),
        (91, {"a": 61, "b": 30}),  # 60.67 and 30.33: the larger remainder rounds up
        (0, {"a": 0, "b": 0}),
    ],
)
def test_shares_worked_by_hand(kept: int, expected: dict[str, int]) -> None:
    assert allocate_erk({"a": (10, 20), "b": (5, 10)}, {"a": 200, "b": 50}, kept) == expected


def test_the_kernel_counts_as_in_the_paper() -> None:
    """Density of a 3x3 convolution, 8 to 16: (8 + 16 + 3 + 3) / (8 * 16 * 9), against 30 x 30."""
    kept = allocate_erk({"conv": (16, 8, 3, 3), "fc": (30, 30)}, {"conv": 1152, "fc": 900}, 180)
    assert kept == {"conv": 60, "fc": 120}
    assert kept["conv"] / 1152 / (kept["fc"] / 900) == pytest.approx((30 / 1152) / (60 / 900))


@given(shapes, st.floats(0, 1))
def test_the_total_is_exact_and_no_layer_is_overdrawn(layers: list[tuple[int, ...]], density: float) -> None:
    named = {str(index): shape for index, shape in enumerate(layers)}
    limits = {name: math.prod(shape) for name, shape in named.items()}
    kept = int(density * sum(limits.values()))
    found = allocate_erk(named, limits, kept)
    assert sum(found.values()) == kept
    assert all(0 <= found[name] <= limits[name] for name in named)
    free = [name for name in named if found[name] < limits[name]]
    scales = [found[name] / sum(named[name]) for name in free]
    for name, scale in zip(free, scales, strict=True):  # proportional, but for the rounding
        assert abs(scale - max(scales)) <= 1 / sum(named[name]) + 1 / min(sum(named[n]) for n in free)


def authors_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """The densities of the paper's appendix, as its code finds them: a layer above 1 is dense, and again."""
    full: set[int] = set()
    while True:
        free = [layer for layer in range(len(shapes)) if layer not in full]
        if not free:
            return [1.0] * len(shapes)
        budget = density * sum(map(math.prod, shapes)) - sum(math.prod(shapes[layer]) for layer in full)
        raw = {layer: sum(shapes[layer]) / math.prod(shapes[layer]) for layer in free}
        scale = budget / sum(raw[layer] * math.prod(shapes[layer]) for layer in free)
        if scale * max(raw.values()) <= 1:
            return [scale * raw[layer] if layer in raw else 1.0 for layer in range(len(shapes))]
        full |= {layer for layer in free if raw[layer] == max(raw.values())}


@given(shapes, st.integers(0, 100))
def test_densities_are_those_of_the_authors(layers: list[tuple[int, ...]], percent: int) -> None:
    total = sum(map(math.prod, layers))
    kept = total * percent // 100
    named = {str(index): shape for index, shape in enumerate(layers)}
    found = allocate_erk(named, {name: math.prod(shape) for name, shape in named.items()}, kept)
    for count, shape, density in zip(
        found.values(), layers, authors_densities(layers, kept / total), strict=True
    ):
        assert abs(count - density * math.prod(shape)) < 1 + 1e-9  # whole weights


def test_more_than_there_is_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="7 weights cannot be kept of 6"):
        allocate_erk({"a": (2, 3)}, {"a": 6}, 7)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 5))


@pytest.mark.parametrize("amount", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_pruning_follows_the_shares_and_the_scores(amount: float) -> None:
    net = network()
    total = 8 * 18 + 20 * 32 + 5 * 20
    masks = pruning.prune(net, amount=amount, scope="erk")
    left = {name: int(mask.sum()) for name, mask in masks.items()}
    sizes = {name: mask.numel() for name, mask in masks.items()}
    assert left == allocate_erk(
        {"0.weight": (8, 2, 3, 3), "2.weight": (20, 32), "4.weight": (5, 20)},
        sizes,
        total - int(amount * total + 0.5),
    )
    for name, mask in masks.items():  # the largest stay
        weight = net.get_parameter(name).detach().abs()
        if 0 < left[name] < sizes[name]:
            assert weight[mask].min() > weight[~mask].max()


@pytest.mark.parametrize("schedule", ["iterative(rounds=7)", "cubic(rounds=7)", "pq_index(rounds=7)"])
def test_every_round_is_exact_in_total_and_nested(schedule: str) -> None:
    net, masks = network(), None
    for round in range(1, 8):
        options = {"amount": 0.97, "schedule": schedule, "round": round, "masks": masks}
        after = pruning.prune(net, scope="erk", **options)
        layerless = pruning.prune(net, scope="global", **options)
        assert pruning.sparsity(after) == pruning.sparsity(layerless)
        if masks is not None:
            assert not any((after[name] & ~masks[name]).any() for name in after)
        masks = after


def test_erk_is_for_weights() -> None:
    for granularity in ("unit", "nm"):
        with pytest.raises(ValueError, match="scope 'erk' is for granularity weight"):
            pruning.prune(network(), amount=0.5, scope="erk", granularity=granularity)

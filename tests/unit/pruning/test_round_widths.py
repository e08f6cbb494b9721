"""Widths that hardware likes: what is left of every group is a multiple, of its best units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pruning
from pruning.mask_selection import round_widths

IMAGES = torch.zeros(1, 1, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 20, 3, padding=1), nn.ReLU(),
        nn.Conv2d(20, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def pruned(amount: float, **options: Any) -> pruning.Masks:
    how = {"criterion": "l2", "granularity": "channel", "scope": "layer", "example_input": IMAGES}
    return pruning.prune(net(), amount=amount, **how, **options)


def widths(masks: pruning.Masks) -> list[int]:
    return [int(masks[f"{name}.weight"].flatten(1).any(1).sum()) for name in ("0", "2", "4")]


@pytest.mark.parametrize(
    ("amount", "multiple", "expected"),
    [
        (0.5, 1, [12, 10, 3]),
        (0.5, 8, [16, 8, 6]),  # 12 is half-way, and rounds up; 10 is nearer to 8; 6 are fewer than 8
        (0.5, 4, [12, 12, 4]),
        (0.8, 8, [8, 8, 6]),  # at least one multiple
        (0.1, 8, [24, 16, 6]),  # 22 is nearer to 24; 18 to 16
        (0.0, 8, [24, 20, 6]),  # nothing is pruned, nothing is rounded
    ],
)
def test_the_nearest_multiple_is_left_of_every_layer(
    amount: float, multiple: int, expected: list[int]
) -> None:
    assert widths(pruned(amount, round_to=multiple)) == expected


def test_the_best_units_stay() -> None:
    stays = pruned(0.5, round_to=8)["0.weight"].flatten(1).any(1)
    plain = pruned(8 / 24)["0.weight"].flatten(1).any(1)
    assert torch.equal(stays, plain)  # 16 of 24, as if that had been asked for


def test_nothing_comes_back_from_an_earlier_round() -> None:
    first = pruned(0.6)
    second = pruned(0.7, masks=first, round_to=8)
    assert all(bool((mask <= first[name]).all()) for name, mask in second.items())
    assert widths(second)[:2] == [8, 8]


@given(st.integers(1, 60), st.integers(1, 16), st.data())
def test_what_is_left_is_a_multiple_and_no_other_is_nearer(
    size: int, multiple: int, data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    scores = torch.tensor(numbers, dtype=torch.float64)
    before = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    total = int(before.sum())
    left = data.draw(st.integers(0, total))
    after = torch.zeros(size, dtype=torch.bool)
    after[scores.masked_fill(~before, -1).argsort(descending=True)[:left]] = True
    stays = round_widths({"g": scores}, {"g": before}, {"g": after}, multiple=multiple)["g"]
    count = int(stays.sum())
    assert bool((stays <= before).all())
    if left in (0, total):
        assert count == left
    elif total < multiple:
        assert count == total
    else:
        assert count % multiple == 0
        assert 0 < count <= total
        others = range(multiple, total + 1, multiple)
        assert all(abs(count - left) <= abs(other - left) for other in others)
        assert bool((scores[before & ~stays] <= scores[stays].min()).all())


@pytest.mark.parametrize("multiple", [0, -1, 1.5, None])
def test_a_bad_multiple_is_refused(multiple: object) -> None:
    with pytest.raises(ValueError, match="round_to is"):
        pruned(0.5, round_to=multiple)


def test_single_weights_have_no_widths() -> None:
    with pytest.raises(ValueError, match="removes weights"):
        pruning.prune(net(), amount=0.5, granularity="weight", round_to=8)

"""Shuffled masks: the densities of every layer stay, the choice goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pruning


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def shuffled(seed: int) -> tuple[pruning.Masks, pruning.Masks]:
    masks = pruning.prune(network(), amount=0.8)
    return masks, pruning.shuffle_masks(masks, torch.Generator().manual_seed(seed))


def test_each_layer_keeps_its_density_and_shape() -> None:
    masks, mixed = shuffled(1)
    for name, mask in masks.items():
        assert mixed[name].shape == mask.shape
        assert mixed[name].dtype == torch.bool
        assert mixed[name].sum() == mask.sum()
        assert not torch.equal(mixed[name], mask)


def test_the_seed_decides_and_the_masks_given_stay() -> None:
    masks, one = shuffled(1)
    _, again = shuffled(1)
    _, other = shuffled(2)
    assert all(torch.equal(one[name], again[name]) for name in masks)
    assert any(not torch.equal(one[name], other[name]) for name in masks)
    assert all(torch.equal(masks[name], pruning.prune(network(), amount=0.8)[name]) for name in masks)


def test_units_cannot_be_shuffled() -> None:
    masks = pruning.prune(network(), amount=0.5, granularity="unit")
    with pytest.raises(ValueError, match=r"mask '0.bias' is of one dimension"):
        pruning.shuffle_masks(masks, torch.Generator())

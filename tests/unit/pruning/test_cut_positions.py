"""Entries of a cut network in the whole one: taken they are what a cut leaves, put back they are in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from pruning.channels import find_channels, shrink
from pruning.cutting.positions import (
    all_masks,
    put_entries,
    remaining_entries,
    removed_positions,
    take_entries,
)
from pruning.masking import Group, full_masks, mask_units

IMAGES = (1, 8, 8)
NETWORKS = {
    "batch norms": ("cnn", {"widths": [4, 6]}),
    "a residual sum": ("resnet", {"depth": 8}),
    "grouped convolutions": ("mobilenet_v2", {"width": 0.1}),
    "heads": ("vit", {"dim": 8, "depth": 1, "heads": 2}),
    "input features": ("slp", {}),
}


def network(name: str) -> tuple[nn.Module, tuple[Group, ...]]:
    torch.manual_seed(0)
    model, options = NETWORKS[name]
    net = models.build(model, input_shape=IMAGES, num_classes=3, **options)
    channels = find_channels(net, torch.zeros(2, *IMAGES))
    return net, channels.heads or channels.groups


def half_masks(net: nn.Module, groups: tuple[Group, ...]) -> dict[str, Tensor]:
    masks = full_masks(net, groups)
    for group in groups:
        masks = mask_units(group, torch.arange(group.size) % 2 == 1, masks)
    return masks


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_those_that_a_cut_leaves_and_go_back_to_their_places(name: str) -> None:
    net, groups = network(name)
    masks = half_masks(net, groups)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = shrink(net, masks, torch.zeros(2, *IMAGES), groups=groups).state_dict()
    removed = removed_positions(groups, all_masks(net, masks))
    entries = remaining_entries(net, removed)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())

    own = small.keys() - entries.keys()
    assert own == ({"output.inputs"} if name == "input features" else set())
    shared = {key: tensor for key, tensor in small.items() if key in entries}
    assert sum(t.numel() for t in shared.values()) < sum(t.numel() for t in before.values())
    masked = {key: t * masks[key] if key in masks else t for key, t in before.items()}
    for key, tensor in take_entries(masked, entries).items():
        assert torch.equal(tensor, small[key])

    put = put_entries(shared, entries, like=before)
    assert list(put) == list(before)
    for key, tensor in put.items():
        assert (tensor.shape, tensor.dtype) == (before[key].shape, before[key].dtype)
        remaining = torch.zeros(tensor.numel(), dtype=torch.bool)
        remaining[entries[key].flatten()] = True
        expected = masked[key].flatten()
        assert torch.equal(tensor.flatten()[remaining], expected[remaining])
        if tensor.is_floating_point():
            assert not tensor.flatten()[~remaining].any()


def test_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    removed = {("0", "out"): torch.tensor([1]), ("2", "in"): torch.tensor([1])}
    entries = remaining_entries(net, removed)
    assert entries["0.weight"].tolist() == [[0, 1], [4, 5]]
    assert entries["0.bias"].tolist() == [0, 2]
    assert entries["2.weight"].tolist() == [[0, 2]]
    assert entries["2.bias"].tolist() == [0]
    like = {"0.bias": torch.tensor([7.0, 8.0, 9.0])}
    assert put_entries({"0.bias": torch.tensor([1.0, 2.0])}, entries, like=like)["0.bias"].tolist() == [
        1,
        0,
        2,
    ]
    assert take_entries(like, entries)["0.bias"].tolist() == [7, 9]


def test_whole_numbers_that_are_cut_out_stay_and_tied_weights_have_one_place() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    net.register_buffer("steps", torch.tensor([3, 5, 7]))
    removed = {("4", "out"): torch.tensor([0]), ("", "steps 0"): torch.tensor([1])}
    entries = remaining_entries(net, removed)
    assert torch.equal(entries["0.weight"], entries["2.weight"])
    put = put_entries({"steps": torch.tensor([30, 70])}, entries, like=net.state_dict())
    assert put["steps"].tolist() == [30, 5, 70]


@given(st.lists(st.booleans(), min_size=2, max_size=9).filter(any))
def test_what_is_taken_and_put_back_is_taken_again(alive: list[bool]) -> None:
    net = nn.Sequential(nn.Linear(2, len(alive)), nn.ReLU(), nn.Linear(len(alive), 3))
    living = torch.tensor(alive)
    dead = (~living).nonzero().flatten()
    entries = remaining_entries(net, {("0", "out"): dead, ("2", "in"): dead})
    weights = net.state_dict()
    taken = take_entries(weights, entries)
    assert torch.equal(taken["0.weight"], weights["0.weight"][living])
    assert torch.equal(taken["2.weight"], weights["2.weight"][:, living])
    put = put_entries(taken, entries, like=weights)
    assert torch.equal(put["0.bias"], weights["0.bias"] * living)
    assert torch.equal(put["2.weight"], weights["2.weight"] * living)
    again = take_entries(put, entries)
    assert all(torch.equal(again[key], taken[key]) for key in taken)

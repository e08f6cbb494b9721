"""Masks in a network: exact zeros whatever was there, and refusals that change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pruning
from orchestrator.training.masked_step import Masker
from pruning.masking import Masks, mask_weight, mask_weights, view_as_integers

BROKEN = [math.nan, math.inf, -math.inf, -1.0]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).to(dtype)


def broken(net: nn.Module) -> Masks:
    """Masks under whose dead entries there is what is no number."""
    masks = {}
    for name, parameter in net.named_parameters():
        masks[name] = torch.rand(parameter.shape) < 0.5
        masks[name].view(-1)[0] = False
        dead = ~masks[name]
        parameter.data[dead] = (
            torch.tensor(BROKEN).to(parameter.dtype).repeat(parameter.numel())[: dead.sum()]
        )
    return masks


def is_plain_zero(values: Tensor) -> bool:
    """Every bit is 0: no -0 either."""
    return not view_as_integers(values.contiguous()).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dead_weights_are_exactly_zero_and_living_ones_keep_their_bits(dtype: torch.dtype) -> None:
    net = network(dtype)
    masks = broken(net)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    copies = mask_weights(before, masks)
    pruning.apply_masks(net, masks)
    for name, parameter in net.named_parameters():
        for found in (parameter.detach(), copies[name]):
            assert is_plain_zero(found[~masks[name]])
            assert torch.equal(found[masks[name]], before[name][masks[name]])


def test_weights_in_another_order_in_memory_are_masked_where_they_are() -> None:
    net = network().to(memory_format=torch.channels_last)
    masks = {"0.weight": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0}
    before = net[0].weight.detach().clone()
    Masker(dict(net.named_parameters()), masks)()
    assert torch.equal(net[0].weight.detach(), torch.where(masks["0.weight"], before, 0.0))
    assert torch.equal(mask_weight(before, masks["0.weight"]), net[0].weight.detach())


def test_the_training_loops_masks_leave_nothing_that_is_no_number() -> None:
    net = network()
    masks = broken(net)
    living = {name: parameter.detach()[masks[name]].clone() for name, parameter in net.named_parameters()}
    Masker(dict(net.named_parameters()), masks)()
    for name, parameter in net.named_parameters():
        assert is_plain_zero(parameter.detach()[~masks[name]])
        assert torch.equal(parameter.detach()[masks[name]], living[name])


def test_a_momentum_that_overflows_at_a_dead_weight_stays_there() -> None:
    """Its step makes the weight infinite each time; the network goes on as if nothing were."""
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    mask = Masker(dict(net.named_parameters()), {"weight": torch.tensor([[True, False]])})
    mask()
    for _ in range(3):
        net.weight.grad = torch.tensor([[1.0, math.inf]])
        optimizer.step()
        mask()
        assert net.weight[0, 1] == 0
        assert net(torch.ones(2)).isfinite()


def test_what_is_dead_already_counts_as_zero_when_more_is_pruned() -> None:
    net = network()
    masks = {name: mask for name, mask in broken(net).items() if mask.dim() > 1}
    for name, parameter in net.named_parameters():
        if name in masks:
            parameter.data[masks[name]] = 1.0
    again = pruning.prune(net, amount=0.9, scope="layer", masks=masks)
    for name, mask in masks.items():
        assert not (again[name] & ~mask).any()
        assert int((~again[name]).sum()) == int(0.9 * mask.numel() + 0.5)


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (torch.ones(5, 16), r"mask '3.weight' is of type torch.float32; a bool tensor is needed"),
        (torch.ones(5, 16, dtype=torch.uint8), r"mask '3.weight' is of type torch.uint8"),
        (np.ones((5, 16), dtype=bool), r"mask '3.weight' is of type ndarray"),
        ([[True] * 16] * 5, r"mask '3.weight' is of type list"),
        (None, r"mask '3.weight' is of type NoneType"),
        (torch.ones(16, 5, dtype=torch.bool), r"mask '3.weight' of shape \(16, 5\) .* it must be \(5, 16\)"),
        (torch.ones(1, dtype=torch.bool), r"mask '3.weight' of shape \(1,\)"),
    ],
)
def test_a_mask_of_another_kind_is_refused_and_nothing_changes(mask: object, what: str) -> None:
    net = network()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    first = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=what):
        pruning.apply_masks(net, {"0.weight": first, "3.weight": mask})  # type: ignore[dict-item]
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


@pytest.mark.parametrize("name", ["3.wieght", "nowhere", "1.running_mean"])
def test_a_mask_of_an_unknown_name_is_refused_with_the_near_ones_and_nothing_changes(name: str) -> None:
    net = network()
    before = net[0].weight.detach().clone()
    masks = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool), name: torch.ones(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=f"mask '{name}' fits no parameter of the network; there are "):
        pruning.apply_masks(net, masks)
    assert torch.equal(net[0].weight, before)

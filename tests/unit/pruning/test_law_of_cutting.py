"""The law of cutting: equal outputs on random images, or a ValueError; nothing is silent, nothing crashes."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import torch
from adversarial import CASES, IMAGE, Case
from torch import Tensor, nn

import pruning
from pruning.masking import Masks

EXAMPLE = torch.zeros(2, *IMAGE)


def built(case: Case) -> nn.Module:
    torch.manual_seed(3)
    net = case.make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return net


def largest_difference(net: nn.Module, masks: Masks, small: nn.Module) -> float:
    """Of the outputs of the masked and the cut network, over the largest, on images of its own."""
    shape = (len(EXAMPLE), *IMAGE)  # a network may take batches of one size alone
    images = torch.randn(shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return max(_difference(net, masks, small, each) for each in (images, images.abs(), 99 * images.abs()))


def _difference(net: nn.Module, masks: Masks, small: nn.Module, images: Tensor) -> float:
    masked = deepcopy(net)
    parameters = dict(masked.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)
        ours, theirs = small.double()(images.clone()), masked.double()(images.clone())
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def prune(net: nn.Module, **options: object) -> Masks:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not pruned is named in a warning
        return pruning.prune(net, amount=0.5, criterion="l2", scope="layer", example_input=EXAMPLE, **options)


def cut(net: nn.Module, granularity: str) -> tuple[Masks, nn.Module] | str:
    """Masks of half of the network and what is left of it, or the message of the refusal."""
    try:
        masks = prune(net, granularity=granularity)
        return masks, pruning.shrink(net, masks, EXAMPLE)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("granularity", ["channel", "unit"])
def test_a_cut_network_computes_what_the_masked_one_does_or_it_is_refused(
    case: Case, granularity: str
) -> None:
    net = built(case)
    expected = case.channel if granularity == "channel" else case.unit
    result = cut(net, granularity)
    if isinstance(result, str):
        assert expected != "cut", result
        assert result
        assert "\n" not in result
        return
    masks, small = result
    assert expected != "refused"
    assert largest_difference(net, masks, small) < 1e-9
    before, after = (sum(p.numel() for p in one.parameters()) for one in (net, small))
    assert after < before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_single_weights_are_counted_or_refused(case: Case) -> None:
    net = built(case)
    try:
        masks = prune(net, granularity="weight")
    except ValueError:
        return
    for name, mask in masks.items():
        assert net.get_parameter(name).shape == mask.shape
        assert int((~mask).sum()) == int(mask.numel() / 2 + 0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_classes_are_never_removed(case: Case) -> None:
    net = built(case)
    try:
        masks = prune(net, granularity="unit")
    except ValueError:
        return
    assert "out.bias" not in masks
    if "out.weight" in masks:
        assert isinstance(masks["out.weight"], Tensor)
        assert masks["out.weight"].flatten(1).any(1).all()

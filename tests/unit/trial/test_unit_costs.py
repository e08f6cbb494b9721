"""What a unit saves, worked by hand and counted on networks that were really cut."""

from __future__ import annotations

import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

import models
import pruning
from orchestrator.trial.structure import groups_of
from orchestrator.trial.unit_costs import group_macs, unit_costs
from pruning.masking import full_masks, mask_units

CNN = ("cnn(widths=[6, 10])", (1, 8, 8), 10)
MLP = ("mlp(widths=[8, 6])", (1, 8, 8), 10)


def test_channels_by_hand() -> None:
    costs = unit_costs(CNN, "channel", ())
    # A filter of the first layer: 9 weights at 64 positions, and 9 of each of 10 filters at 16 positions.
    assert costs["macs"]["blocks.0.conv"].tolist() == [9 * 64 + 9 * 10 * 16] * 6
    # One of the second: 9 weights for each of 6 inputs at 16 positions, and a column of 10 classes.
    assert costs["macs"]["blocks.1.conv"].tolist() == [9 * 6 * 16 + 10] * 10
    # Its weights, scale and shift of its norm, and the column.
    assert costs["parameters"]["blocks.1.conv"].tolist() == [9 * 6 + 2 + 10] * 10
    assert group_macs(CNN, "channel", ()) == {
        "blocks.0.conv": 9 * 6 * 64,
        "blocks.1.conv": 9 * 6 * 10 * 16,
    }


def test_weights_by_hand() -> None:
    costs = unit_costs(CNN, "weight", ())
    # A filter's weight is used once at every position, one of a Linear layer once.
    assert {name: float(cost) for name, cost in costs["macs"].items()} == {
        "blocks.0.conv.weight": 64,
        "blocks.1.conv.weight": 16,
        "output.weight": 1,
    }
    assert {float(cost) for cost in costs["parameters"].values()} == {1.0}


def test_neurons_by_hand() -> None:
    costs = unit_costs(MLP, "unit", ())
    assert costs["macs"]["hidden.0"].tolist() == [64 + 6] * 8
    assert costs["macs"]["hidden.1"].tolist() == [8 + 10] * 6
    assert set(unit_costs(MLP, "unit", ("hidden.0",))["macs"]) == {"hidden.1"}


def flops(net: torch.nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(images)
    return int(counter.get_total_flops())


def test_a_channel_saves_what_the_cut_network_lacks() -> None:
    model = "resnet(depth=8, shortcut='B')"
    architecture = (model, (1, 8, 8), 10)
    costs, groups = unit_costs(architecture, "channel", ()), groups_of(architecture, "channel", ())
    with warnings.catch_warnings(action="ignore"):
        net = models.build(model, input_shape=(1, 8, 8), num_classes=10)
        images = torch.rand(1, 1, 8, 8)
        before = flops(net, images)
        for group in groups or ():
            alive = torch.arange(group.size) != group.size - 1
            masks = mask_units(group, alive, full_masks(net, groups))
            after = flops(pruning.shrink(net, masks, images), images)
            assert 2 * costs["macs"][group.name][-1] == before - after


def test_a_unit_that_cannot_be_cut_out_alone_saves_its_own_rows() -> None:
    # What conv2 adds to the stream is as wide as the stream: 16 inputs, 9 weights each, at 64 positions.
    architecture = ("resnet(depth=8)", (1, 8, 8), 10)
    assert unit_costs(architecture, "unit", ())["macs"]["layer1.0.conv2"].tolist() == [9 * 16 * 64] * 16

"""What is dead by consequence: a hand-worked network, and both numbers, chosen and after propagation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trained import Trained, digits

import pruning
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.trial.macs import profile
from orchestrator.trial.measurement import MeasuredRound
from orchestrator.trial.run import run_trial
from pruning.cutting.propagation import propagate_masks

# 64 inputs, 40 and 20 neurons, 10 classes; 90% of the neurons leave 4 and 2.
MACS = 64 * 40 + 40 * 20 + 20 * 10
LEFT = 64 * 4 + 4 * 2 + 2 * 10
CHOSEN = 64 * 4 + 40 * 2 + 20 * 10  # rows alone: the columns of dead neurons are counted as living
GRANULARITIES = ("unit", "channel")


def config(model: str) -> DenseConfig:
    return DenseConfig(model, "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))


def pruned(model: str, prune: Prune) -> MeasuredRound:
    trial = TrialConfig(config(model), prune, "none", "x")
    return run_trial(trial, digits(), store=Trained()).last


def mlp(*, bias: bool) -> str:
    return f"mlp(widths=[40, 20], bias={bias})"


@pytest.mark.parametrize("bias", [False, True])
def test_ninety_per_cent_of_the_neurons_by_hand(bias: bool) -> None:
    measured = pruned(mlp(bias=bias), Prune("l2", "unit", "layer", "one_shot", 0.9))
    found, weights = measured.measurement, MACS  # one multiply-add a weight
    living, all_of_them = LEFT + bias * (4 + 2 + 10), weights + bias * (40 + 20 + 10)
    assert found.amount == pytest.approx(0.9)
    assert (found.macs_dense, found.macs_effective, found.macs_physical) == (MACS, LEFT, LEFT)
    assert found.macs_effective_chosen == CHOSEN
    assert found.sparsity == pytest.approx(1 - LEFT / weights)
    assert found.sparsity_chosen == pytest.approx(1 - CHOSEN / weights)
    assert (found.parameters_nonzero, found.parameters_physical) == (living, living)
    assert found.compression == all_of_them / living
    bits = sum(-(-size // 8) for size in (64 * 40, 40 * 20, 20 * 10, *((40, 20) if bias else ())))
    assert found.bytes_sparse == 4 * living + bits
    assert profile(measured.net, (1, 8, 8)).total_macs == LEFT
    rows = {row.layer: row for row in measured.layers}
    assert [rows[name].living for name in rows] == [64 * 4, 4 * 2, 2 * 10]
    assert [row.macs_effective for row in rows.values()] == [64 * 4, 4 * 2, 2 * 10]
    assert [row.sparsity for row in rows.values()] == pytest.approx([0.9, 1 - 8 / 800, 0.9])
    assert [row.sparsity_chosen for row in rows.values()] == pytest.approx([0.9, 0.9, 0.0])


@pytest.mark.parametrize("bias", [False, True])
def test_both_numbers_are_those_of_the_network_that_is_cut_out(bias: bool) -> None:
    """The same through the public functions alone."""
    measured = pruned(mlp(bias=bias), Prune("l2", "unit", "layer", "one_shot", 0.9))
    net = measured.net
    assert sum(parameter.numel() for parameter in net.parameters()) == measured.measurement.parameters_nonzero
    assert profile(net, (1, 8, 8)).total_macs == measured.measurement.macs_effective


@pytest.mark.parametrize("model", [mlp(bias=False), mlp(bias=True), "cnn(widths=[8, 16])"])
@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 0.9])
def test_neurons_and_channels_that_are_the_same_network_have_the_same_numbers(
    model: str, amount: float
) -> None:
    """A random choice is the same at both granularities; so are sparsity, compression and costs."""
    one, two = (
        pruned(model, Prune("random", granularity, "layer", "one_shot", amount)).measurement
        for granularity in GRANULARITIES
    )
    names = [
        "sparsity",
        "compression",
        "macs_effective",
        "macs_physical",
        "parameters_nonzero",
        "bytes_sparse",
    ]
    assert [getattr(one, name) for name in names] == [getattr(two, name) for name in names]
    assert one.macs_effective == one.macs_physical
    assert two.sparsity_chosen == two.sparsity
    assert (one.sparsity_chosen < one.sparsity) == (amount > 0)


@pytest.mark.parametrize("granularity", ["weight", *GRANULARITIES])
def test_nothing_dies_by_consequence_at_amount_0(granularity: str) -> None:
    found = pruned(mlp(bias=True), Prune("l2", granularity, "layer", "one_shot", 0.0)).measurement
    assert (found.sparsity, found.sparsity_chosen) == (0.0, 0.0)
    assert found.macs_effective == found.macs_effective_chosen == found.macs_dense == MACS


def test_of_single_weights_what_was_chosen_is_what_is_counted() -> None:
    found = pruned(mlp(bias=False), Prune("magnitude", "weight", "global", "one_shot", 0.9)).measurement
    assert found.sparsity == found.sparsity_chosen == 0.9
    assert found.macs_effective == found.macs_effective_chosen == MACS // 10


def test_a_unit_of_which_only_the_bias_lives_goes_on_saying_it() -> None:
    """Its weights are dead and its bias is not: nothing that reads it is dead."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    )
    image = torch.rand(1, 1, 2, 2)
    groups = pruning.trace(net, image)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0] = False
    spread = propagate_masks(net, {"1.weight": mask}, groups, example_input=image)
    assert spread.keys() == {"1.weight"}
    both = {"1.weight": mask, "1.bias": mask.any(1)}
    spread = propagate_masks(net, both, groups, example_input=image)
    assert spread["3.weight"].tolist() == [[False, True, True]] * 2


def test_columns_are_told_apart_where_a_part_of_the_dead_speaks() -> None:
    """A sigmoid gives 0.5 for the dead of layer 0, a ReLU 0 for those of 2: 4 reads zeros, 2 does not."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    image = torch.zeros(2, 6)
    masks = pruning.prune(net, amount=0.5, granularity="unit", criterion="l2", scope="layer")
    groups = pruning.trace(net, image)
    spread = propagate_masks(net, masks, groups, example_input=image)
    assert torch.equal(spread["2.weight"], masks["2.weight"])
    assert torch.equal(spread["4.weight"].any(0), masks["2.bias"])
    assert int((~spread["4.weight"]).sum()) == 2 * 3


@pytest.mark.parametrize("inputs", [8, 24])  # fewer and more than its 16 outputs
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_transposed_convolution_has_its_columns_in_the_first_dimension(
    granularity: str, inputs: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, inputs, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(inputs, 16, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    images = torch.zeros(2, 1, 8, 8)
    groups = pruning.trace(net, images)
    # Without biases removed units give zeros at either granularity, so that all they feed is dead.
    for layer in (net[0], net[2], net[4]):
        nn.init.zeros_(layer.bias)
    masks = pruning.prune(
        net, amount=0.5, criterion="l2", granularity=granularity, scope="layer", example_input=images
    )
    left = propagate_masks(net, masks, groups, example_input=images)
    pruning.apply_masks(net, masks)
    small = pruning.shrink(net, masks, images)
    weights = {name for name, _ in net.named_parameters() if name.endswith("weight")}
    alive = sum(int(left[name].sum()) for name in weights)
    assert alive == sum(p.numel() for name, p in small.named_parameters() if name.endswith("weight"))

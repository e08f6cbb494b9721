"""One round of pruning, whole: what `pruning.prune` promises to those who call it."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.masking import Masks

CONV, HIDDEN, OUTPUT = 4 * 9, 6 * 16, 3 * 6


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


IMAGES = torch.zeros(2, 1, 6, 6)


def gone(masks: Masks) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("amount", [0, 0.0, 0.123, 0.5, 0.9, 1, 1.0])
def test_weights_are_counted_exactly_in_every_scope(amount: float) -> None:
    net = network()
    sizes = {"0.weight": CONV, "5.weight": HIDDEN, "7.weight": OUTPUT}
    for scope in ("global", "erk"):
        assert sum(gone(pruning.prune(net, amount=amount, scope=scope)).values()) == int(amount * 150 + 0.5)
    by_layer = {name: int(amount * size + 0.5) for name, size in sizes.items()}
    assert gone(pruning.prune(net, amount=amount, scope="layer")) == by_layer
    by_row = {"0.weight": 4 * int(amount * 9 + 0.5), "5.weight": 6 * int(amount * 16 + 0.5)}
    by_row["7.weight"] = 3 * int(amount * 6 + 0.5)
    assert gone(pruning.prune(net, amount=amount, scope="unit")) == by_row


def test_global_keeps_the_largest_weights() -> None:
    net = network()
    masks = pruning.prune(net, amount=0.6)
    weights = {name: net.get_parameter(name).detach().abs() for name in masks}
    kept = torch.cat([weights[name][masks[name]] for name in masks])
    dropped = torch.cat([weights[name][~masks[name]] for name in masks])
    assert kept.min() > dropped.max()


def test_masks_are_bools_in_the_shape_of_the_parameters() -> None:
    net = network()
    for granularity in ("weight", "unit", "channel"):
        masks = pruning.prune(net, amount=0.5, granularity=granularity, example_input=IMAGES)
        for name, mask in masks.items():
            assert mask.dtype == torch.bool
            assert mask.shape == net.get_parameter(name).shape


def test_a_unit_goes_with_its_bias_and_its_norm() -> None:
    net = network()
    net[0].weight.data = torch.tensor([3.0, 1.0, 2.0, 4.0]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3).clone()
    masks = pruning.prune(net, amount=0.5, criterion="l2", granularity="unit", scope="layer")
    expected = [True, False, False, True]
    assert masks["0.weight"].flatten(1).any(1).tolist() == expected
    assert masks["0.weight"].flatten(1).all(1).tolist() == expected
    for name in ("0.bias", "1.weight", "1.bias"):
        assert masks[name].tolist() == expected
    assert masks["5.weight"].any(1).sum() == 3  # half of six
    assert not {name for name in masks if name.startswith("7")}  # classes are no units


def test_a_channel_goes_with_the_columns_that_read_it() -> None:
    net = network()
    net[0].weight.data[2] = 0.0
    net[5].weight.data[:, 8:12] = 0.0  # 2x2 positions of channel 2, after flattening
    masks = pruning.prune(
        net, amount=0.25, criterion="l2", granularity="channel", scope="layer", example_input=IMAGES
    )
    assert masks["0.weight"].flatten(1).any(1).tolist() == [True, True, False, True]
    assert (~masks["5.weight"].any(0)).nonzero().flatten().tolist() == [8, 9, 10, 11]
    assert masks["1.bias"].tolist() == [True, True, False, True]


def test_without_a_hidden_layer_the_units_are_input_features() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net[1].weight.data = torch.tensor([[1.0, 0.0, 3.0, 1.0], [1.0, 0.1, -3.0, 2.0]])
    masks = pruning.prune(net, amount=0.5, criterion="l1", granularity="unit")
    assert masks["1.weight"].tolist() == [[False, False, True, True]] * 2


@pytest.mark.parametrize("granularity", ["unit", "channel"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("schedule", ["one_shot", "threshold(value=50.0)"])
def test_one_unit_of_every_layer_stays_below_amount_one(granularity: str, scope: str, schedule: str) -> None:
    options = {"granularity": granularity, "scope": scope, "schedule": schedule, "example_input": IMAGES}
    masks = pruning.prune(network(), amount=0.999, **options)
    assert masks["0.weight"].flatten(1).any(1).sum() == 1
    assert masks["5.weight"].any(1).sum() == 1
    # At 1 a schedule that was told to removes everything; one that looks for itself never does.
    everything = pruning.prune(network(), amount=1, **options)
    assert everything["0.weight"].flatten(1).any(1).sum() == (0 if schedule == "one_shot" else 1)


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_what_is_gone_counts_and_stays_gone(granularity: str) -> None:
    net = network()
    options: dict[str, Any] = {"granularity": granularity, "example_input": IMAGES}
    first = pruning.prune(net, amount=0.3, **options)
    second = pruning.prune(net, amount=0.6, masks=first, **options)
    assert not any((second[name] & ~first[name]).any() for name in first)
    # 150 weights, 10 units: those of the second round are judged by the columns that are left.
    counts = [
        sum(gone(masks).values())
        if granularity == "weight"
        else sum(int((~masks[name].flatten(1).any(1)).sum()) for name in ("0.weight", "5.weight"))
        for masks in (first, second)
    ]
    assert counts == ([45, 90] if granularity == "weight" else [3, 6])
    less = pruning.prune(net, amount=0.1, masks=second, **options)
    assert gone(less) == gone(second)


@pytest.mark.parametrize("granularity", ["weight", "nm"])
def test_a_criterion_of_whole_units_ranks_no_single_weights(granularity: str) -> None:
    sample = (IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))
    with pytest.raises(ValueError, match=f"'pivoted_qr' ranks whole units or channels.*'{granularity}'"):
        pruning.prune(network(), amount=0.5, criterion="pivoted_qr", granularity=granularity, sample=sample)
    masks = pruning.prune(network(), amount=0.5, criterion="pivoted_qr", granularity="unit", sample=sample)
    assert sum(int((~masks[name].flatten(1).any(1)).sum()) for name in ("0.weight", "5.weight")) == 5


def test_a_value_that_scores_are_held_against_needs_them_as_they_are() -> None:
    with pytest.raises(ValueError, match="'score_below' counts what scores below a value"):
        pruning.prune(network(), amount=0.5, schedule="score_below", invert=True)


def test_interpolation_to_a_given_error_finds_the_width() -> None:
    """Units 3 and 4 are multiples of others, unit 2 is a hundredth of unit 0 and a little of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5, bias=False), nn.Linear(5, 3))
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.01, 0, 0.001, 0], [2, 0, 0, 0], [0, 3, 0, 0]])
    net[1].weight.data = rows
    # Orthogonal images: the activations are the transposed rows; |R_kk| / |R_11| = 1, 2/3, 1/3000, 0, 0.
    images = torch.eye(4).reshape(4, 1, 2, 2)
    options: dict[str, Any] = {"criterion": "pivoted_qr", "granularity": "unit", "scope": "layer"}
    options["sample"] = (images, torch.zeros(4, dtype=torch.int64))
    for value, kept in ((1e-4, [2, 3, 4]), (1e-3, [3, 4]), (0.5, [3, 4]), (0.7, [4])):
        masks = pruning.prune(net, amount=1, schedule=f"score_below(value={value})", **options)
        assert masks["1.weight"].any(1).nonzero().flatten().tolist() == kept
    masks = pruning.prune(net, amount=0.2, schedule="score_below(value=0.7)", **options)
    assert int(masks["1.weight"].any(1).sum()) == 4  # the amount is the ceiling


def test_masks_given_are_not_changed() -> None:
    net = network()
    for granularity in ("weight", "unit"):
        masks = pruning.prune(net, amount=0.3, granularity=granularity)
        before = {name: mask.clone() for name, mask in masks.items()}
        pruning.prune(net, amount=0.9, granularity=granularity, masks=masks)
        assert all(torch.equal(masks[name], before[name]) for name in before)


def test_protected_layers_keep_everything() -> None:
    net = network()
    masks = pruning.prune(net, amount=0.9, protect=["output", "0"])
    assert set(masks) == {"5.weight"}
    assert gone(masks) == {"5.weight": int(0.9 * HIDDEN + 0.5)}
    assert set(pruning.prune(net, amount=0.5, granularity="unit", protect=["input"])) == {
        "5.weight",
        "5.bias",
    }


def test_masks_of_weights_can_be_carried_on_by_units_and_back() -> None:
    net = network()
    weights = pruning.prune(net, amount=0.5)
    units = pruning.prune(net, amount=0.5, granularity="unit", scope="layer", masks=weights)
    dead = ~units["0.weight"].flatten(1).any(1)
    assert int(dead.sum()) == 2
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(units[name], ~dead)
    assert torch.equal(units["7.weight"], weights["7.weight"])
    again = pruning.prune(net, amount=0.9, protect=["output"], masks=units)
    assert torch.equal(again["7.weight"], weights["7.weight"])
    assert torch.equal(again["0.bias"], units["0.bias"])
    assert gone(again)["0.weight"] + gone(again)["5.weight"] == int(0.9 * (CONV + HIDDEN) + 0.5)


def test_protecting_everything_leaves_nothing_to_prune() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    for granularity in ("weight", "unit"):
        with pytest.raises(ValueError, match=r"protect is \['output'\]: that leaves nothing to prune"):
            pruning.prune(net, amount=0.5, granularity=granularity, protect=["output"])
        assert pruning.prune(net, amount=0, granularity=granularity, protect=["output"]) == {}


def test_methods_come_as_names_texts_and_mappings() -> None:
    net = network()
    specs = [
        "iterative(rounds=2)",
        {"method": "iterative", "rounds": 2},
        pruning.schedules.get("iterative(rounds=2)"),
    ]
    masks = [pruning.prune(net, amount=0.75, schedule=spec) for spec in specs]
    assert [sum(gone(mask).values()) for mask in masks] == [75] * 3  # 1 - 0.25^(1 / 2) of 150


def test_a_network_of_other_types_can_be_pruned() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        assert sum(gone(pruning.prune(network().to(dtype), amount=0.5)).values()) == 75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": -0.1}, r"amount is -0.1; it must be a fraction in \[0, 1\]"),
        ({"amount": 90}, r"amount is 90; it must be a fraction in \[0, 1\]"),
        ({"amount": math.nan}, r"amount is nan; it must be a fraction in \[0, 1\]"),
        ({"amount": True}, r"amount is True; it must be a fraction in \[0, 1\]"),
        ({"amount": "0.5"}, r"amount is '0.5'; it must be a fraction in \[0, 1\]"),
        ({"criterion": "magnitud"}, "unknown criterion 'magnitud'; did you mean magnitude"),
        ({"schedule": "oneshot"}, "unknown schedule 'oneshot'; did you mean one_shot"),
        ({"granularity": "units"}, "unknown granularity 'units'; did you mean unit"),
        ({"scope": "network"}, "scope is 'network'; it must be one of unit, layer, global, erk"),
        (
            {"scope": "unit", "granularity": "unit"},
            "scope 'unit' is for granularity weight or nm, not 'unit'",
        ),
        ({"round": 0}, "round is 0; rounds count from 1"),
        ({"protect": ["fc9"]}, "protect: no layer 'fc9'; there are"),
        ({"granularity": "channel"}, "'channel' needs example_input"),
        ({"criterion": "magnitude(p=1)"}, "unknown option of magnitude 'p'"),
    ],
)
def test_bad_values_name_the_parameter_and_its_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruning.prune(network(), **({"amount": 0.5} | options))


@pytest.mark.gpu
def test_masks_are_the_same_on_a_gpu() -> None:
    sample = (torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3)
    for granularity in ("weight", "unit", "channel"):
        for criterion in pruning.criteria:
            traits = pruning.criteria.get(criterion).traits
            if traits.get("norms") or (traits.get("groups") and granularity == "weight"):
                continue
            sums = {name: parameter.detach().double() for name, parameter in network().named_parameters()}
            options = {
                "amount": 0.5,
                "criterion": criterion,
                "granularity": granularity,
                "sample": sample,
                "accumulated": sums,
            }
            here = pruning.prune(network(), example_input=IMAGES, **options)
            there = pruning.prune(network().cuda(), example_input=IMAGES.cuda(), **options)
            assert all(mask.device.type == "cpu" for mask in there.values())
            assert gone(there) == gone(here), (criterion, granularity)
            if criterion in ("magnitude", "l1", "l2", "random"):
                assert all(torch.equal(here[name], there[name]) for name in here)
            net = network().cuda()
            pruning.apply_masks(net, there)


FRESH = """\
from pruning.criteria import criteria
try:
    criteria.register('snip', summary='')(lambda context: {})
except ValueError as error:
    print(error)
import importlib, pruning
for name in ('prune', 'pq_index', 'criteria', 'schedules'):
    importlib.import_module(f'pruning.{name}')
print(callable(pruning.prune), pruning.pq_index([1.0, 1.0]), pruning.criteria.kind)
names = pruning.__all__
print(set(names) <= set(dir(pruning)), all(hasattr(pruning, name) for name in names))
from pruning.criteria import Scene, ScoringContext
print(Scene is ScoringContext)
"""


@pytest.fixture(scope="module")
def fresh() -> list[str]:
    """What a process prints that has imported nothing of the package before."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_public_names_stay_what_they_are_when_their_modules_are_imported(fresh: list[str]) -> None:
    assert fresh[1:] == ["True 0.0 criterion", "True True", "True"]


def test_no_plug_in_takes_the_name_of_a_criterion_that_is_imported_late(fresh: list[str]) -> None:
    assert fresh[0] == "criterion 'snip' is registered already"

"""Amounts by layer: which layers a pattern decides, exact counts in each, and what several make together."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import models
import pruning
from pruning.amounts import (
    amounts_text,
    find_layer_amounts,
    find_makers,
    mean_amount,
    read_amounts,
    settle_amounts,
)
from pruning.channels import find_channels
from pruning.granularity import unit_groups
from pruning.masking import prunable_layers

IMAGES = torch.zeros(2, 1, 8, 8)


class Residual(nn.Module):
    """A stem whose channels two blocks add to, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        for name in ("early", "late"):
            block = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
            self.add_module(name, block)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.early(x)
        x = x + self.late(x)
        return self.fc(x.mean((2, 3)))


torch.manual_seed(0)
NET = Residual()
AMOUNTS = {"early.*": 0.25, "late.*": 0.75, "*": 0.5}
BY_LAYER = {"stem": 0.5, "early.0": 0.25, "early.2": 0.25, "late.0": 0.75, "late.2": 0.75, "fc": 0.5}


def prune(amount: Any, net: nn.Module = NET, **options: Any) -> pruning.Masks:
    return pruning.prune(net, amount=amount, example_input=IMAGES, **options)


def removed(masks: pruning.Masks) -> dict[str, int]:
    return {
        name.removesuffix(".weight"): int((~mask).sum()) for name, mask in masks.items() if mask.dim() > 1
    }


def asked(fraction: float, total: int) -> int:
    return int(fraction * total + 0.5)


# ---- which amount a layer has


def test_the_first_match_counts_and_a_layer_without_one_has_none() -> None:
    assert find_layer_amounts(NET, AMOUNTS) == BY_LAYER
    assert find_layer_amounts(NET, {"late.2": 0.1, "late.*": 0.2}) == {
        **dict.fromkeys(BY_LAYER, 0.0),
        "late.0": 0.2,
        "late.2": 0.1,
    }
    by_alias = find_layer_amounts(NET, {"output": 0.1, "input": 0.2, "*": 0.3}, example_input=IMAGES)
    assert by_alias == {**dict.fromkeys(BY_LAYER, 0.3), "fc": 0.1, "stem": 0.2}


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"erly.*": 0.5}, r"^amount: pattern 'erly.\*' matches no layer; there are early.2, early.0"),
        ({"early": 0.5}, r"^amount: no layer 'early'; there are early\.\*$"),
        ({"*": 0.5, "late.*": 0.5}, r"'late.\*' decides no layer, as entries before it match all of its"),
        ({"*": 1.5}, r"^amount of '\*' is 1.5; it must be a fraction in \[0, 1\]"),
        ({"*": -0.1}, r"^amount of '\*' is -0.1; it must be a fraction"),
        ({"*": float("nan")}, r"^amount of '\*' is nan; it must be a fraction"),
        ({"*": "50%"}, r"^amount of '\*' is '50%'; it must be a fraction"),
        ({"*": True}, r"^amount of '\*' is True; it must be a fraction"),
        ({3: 0.5}, r"^amount: 3 is no layer; give names, patterns"),
        ({}, r"^amount is an empty mapping"),
    ],
)
def test_what_is_refused(amounts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prune(amounts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options", [{"granularity": "nm"}, {"schedule": "threshold"}, {"schedule": "pq_index"}]
)
def test_methods_that_decide_how_many_go_take_one_amount(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="it has no amounts by layer"):
        prune(AMOUNTS, **options)
    plain, by_layer = prune(0.5, **options), prune({"early.*": 0.5, "*": 0.5}, **options)
    assert all(torch.equal(plain[name], by_layer[name]) for name in plain)


def test_a_layer_called_output_that_does_not_make_the_logits() -> None:
    net = nn.Sequential()
    for name in ("first", "output", "last"):
        net.add_module(name, nn.Linear(4, 4))
    with pytest.raises(ValueError, match="a layer is called 'output', and 'output' stands for last"):
        pruning.prune(net, amount={"first": 0.5, "*": 0.25})
    assert pruning.prune(net, amount=0.5)


# ---- counts


def test_single_weights_of_each_layer_are_those_of_torch() -> None:
    masks, expected = prune(AMOUNTS, scope="layer"), copy.deepcopy(NET)
    for name, layer in prunable_layers(expected).items():
        torch_prune.l1_unstructured(layer, "weight", amount=asked(BY_LAYER[name], layer.weight.numel()))
        assert torch.equal(masks[f"{name}.weight"], layer.weight_mask.bool())


def test_globally_the_layers_of_one_amount_compete_as_in_torch() -> None:
    masks, expected = prune(AMOUNTS, scope="global"), copy.deepcopy(NET)
    layers = prunable_layers(expected)
    for amount in (0.25, 0.5, 0.75):
        pool = [(layers[name], "weight") for name in layers if BY_LAYER[name] == amount]
        count = asked(amount, sum(layer.weight.numel() for layer, _ in pool))
        torch_prune.global_unstructured(pool, torch_prune.L1Unstructured, amount=count)
    for name, layer in layers.items():
        assert torch.equal(masks[f"{name}.weight"], layer.weight_mask.bool()), name


def test_rows_and_erdos_renyi_shares_are_of_each_amount() -> None:
    by_row = prune(AMOUNTS, scope="unit")
    for name, layer in prunable_layers(NET).items():
        rows = (~by_row[f"{name}.weight"]).flatten(1).sum(1)
        assert set(rows.tolist()) == {asked(BY_LAYER[name], layer.weight[0].numel())}
    gone = removed(prune(AMOUNTS, scope="erk"))
    sizes = {name: layer.weight.numel() for name, layer in prunable_layers(NET).items()}
    for amount in (0.25, 0.5, 0.75):
        names = [name for name in sizes if BY_LAYER[name] == amount]
        assert sum(gone[n] for n in names) == asked(amount, sum(sizes[n] for n in names))


@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        ("iterative(rounds=3)", lambda amount, t: 1 - (1 - amount) ** (t / 3)),
        ("cubic(rounds=3)", lambda amount, t: amount * (1 - (1 - t / 3) ** 3)),
    ],
)
def test_every_round_brings_each_layer_to_its_own_target(schedule: str, target: Any) -> None:
    masks: pruning.Masks = {}
    for round in (1, 2, 3):
        after = prune(AMOUNTS, scope="layer", schedule=schedule, round=round, masks=masks)
        assert all(not (after[name] & ~mask).any() for name, mask in masks.items())
        masks = after
        for name, layer in prunable_layers(NET).items():
            fraction = BY_LAYER[name] if round == 3 else target(BY_LAYER[name], round)
            assert removed(masks)[name] == asked(fraction, layer.weight.numel())


def test_synflow_s_passes_end_at_each_layer_s_amount() -> None:
    sample = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    gone = removed(prune(AMOUNTS, scope="layer", criterion="synflow(rounds=5)", sample=sample))
    for name, layer in prunable_layers(NET).items():
        assert gone[name] == asked(BY_LAYER[name], layer.weight.numel())


def test_units_have_their_layer_s_amount_and_one_stays() -> None:
    masks = prune({"early.0": 0.25, "late.0": 0.99, "*": 0.5}, granularity="unit", scope="layer")
    alive = {
        group.name: int(masks[f"{group.name}.weight"].flatten(1).any(1).sum()) for group in unit_groups(NET)
    }
    assert alive == {"stem": 4, "early.0": 9, "early.2": 4, "late.0": 1, "late.2": 4}


def test_channels_that_layers_make_together_get_the_smallest_of_their_amounts() -> None:
    masks = prune(AMOUNTS, granularity="channel", scope="layer")
    alive = {name: int(masks[f"{name}.weight"].flatten(1).any(1).sum()) for name in BY_LAYER}
    # The stem at 50%, early.2 at 25% and late.2 at 75% add up: 25% of eight channels go.
    assert alive == {"stem": 6, "early.0": 9, "early.2": 6, "late.0": 3, "late.2": 6, "fc": 10}
    small = pruning.shrink(NET.eval(), masks, IMAGES)
    net = copy.deepcopy(NET)
    pruning.apply_masks(net, masks)
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(small.eval()(x), net(x), atol=1e-6)
    whole = prune({"early.0": 0.5, "late.0": 0.5}, granularity="channel", scope="layer")
    assert whole["stem.weight"].all()
    assert not whole["late.0.weight"].all()


def test_heads_have_the_amount_of_the_layers_that_make_them() -> None:
    net = models.build("vit(dim=16, depth=2, heads=4, patch=4)", input_shape=(1, 8, 8), num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = prune({"blocks.0.*": 0.25, "*": 0.75}, net, granularity="head", scope="layer")
    alive = [int(masks[f"blocks.{n}.attention.q.weight"].flatten(1).any(1).sum()) for n in (0, 1)]
    assert alive == [12, 4]
    packed = _Packed()
    (heads,) = find_channels(packed, torch.zeros(2, 5, 16)).heads
    assert find_makers(packed, heads) == {"layer.self_attn.out_proj"}


class _Packed(nn.Module):
    """An attention whose query, key and value are rows of one parameter, which is no layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(x).mean(1))


def test_layers_that_share_a_weight_have_the_smallest_of_their_amounts() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    net[2].weight = net[0].weight
    masks = pruning.prune(net, amount={"0": 0.75, "1": 0.5, "2": 0.25}, scope="layer")
    assert removed(masks) == {"0": 16, "1": 32}


def test_protect_goes_before_an_amount() -> None:
    masks = prune(AMOUNTS, scope="layer", protect=["late.*"])
    assert removed(masks).keys() == {"stem", "early.0", "early.2", "fc"}
    with pytest.raises(ValueError, match=r"protect is \['\*'\]: that leaves nothing to prune"):
        prune(AMOUNTS, protect=["*"])


# ---- one form for equal meanings


PATTERNS = st.lists(
    st.sampled_from(["stem", "early.*", "late.*", "*.0", "*.2", "fc"]), unique=True, min_size=1, max_size=4
)


@given(PATTERNS, st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=5, max_size=5), st.randoms())
def test_the_order_counts_only_where_patterns_overlap(
    names: list[str], amounts: list[float], random: Any
) -> None:
    mapping = dict(zip([*names, "*"], amounts, strict=False))
    try:
        by_layer = find_layer_amounts(NET, mapping)
    except ValueError:
        return
    # Every layer by its own name, in any order, is the same.
    items = list(by_layer.items())
    random.shuffle(items)
    assert find_layer_amounts(NET, dict(items)) == by_layer
    settled = settle_amounts(NET, by_layer, groups=None, protected=())
    if isinstance(settled, float):
        assert set(by_layer.values()) == {settled}
    else:
        assert {name: settled.get(name, 0.0) for name in by_layer} == by_layer
        assert list(settled) == sorted(settled)


@pytest.mark.parametrize("granularity", ["weight", "unit", "channel"])
def test_settled_amounts_prune_as_the_patterns_do(granularity: str) -> None:
    groups = {"weight": None, "unit": unit_groups(NET), "channel": find_channels(NET, IMAGES).groups}[
        granularity
    ]
    for amounts in (
        AMOUNTS,
        {"late.*": 0.75},
        {"fc": 0.1, "*": 0.5},
        {"stem": 0.75, "*.2": 0.25, "*.0": 0.5},
    ):
        settled = settle_amounts(NET, find_layer_amounts(NET, amounts), groups=groups, protected=())
        one, other = (prune(a, granularity=granularity, scope="layer") for a in (amounts, settled))
        assert all(torch.equal(one[name], other[name]) for name in one)
        if groups is not None:
            assert isinstance(settled, float) or "fc" not in settled
    assert (
        settle_amounts(NET, BY_LAYER, groups=None, protected=("early.0", "early.2", "late.0", "late.2"))
        == 0.5
    )


def test_the_mean_is_weighted_by_weights() -> None:
    net = nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 10), nn.Linear(10, 10))
    assert mean_amount(net, {"0": 0.5, "1": 0.25}) == (300 * 0.5 + 300 * 0.25) / 700


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=("Cs",)), min_size=1),
        st.floats(0, 1),
        min_size=1,
        max_size=5,
    )
)
def test_the_text_is_exact_and_keeps_the_order(amounts: dict[str, float]) -> None:
    assert list(read_amounts(amounts_text(amounts)).items()) == list(amounts.items())


def test_the_text_is_as_people_write_it() -> None:
    amounts = {"layer4.*": 0.75, '"quoted"': 0.07, "*": 1.0, "x": 0.123456, "y": 0.0}
    text = '{"layer4.*": 75%, "\\"quoted\\"": 7%, "*": 100%, "x": 12.3456%, "y": 0%}'
    assert amounts_text(amounts) == text

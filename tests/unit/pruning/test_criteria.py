"""Laws that every registered criterion keeps, and the scores that need no gradient, by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from traced import groups_of

import pruning
from pruning.accumulation import is_accumulated
from pruning.criteria import ScoringContext, criteria
from pruning.granularity import unit_groups
from pruning.masking import Masks, full_masks, prunable_layers

NAMES = list(criteria)
OF_WEIGHTS = [name for name in NAMES if not {"norms", "groups"} & criteria.get(name).traits.keys()]
CASES = [(name, "weight") for name in OF_WEIGHTS] + [
    (name, granularity) for granularity in ("unit", "channel") for name in NAMES
]
SAMPLE = (
    torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(5)),
    torch.arange(20) % 3,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3),
    )  # fmt: skip
    for norm in (net[1], net[5]):  # statistics and scales as after training
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return net


def sums_of(net: nn.Module) -> Masks:
    """What a criterion that sums over steps is given: numbers of the size of w g, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    return {
        f"{name}.weight": layer.weight.detach().double()
        * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        for name, layer in prunable_layers(net).items()
    }


def prune(net: nn.Module, criterion: str, granularity: str = "weight", **options: Any) -> Masks:
    if criterion == "synflow":  # its hundred passes keep the laws that ten keep
        criterion = "synflow(rounds=10)"
    given = {"amount": 0.5, "sample": SAMPLE, "example_input": SAMPLE[0][:2]} | options
    if granularity == "channel" and "groups" not in given:  # a trace takes longer than the rest
        given["groups"] = groups_of(net, SAMPLE[0][:2])
    if is_accumulated(criteria.get(criterion)):
        given["accumulated"] = sums_of(net)
    return pruning.prune(net, criterion=criterion, granularity=granularity, **given)


def gone(net: nn.Module, masks: Masks, granularity: str) -> list[int]:
    """How many weights, or rows of hidden layers, are dead."""
    layers = list(prunable_layers(net))
    if granularity == "weight":
        return [int((~masks[f"{name}.weight"]).sum()) for name in layers]
    return [int((~masks[f"{name}.weight"].flatten(1).any(1)).sum()) for name in layers[:-1]]


def scores_of(net: nn.Module, criterion: str, masks: Masks | None = None) -> dict[str, Tensor]:
    groups = unit_groups(net)
    masks = full_masks(net, groups) if masks is None else masks
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() * mask for name, mask in masks.items() if mask.dim() > 1}
    generator = torch.Generator().manual_seed(0)
    scores = criteria.get(criterion)(
        ScoringContext(net, weights, masks, generator, SAMPLE, groups, sums_of(net))
    )
    assert isinstance(scores, dict)
    return scores


def test_every_criterion_says_what_it_is() -> None:
    expected = {"magnitude", "l1", "l2", "random", "taylor", "snip", "grasp", "synflow", "bn_scale"}
    expected |= {"lamp", "wanda", "fisher", "fpgm", "movement", "pivoted_qr"}
    assert expected <= set(NAMES)
    for name in NAMES:
        assert criteria.get(name).traits["summary"]
        assert criteria.get(name).function.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_float64_in_the_shape_of_the_parameters(name: str) -> None:
    net = network()
    parameters = dict(net.named_parameters())
    scores = scores_of(net, name)
    assert {f"{layer}.weight" for layer in prunable_layers(net) if layer != "8"} <= set(scores)
    for key, score in scores.items():
        assert score.dtype == torch.float64
        assert score.shape == parameters[key].shape
        assert torch.isfinite(score).all()
        assert not score.requires_grad


@pytest.mark.parametrize(("name", "granularity"), CASES)
@pytest.mark.parametrize("amount", [0.0, 0.37, 0.9])
def test_the_count_is_exact(name: str, granularity: str, amount: float) -> None:
    net = network()
    # Of 4 + 7 units 9 can leave: one of every layer stays.
    total, most = (4 * 9 + 64 * 7 + 7 * 3, 505) if granularity == "weight" else (4 + 7, 9)
    expected = min(int(amount * total + 0.5), most)
    assert sum(gone(net, prune(net, name, granularity, amount=amount), granularity)) == expected
    by_layer = [36, 448, 21] if granularity == "weight" else [4, 7]
    counts = [int(amount * size + 0.5) for size in by_layer]
    if granularity != "weight":
        counts = [min(count, size - 1) for count, size in zip(counts, by_layer, strict=True)]
    assert gone(net, prune(net, name, granularity, amount=amount, scope="layer"), granularity) == counts


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_masks_are_nested_over_rounds(name: str, granularity: str) -> None:
    net, masks = network(), None
    for round in (1, 2, 3):
        options = {"schedule": "iterative(rounds=3)", "round": round, "masks": masks, "amount": 0.8}
        after = prune(net, name, granularity, **options)
        if masks is not None:
            assert not any((after[key] & ~masks[key]).any() for key in masks)
            assert gone(net, after, granularity) != gone(net, masks, granularity)
        masks = after
        pruning.apply_masks(net, masks)


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_the_network_is_left_untouched(name: str, granularity: str) -> None:
    net = network()
    net[0].eval()
    net[4].weight.requires_grad_(False)
    net[8].weight.grad = torch.ones_like(net[8].weight)
    before = copy.deepcopy(net.state_dict())
    identities = [id(parameter) for parameter in net.parameters()]
    generator = torch.get_rng_state()
    prune(net, name, granularity, groups=None)  # traced, too
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [id(parameter) for parameter in net.parameters()] == identities
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["8.weight"]
    assert torch.equal(net[8].weight.grad, torch.ones_like(net[8].weight))
    assert [name for name, module in net.named_modules() if not module.training] == ["0"]
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_the_same_seed_gives_the_same_masks(name: str, granularity: str) -> None:
    first, again = (prune(network(), name, granularity, seed=3) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_another_seed_draws_others() -> None:
    assert any(
        not torch.equal(mask, prune(network(), "random", seed=4)[key])
        for key, mask in prune(network(), "random", seed=3).items()
    )


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_global_is_layer_where_there_is_one_layer(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    for granularity in ("weight", "unit"):
        by_scope = [prune(net, name, granularity, scope=scope) for scope in ("layer", "global")]
        assert torch.equal(by_scope[0]["1.weight"], by_scope[1]["1.weight"])


@pytest.mark.parametrize("name", ["magnitude", "l1", "l2", "lamp", "synflow"])
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_signs_change_nothing(name: str, granularity: str) -> None:
    net, other = network(), network()
    generator = torch.Generator().manual_seed(9)
    for layer in prunable_layers(other).values():
        layer.weight.data *= torch.where(torch.rand(layer.weight.shape, generator=generator) < 0.5, -1.0, 1.0)
    one, two = prune(net, name, granularity), prune(other, name, granularity)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["magnitude", "l1", "l2", "lamp", "random", "synflow"])
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_scale_changes_nothing(name: str, granularity: str) -> None:
    """A power of two for all layers: every product is exact, so the masks are equal bit for bit."""
    net, other = network(), network()
    for layer in prunable_layers(other).values():
        layer.weight.data *= 0.25
    one, two = prune(net, name, granularity), prune(other, name, granularity)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", [name for name in OF_WEIGHTS if not criteria.get(name).traits.get("passes")])
def test_inverted_scores_remove_what_else_would_stay(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False))  # 144 weights: half are 72
    usual, inverted = prune(net, name)["1.weight"], prune(net, name, invert=True)["1.weight"]
    assert torch.equal(usual, ~inverted)


@pytest.mark.parametrize("name", [name for name in NAMES if criteria.get(name).traits.get("data")])
def test_criteria_that_look_at_data_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"criterion '{name}' needs sample"):
        prune(network(), name, "unit", sample=None)


def test_the_dead_have_no_say_in_a_units_score() -> None:
    """A masked weight counts as zero, though nobody has applied the masks to the network."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[9.0, 1.0], [2.0, 2.0]])
    masks = full_masks(net, unit_groups(net))
    masks["0.weight"][0, 0] = False
    after = prune(net, "l1", "unit", masks=masks, example_input=None)
    assert after["0.weight"].tolist() == [[False, False], [True, True]]


def test_norms_of_rows_by_hand() -> None:
    """|row|_1 is 3, 3.5, 4; |row|_2 is 3, 2.5, 2.83: l1 drops the first, l2 the second."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    net[0].weight.data = torch.tensor([[3.0, 0.0], [1.5, -2.0], [2.0, 2.0]])
    for name, expected in (("l1", [False, True, True]), ("l2", [True, False, True])):
        masks = prune(net, name, "unit", amount=1 / 3, example_input=None)
        assert masks["0.weight"].any(1).tolist() == masks["0.bias"].tolist() == expected


@pytest.mark.parametrize("amount", [1, 17, 200])
def test_magnitude_is_torchs_own(amount: int) -> None:
    net, other = network(), network()
    layers = list(prunable_layers(net).items())
    pairs = [(layer, "weight") for layer in prunable_layers(other).values()]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=amount)
    total = sum(layer.weight.numel() for _, layer in layers)
    masks = prune(net, "magnitude", amount=amount / total)
    for (name, _), (layer, _) in zip(layers, pairs, strict=True):
        assert torch.equal(masks[f"{name}.weight"], layer.weight_mask.bool())


def test_magnitude_by_layer_is_torchs_own() -> None:
    net, other = network(), network()
    masks = prune(net, "magnitude", amount=0.25, scope="layer")
    for name, layer in prunable_layers(other).items():
        torch_prune.l1_unstructured(layer, "weight", amount=int(0.25 * layer.weight.numel() + 0.5))
        assert torch.equal(masks[f"{name}.weight"], layer.weight_mask.bool())


@pytest.mark.parametrize(("name", "norm"), [("l1", 1), ("l2", 2)])
def test_rows_are_torchs_own(name: str, norm: int) -> None:
    net, other = network(), network()
    masks = prune(net, name, "unit", amount=0.5, scope="layer")
    for layer, count in (("0", 2), ("4", 4)):
        target = other.get_submodule(layer)
        torch_prune.ln_structured(target, "weight", amount=count, n=norm, dim=0)
        assert torch.equal(masks[f"{layer}.weight"], target.weight_mask.bool())


def test_bn_scale_drops_the_smallest_scale() -> None:
    net = network()
    net[1].weight.data = torch.tensor([-0.5, 0.1, -0.05, 2.0])
    net[5].weight.data = torch.tensor([1.0, 0.2, 3.0, -4.0, 5.0, 6.0, 0.3])
    masks = prune(net, "bn_scale", "unit", amount=4 / 11)
    assert masks["0.weight"].flatten(1).all(1).tolist() == [True, False, False, True]
    assert masks["4.weight"].all(1).tolist() == [True, False, True, True, True, True, False]
    assert masks["5.weight"].tolist() == masks["5.bias"].tolist() == masks["4.bias"].tolist()


def test_bn_scale_refuses_what_has_no_norm() -> None:
    with pytest.raises(ValueError, match="'bn_scale' ranks units and channels"):
        prune(network(), "bn_scale")
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="follows '2': protect it"):
        prune(net, "bn_scale", "unit", example_input=None)
    masks = prune(net, "bn_scale", "unit", protect=["2"], example_input=None)
    assert masks["0.weight"].shape == (3, 4)
    bare = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="none with a scale follows '0'"):
        prune(bare, "bn_scale", "unit", example_input=None)


def test_numbers_that_are_none_are_refused() -> None:
    net = network()
    net[4].weight.data[0, 0] = math.nan
    for name in OF_WEIGHTS:
        if name != "random":
            with pytest.raises(ValueError, match=r"NaN|not finite"):
                prune(net, name)

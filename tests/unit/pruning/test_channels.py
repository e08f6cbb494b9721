"""Channel groups, the physical cut, and the architecture as plain numbers."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
import torch_pruning
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured
from traced import channel_groups

import models
import pruning
from pruning.channel_mapping.channel_groups import CLASSES, WHOLE
from pruning.channels import find_channels, shrink, shrink_masks, trace
from pruning.cutting.layer_widths import SelectedLinear, layer_widths, resize
from pruning.cutting.positions import find_pruned_groups, remaining_channels
from pruning.granularity import unit_groups
from pruning.masking import Group, Masks, apply_masks, full_masks, mask_units, prunable_layers, sum_by_unit

SMALL = ("slp", "mlp(widths=[16, 8, 12], bias=True)", "cnn(widths=[8, 12, 6])")
DENSENET = pytest.param("densenet121", marks=pytest.mark.slow)


def build(model: str, shape: tuple[int, int, int] = (1, 8, 8), *, seed: int = 0) -> nn.Module:
    """A network whose norms and biases are not at their neutral start: a forgotten beta would show."""
    torch.manual_seed(seed)
    net = models.build(model, input_shape=shape, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.normal_(bias)
    return net.eval()


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


def pruned(net: nn.Module, groups: tuple[Group, ...], *, amount: float = 0.5) -> Masks:
    """Masks without the channels of smallest l2 norm, in each group."""
    masks = full_masks(net, groups)
    squares = {
        f"{name}.weight": layer.weight.detach().square() for name, layer in prunable_layers(net).items()
    }
    for group in groups:
        alive = torch.ones(group.size, dtype=torch.bool)
        alive[sum_by_unit(group, squares).argsort(stable=True)[: round(amount * group.size)]] = False
        masks = mask_units(group, alive, masks)
    return masks


def masked(net: nn.Module, masks: Masks) -> nn.Module:
    twin = deepcopy(net)
    apply_masks(twin, masks)
    return twin


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def state_equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(one: Tensor, two: Tensor) -> None:
    assert one.shape == two.shape
    assert bool((one - two).abs().max() <= 1e-5 * two.abs().max().clamp(min=1))


# trace


def test_an_mlp_has_one_group_per_hidden_layer_in_order() -> None:
    net = build("mlp(widths=[8, 6])")
    first, second, last = prunable_layers(net)
    groups = trace(net, images(2, 1, 8, 8))
    assert [(group.name, group.size) for group in groups] == [(first, 8), (second, 6)]
    assert [{(m.module, m.side) for m in group.members} for group in groups] == [
        {(first, "out"), (second, "in")},
        {(second, "out"), (last, "in")},
    ]
    assert all(m.index.tolist() == m.root.tolist() == list(range(g.size)) for g in groups for m in g.members)


def test_the_channels_of_the_slp_are_its_input_features() -> None:
    (group,) = trace(build("slp"), images(2, 1, 8, 8))
    (member,) = group.members
    assert (group.size, member.side, member.module) == (64, "in", group.name)


def test_flattened_maps_repeat_each_channel_once_per_cell() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(8, 3))
    (group,) = trace(net, images(1, 1, 2, 2))
    (reader,) = [member for member in group.members if member.side == "in"]
    assert dict(zip(reader.index.tolist(), reader.root.tolist(), strict=True)) == {
        **dict.fromkeys(range(4), 0),
        **dict.fromkeys(range(4, 8), 1),
    }


def test_concatenated_layers_own_their_part_of_the_columns() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(torch.cat([self.a(x), self.b(x)], 1).relu())
            return out

    readers = {
        g.name: m.index.tolist() for g in trace(Joined(), images(2, 4)) for m in g.members if m.side == "in"
    }
    assert readers == {"a": [0, 1], "b": [2, 3, 4]}


@pytest.mark.long
def test_densenet_has_120_groups_the_same_at_any_image_size() -> None:
    small, large = (channel_groups("densenet121", shape) for shape in ((1, 8, 8), (3, 32, 32)))
    assert len(small) == len(large) == 120  # every convolution but none of the classifier's rows
    for one, two in zip(small, large, strict=True):
        assert (one.name, one.size, len(one.members)) == (two.name, two.size, len(two.members))
        for a, b in zip(one.members, two.members, strict=True):
            assert (a.module, a.side) == (b.module, b.side)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.root, b.root)


@pytest.mark.parametrize("model", SMALL)
def test_tracing_leaves_the_network_and_the_random_numbers_alone(model: str) -> None:
    net = build(model).train()
    frozen = next(net.parameters()).requires_grad_(False)
    next(iter(net.children())).eval()
    modes, before, draws = [m.training for m in net.modules()], deepcopy(net), torch.get_rng_state()
    with torch.no_grad():
        trace(net, images(2, 1, 8, 8))
    assert state_equal(net, before)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == [p is not frozen for p in net.parameters()]
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), draws)


def test_frozen_parameters_lose_no_group() -> None:
    net = build("cnn")
    names = [group.name for group in trace(net, images(1, 1, 8, 8))]
    assert [group.name for group in trace(net.requires_grad_(False), images(1, 1, 8, 8))] == names


def test_a_batch_of_one_is_a_batch() -> None:
    net = build("cnn(widths=[4, 6])")
    one, many = trace(net, images(1, 1, 8, 8)), trace(net, images(3, 1, 8, 8))
    assert [(g.name, g.size, len(g.members)) for g in one] == [(g.name, g.size, len(g.members)) for g in many]


class Halves(nn.Module):
    """A gate: one half of the channels times the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.wide(x).chunk(2, 1)
        out: Tensor = self.last(one * two)
        return out


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(x).relu())
        return out


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (2, 4), "0: its units are mixed"),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 2)), (2, 4), "0: its units are mixed"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), (1, 1, 4, 4), "no channels"),
    ],
)
def test_a_network_of_which_nothing_can_be_cut_is_refused(
    net: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trace(net, images(*shape))


@pytest.mark.parametrize(
    ("net", "shape", "sizes", "whole"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)),
            (1, 2, 4, 4),
            {"0": 2},
            {},
        ),
        (nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 2)), (2, 4), {"0": 6}, {}),
        (
            nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3), nn.Conv1d(4, 2, 1)),
            (1, 2, 9),
            {"0": 6, "2": 4},
            {},
        ),
        (
            nn.Sequential(
                nn.Conv3d(1, 6, 1), nn.GroupNorm(3, 6), nn.Conv3d(6, 6, 1, groups=6), nn.Conv3d(6, 2, 1)
            ),
            (1, 1, 3, 3, 3),
            {"0": 3},
            {},
        ),
        (
            nn.Sequential(
                nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), nn.Conv2d(6, 2, 1)
            ),
            (1, 2, 3, 3),
            {"0": 2},
            {},
        ),
        (Halves(), (2, 4), {"wide": 3}, {}),
        (Unused(), (2, 4), {"body": 3}, {"spare": "it is not called as a layer"}),
        (
            nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
            (2, 4),
            {"2": 5},
            {"0": WHOLE},
        ),
    ],
)
def test_half_of_what_can_go_is_cut_and_the_rest_is_named(
    net: nn.Module, shape: tuple[int, ...], sizes: dict[str, int], whole: dict[str, str]
) -> None:
    x = images(*shape)
    channels = find_channels(net, x)
    assert {group.name: group.size for group in channels.groups} == sizes
    assert {name: reason for name, reason in channels.whole.items() if reason != CLASSES} == whole
    masks = pruning.prune(
        net, amount=0.5, granularity="channel", criterion="l2", scope="layer", groups=channels.groups
    )
    small, masked = shrink(net, masks, x), deepcopy(net)
    apply_masks(masked, masks)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(small.eval()(batch), masked.eval()(batch), atol=1e-6)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (net, small))
    assert after < before
    rebuilt = resize(deepcopy(net), layer_widths(small))
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt.eval()(batch), small(batch))


class _TableOfPass(nn.Module):
    """Makes a table for the images of a pass, as ConViT does; `start` is what it has before."""

    def __init__(self, start: Tensor | None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("table", start, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) != len(x):
            self.table = torch.arange(len(x), dtype=x.dtype)[:, None] + 1
        return self.last(self.table.to(x.dtype) * self.first(x).relu())


@pytest.mark.parametrize("start", [torch.zeros(1, 1), torch.zeros(1), None])
def test_a_table_that_a_pass_has_made_larger_is_no_width_of_the_network(start: Tensor | None) -> None:
    torch.manual_seed(0)
    net, x = _TableOfPass(start).eval(), torch.randn(5, 8)
    fresh = deepcopy(net)
    net(x)  # as a network that was trained
    small = shrink(net, pruned(net, trace(net, x)), x)
    assert layer_widths(small)["table"] == [5, 1]
    rebuilt = resize(fresh, layer_widths(small))
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(x), small(x))
    assert count(rebuilt) < count(net)


def test_masks_of_torch_itself_are_refused_by_name() -> None:
    net = build("mlp(widths=[4])")
    name, layer = next(iter(prunable_layers(net).items()))
    l1_unstructured(layer, "weight", amount=0.5)
    with pytest.raises(ValueError, match=name):
        trace(net, images(1, 1, 8, 8))


# shrink


@pytest.mark.parametrize(
    ("model", "shape"),
    [(model, (1, 8, 8)) for model in SMALL]
    + [("cnn", (3, 32, 32))]
    + [
        pytest.param("densenet121", (1, 8, 8), marks=pytest.mark.slow),
        pytest.param("densenet121", (3, 32, 32), marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_the_cut_network_computes_what_the_masked_one_does(model: str, shape: tuple[int, int, int]) -> None:
    net, x = build(model, shape), images(4, *shape)
    groups = channel_groups(model, shape)
    masks = pruned(net, groups)
    before = deepcopy(net)
    small = shrink(net, masks, x[:1], groups=groups)
    assert_close(small(x), masked(net, masks)(x))
    assert not torch.allclose(small(x), net(x), atol=1e-3)  # something was pruned
    assert state_equal(net, before)
    assert {n for n, _ in small.named_parameters()} == {n for n, _ in net.named_parameters()}
    assert count(small) < count(net) * 0.6


@pytest.mark.slow
def test_half_of_densenet_has_as_many_parameters_as_torch_prunings_half() -> None:
    net, x = build("densenet121", (3, 32, 32)), images(1, 3, 32, 32)
    groups = channel_groups("densenet121", (3, 32, 32))
    small = shrink(net, pruned(net, groups), x, groups=groups)
    # Its own pruner leaves 1 766 858 of torchvision's; a 3x3 stem in place of 7x7 saves 32 * 3 * (49 - 9).
    assert count(small) == 1_766_858 - 32 * 3 * (49 - 9)
    with torch.no_grad():
        small(x)


def test_parameters_of_a_halved_mlp_by_hand() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU()),
        nn.Linear(6, 3, bias=False),
    )
    x = images(2, 1, 8, 8)
    assert count(net) == 64 * 8 + 8 * 6 + 6 * 3
    small = shrink(net, pruned(net, trace(net, x)), x)
    assert count(small) == 64 * 4 + 4 * 3 + 3 * 3
    assert layer_widths(small) == {"1": [4, 64], "3": [3, 4], "5": [3, 3]}


@pytest.mark.parametrize("model", SMALL[1:])
@pytest.mark.parametrize("amount", [0.25, 0.5, 0.8])
def test_the_cut_is_torch_prunings_own_bit_for_bit(model: str, amount: float) -> None:
    net, x = build(model), images(3, 1, 8, 8)
    groups = trace(net, x)
    masks = pruned(net, groups, amount=amount)
    theirs = masked(net, masks)
    graph = torch_pruning.DependencyGraph().build_dependency(
        theirs, x, forward_fn=lambda module, x: module(x)
    )
    for name, kept in remaining_channels(groups, masks).items():
        root = theirs.get_submodule(name)
        cut = sorted(set(range(root.weight.shape[0])) - set(kept.tolist()))
        graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, cut).prune()
    ours = shrink(net, masks, x, groups=groups)
    assert state_equal(ours, theirs)
    assert torch.equal(ours(x), theirs(x))


def test_slp_keeps_the_columns_of_the_features_that_live() -> None:
    net, x = build("slp"), images(5, 1, 8, 8)
    (group,) = trace(net, x)
    layer = net.get_submodule(group.name)
    alive = torch.arange(64) % 4 == 1  # sixteen features: 1, 5, 9, ...
    small = shrink(net, mask_units(group, alive, full_masks(net, (group,))), x)
    cut = small.get_submodule(group.name)
    assert isinstance(cut, SelectedLinear)
    assert cut.inputs.tolist() == list(range(1, 64, 4))
    assert torch.equal(cut.weight, layer.weight[:, 1::4])
    assert_close(small(x), x.flatten(1)[:, 1::4] @ layer.weight[:, 1::4].T + layer.bias)
    assert layer_widths(small) == {group.name: [10, 64, 16]}


def test_a_shrunk_slp_can_be_shrunk_again() -> None:
    net, x = build("slp"), images(5, 1, 8, 8)
    once = shrink(net, pruned(net, trace(net, x)), x)
    masks = pruned(once, trace(once, x))
    twice = shrink(once, masks, x)
    assert list(layer_widths(twice).values()) == [[10, 64, 16]]
    assert_close(twice(x), masked(once, masks)(x))


@pytest.mark.parametrize("model", SMALL[1:])
def test_dead_units_go_though_the_next_columns_live(model: str) -> None:
    net, x = build(model), images(4, 1, 8, 8)
    masks = pruned(net, unit_groups(net))
    small = shrink(net, masks, x)
    left = {group.name: layer_widths(small)[group.name][0] for group in unit_groups(net)}
    assert left == {group.name: group.size - round(group.size / 2) for group in unit_groups(net)}
    assert_close(small(x), masked(net, masks)(x))


@pytest.mark.parametrize("leaf", ["blocks.0.norm.bias", "blocks.0.norm.weight"])
def test_a_channel_whose_norm_lives_stays(leaf: str) -> None:
    net, x = build("cnn(widths=[4, 6])"), images(4, 1, 8, 8)
    group, *_ = groups = trace(net, x)
    masks = mask_units(group, torch.tensor([True, True, False, False]), full_masks(net, groups))
    masks[leaf] = torch.ones(4, dtype=torch.bool)  # a dead filter under a living beta is a constant
    small = shrink(net, masks, x, groups=groups)
    assert layer_widths(small) == layer_widths(net)
    assert_close(small(x), masked(net, masks)(x))


def test_a_bias_that_nobody_masked_keeps_its_channel() -> None:
    net, x = build("mlp(widths=[6], bias=True)"), images(4, 1, 8, 8)
    name, layer = next(iter(prunable_layers(net).items()))
    masks = {
        f"{name}.weight": torch.zeros_like(layer.weight, dtype=torch.bool).index_fill(
            0, torch.tensor([0]), True
        )
    }
    small = shrink(net, masks, x)
    assert layer_widths(small) == layer_widths(net)
    assert torch.equal(small(x), masked(net, masks)(x))


def test_a_sigmoid_makes_dead_channels_speak() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)), images(2, 4)
    whole, rows = trace(net, x), unit_groups(net)
    alive = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=r"^2: .*non-zero"):
        shrink(net, mask_units(rows[0], alive, full_masks(net, rows)), x)
    masks = mask_units(whole[0], alive, full_masks(net, whole))  # its columns too: nothing reads the 0.5
    small = shrink(net, masks, x)
    assert_close(small(x), masked(net, masks)(x))


def test_a_norm_without_beta_makes_dead_filters_speak() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1)
    ).eval()
    nn.init.constant_(net.get_buffer("1.running_mean"), 0.5)
    rows, x = unit_groups(net), images(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"^2: .*non-zero"):
        shrink(net, mask_units(rows[0], torch.tensor([True, False, True]), full_masks(net, rows)), x)


def test_residual_channels_go_together() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
            self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.norm(x + self.b(self.a(x).relu())).relu().mean((2, 3))
            out: Tensor = self.last(x)
            return out

    torch.manual_seed(0)
    net, x = Residual().eval(), images(3, 1, 5, 5)
    nn.init.normal_(net.norm.bias)
    groups = trace(net, x)
    assert {frozenset(m.module for m in g.members if m.side == "out") for g in groups} == {
        frozenset({"stem", "b"}),
        frozenset({"a"}),
    }
    masks = pruned(net, groups)
    small = shrink(net, masks, x)
    assert layer_widths(small) == {"stem": [2, 1], "a": [3, 2], "b": [2, 3], "norm": [2], "last": [2, 2]}
    assert_close(small(x), masked(net, masks)(x))


@pytest.mark.parametrize("model", [*SMALL, pytest.param("densenet121", marks=pytest.mark.slow)])
def test_of_a_fully_dead_network_one_channel_a_group_stays(model: str) -> None:
    net, x = build(model), images(2, 1, 8, 8)
    groups = channel_groups(model, (1, 8, 8))
    masks = pruned(net, groups, amount=1.0)
    small = shrink(net, masks, x, groups=groups)
    assert_close(small(x), masked(net, masks)(x))
    assert {len(kept) for kept in remaining_channels(groups, masks).values()} == {1}
    roots = {name: size for name, size in layer_widths(small).items() if name in {g.name for g in groups}}
    assert {size[-1 if model == "slp" else 0] for size in roots.values()} == {1}
    logits = small(x)
    assert torch.equal(logits[0], logits[1])  # of every image
    left = shrink_masks(masks, groups, net=net)
    assert {name: mask.shape for name, mask in left.items()} == {
        name: dict(small.named_parameters())[name].shape for name in masks
    }
    assert state_equal(masked(small, left), small)


def test_a_wholly_dead_layer_is_cut_to_one_beside_living_ones() -> None:
    """4 of 8 neurons, then none of 6; as it was recorded before, all 6 stay."""
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(2, 5)
    first, second = trace(net, x)
    alive = torch.arange(8) % 2 == 0
    masks = mask_units(
        second, torch.zeros(6, dtype=torch.bool), mask_units(first, alive, full_masks(net, [first, second]))
    )
    assert find_pruned_groups((first, second), masks, net=net) == ("2",)
    small, before = shrink(net, masks, x), shrink(net, masks, x, whole_if_dead=True)
    assert layer_widths(small) == {"0": [4, 5], "2": [1, 4], "4": [3, 1]}
    assert layer_widths(before) == {"0": [4, 5], "2": [6, 4], "4": [3, 6]}
    for cut in (small, before):
        assert torch.equal(cut(x), net[4].bias.expand(2, 3))  # all that is left


@pytest.mark.parametrize("model", SMALL)
def test_nothing_dead_nothing_cut(model: str) -> None:
    net, x = build(model), images(2, 1, 8, 8)
    small = shrink(net, full_masks(net, None), x)
    assert state_equal(small, net)
    assert small is not net


@pytest.mark.parametrize("model", SMALL)
def test_kept_and_dropped_make_the_whole(model: str) -> None:
    net, x = build(model), images(2, 1, 8, 8)
    groups = trace(net, x)
    kept = remaining_channels(groups, pruned(net, groups, amount=0.3))
    assert {g.name: len(kept[g.name]) + round(0.3 * g.size) for g in groups} == {
        g.name: g.size for g in groups
    }
    assert all(kept[g.name].tolist() == sorted(set(kept[g.name].tolist())) for g in groups)


@pytest.mark.parametrize("model", SMALL)
def test_dead_entries_that_survive_the_cut_are_zero_and_their_masks_fit(model: str) -> None:
    net, x = build(model), images(2, 1, 8, 8)
    groups = trace(net, x)
    noise = torch.Generator().manual_seed(3)
    masks = {n: m & (torch.rand(m.shape, generator=noise) > 0.3) for n, m in pruned(net, groups).items()}
    small, left = shrink(net, masks, x, groups=groups), shrink_masks(masks, groups, net=net)
    assert left.keys() == masks.keys()
    parameters = dict(small.named_parameters())
    for name, mask in left.items():
        assert mask.shape == parameters[name].shape
        assert torch.equal(parameters[name] != 0, mask)
    assert any(not mask.all() for mask in left.values())
    assert state_equal(masked(small, left), small)


def test_mode_freezing_and_dtype_are_kept() -> None:
    net, x = build("cnn(widths=[4, 6])").double().train(), images(2, 1, 8, 8).double()
    net.get_submodule("blocks.0.norm").eval()
    frozen = "blocks.1.conv.weight"
    net.get_parameter(frozen).requires_grad_(False)
    net(x).sum().backward()
    small = shrink(net, pruned(net, trace(net, x)), x)
    assert [m.training for m in small.modules()] == [m.training for m in net.modules()]
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == {frozen}
    assert all(p.dtype == torch.float64 and p.is_leaf and p.grad is None for p in small.parameters())
    assert int(small.get_buffer("blocks.0.norm.num_batches_tracked")) == int(
        net.get_buffer("blocks.0.norm.num_batches_tracked")
    )
    small(x).sum().backward()  # it can be trained on


def test_a_mask_of_another_network_is_refused() -> None:
    net, x = build("mlp(widths=[4])"), images(1, 1, 8, 8)
    with pytest.raises(ValueError, match="nothing"):
        shrink(net, {"nothing.weight": torch.ones(1, dtype=torch.bool)}, x)


LAWS = {model: (net := build(model), trace(net, images(2, 1, 8, 8))) for model in SMALL}


@given(model=st.sampled_from(SMALL), data=st.data())
def test_any_masked_channels_can_be_cut(model: str, data: st.DataObject) -> None:
    net, groups = LAWS[model]
    x = images(3, 1, 8, 8)
    masks = full_masks(net, groups)
    for group in groups:
        alive = data.draw(st.lists(st.booleans(), min_size=group.size, max_size=group.size))
        masks = mask_units(group, torch.tensor(alive), masks)
    small = shrink(net, masks, x, groups=groups)
    assert_close(small(x), masked(net, masks)(x))
    again = resize(build(model, seed=1), json.loads(json.dumps(layer_widths(small))))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))


# widths, resize


@pytest.mark.parametrize("model", [*SMALL, DENSENET])
def test_architecture_and_tensors_rebuild_the_same_bits(model: str) -> None:
    net, x = build(model), images(3, 1, 8, 8)
    groups = channel_groups(model, (1, 8, 8))
    small = shrink(net, pruned(net, groups), x[:1], groups=groups)
    fresh = build(model, seed=1)
    again = resize(fresh, json.loads(json.dumps(layer_widths(small))))
    assert again is fresh
    again.load_state_dict(small.state_dict(), strict=True)
    assert layer_widths(again) == layer_widths(small)
    assert state_equal(again, small)
    assert torch.equal(again(x), small(x))


def test_a_bare_linear_is_resized_too() -> None:
    net, x = nn.Sequential(nn.Linear(4, 2)), images(3, 4)
    small = shrink(net, pruned(net, trace(net, x)), x)[0]
    again = resize(nn.Linear(4, 2), layer_widths(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0": [9, 4]}, "from 1 to"),
        ({"0": [0, 4]}, "from 1 to"),
        ({"0": [3]}, "from 1 to"),
        ({"0": [3.0, 4]}, "from 1 to"),
        ({"0": [True, 4]}, "from 1 to"),
        ({"2": [2, 2, 2]}, "from 1 to"),
        ({"3": [2, 3]}, "'3'"),
    ],
)
def test_widths_that_fit_no_network_are_refused(change: dict[str, list[int]], message: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=message):
        resize(net, {"0": [3, 4], "2": [2, 3], **change})


def test_a_missing_width_is_refused() -> None:
    with pytest.raises(ValueError, match="'1'"):
        resize(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {"0": [3, 4]})


class PaddedShortcut(nn.Module):
    """A sum of 12 channels with 4, which zeros fill up to as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 12), nn.Linear(64, 4)
        self.hidden, self.out = nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        wide, narrow = self.wide(images.flatten(1)), self.narrow(images.flatten(1))
        padded = nn.functional.pad(narrow, (0, wide.shape[1] - narrow.shape[1]))
        logits: Tensor = self.out(self.hidden((wide + padded).relu()).relu())
        return logits


def test_a_layer_with_a_part_of_a_group_keeps_one_of_its_channels() -> None:
    torch.manual_seed(0)
    net, image = PaddedShortcut(), torch.zeros(2, 1, 8, 8)
    groups = trace(net, image)
    (group,) = [group for group in groups if group.name == "wide"]
    masks = mask_units(group, torch.arange(12) >= 6, full_masks(net, groups))
    small = shrink(net, masks, image)
    # Channels 6 to 11 are alive, and the first of the narrow layer's stays beside them, masked.
    assert [layer.weight.shape[0] for layer in prunable_layers(small).values()] == [7, 1, 6, 5]
    assert not small.get_submodule("narrow").weight.any()
    apply_masks(net, masks)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(small(images), net(images))
    assert layer_widths(resize(PaddedShortcut(), layer_widths(small))) == layer_widths(small)

"""Families of networks by methods: each pair prunes as asked and is cut exactly, or is refused in one line.

The table of refusals is `REFUSALS`: what is not in it has to work.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
import pruning
from orchestrator.trial.macs import profile
from pruning.channels import Channels, find_channels
from pruning.criteria import criteria
from pruning.granularity import unit_groups
from pruning.group_lasso import KINDS, make_lasso_groups
from pruning.interpolative_decomposition import refit
from pruning.masking import Group, Masks, alive_units, prunable_layers, turn_rows

CLASSES = 10


class Mixed(nn.Module):
    """A group norm, a grouped, a transposed and a depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.batch_norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.output = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.up(self.batch_norm(self.grouped(x)).relu()).relu()
        return self.output(self.depthwise(x).relu().mean((2, 3)))


# Name -> how it is built, and the side of its images.
NETWORKS: dict[str, tuple[str | Callable[[int], nn.Module], int]] = {
    "resnet": ("resnet(depth=8)", 8),
    "vgg": ("vgg(depth=11, width=4)", 8),
    "wide_resnet": ("wide_resnet(depth=10, width=1)", 8),
    "vit": ("vit(dim=16, depth=2, heads=2, patch=4)", 8),
    "mixed": (Mixed, 8),
    "mobilenet": ("mobilenet_v2(width=0.25)", 8),
    "squeezenet": ("torchvision.squeezenet1_1", 16),
    "resnet18": ("resnet18", 8),
}
SMALL = ("resnet", "vgg", "wide_resnet", "vit", "mixed")
LARGE = ("mobilenet", "squeezenet", "resnet18")
WITH_HEADS = ("vit",)
GRANULARITIES = ("weight", "unit", "channel", "head")

# Network, granularity, criterion (patterns that match whole names) -> the refusal. Else it works.
REFUSALS = (
    (".*", "weight", "bn_scale", "'bn_scale' ranks units and channels by the batch norms behind them"),
    (
        ".*",
        "weight",
        "fpgm|pivoted_qr",
        "ranks whole units or channels, and granularity 'weight' removes single",
    ),
    (
        "vit|mixed|squeezenet",
        "unit|channel|head",
        "bn_scale",
        "reads batch norms, and none with a scale follows",
    ),
    # Two layers make the sum that a norm reads, and a unit is one layer's.
    ("wide_resnet", "unit", "bn_scale", "reads batch norms, and none with a scale follows 'blocks.0.conv2'"),
    ("vit|mixed", ".*", "synflow", "'synflow' needs a network that passes a flow on, and .* does not"),
)
SEVERAL_READERS = r"\d layers read its channels .* and refit corrects only one; protect it, or choose another"
REFIT_REFUSALS = dict.fromkeys(
    ("resnet", "wide_resnet", "mobilenet", "squeezenet", "resnet18"), SEVERAL_READERS
)


@dataclass(frozen=True)
class Subject:
    """A network in eval mode with running statistics, images with labels, and what is removed together."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    channels: Channels
    units: tuple[Group, ...]
    gradients: dict[str, Tensor]

    def groups(self, granularity: str) -> tuple[Group, ...] | None:
        by_name = {"unit": self.units, "channel": self.channels.groups, "head": self.channels.heads}
        return by_name.get(granularity)

    def prune(self, granularity: str, criterion: str, *, scope: str = "layer", **options: object) -> Masks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a layer is left whole
            return pruning.prune(
                self.net,
                criterion={"synflow": "synflow(rounds=3)"}.get(criterion, criterion),
                granularity=granularity,
                scope=scope,
                groups=self.groups(granularity.partition("(")[0]),
                example_input=self.images[:2],
                sample=(self.images, self.labels),
                accumulated=self.gradients,
                **{"amount": 0.5, **options},
            )


@cache
def subject(name: str) -> Subject:
    build, side = NETWORKS[name]
    torch.manual_seed(0)
    net = (
        models.build(build, input_shape=(3, side, side), num_classes=CLASSES)
        if isinstance(build, str)
        else build(3)
    )
    images, labels = torch.randn(12, 3, side, side), torch.arange(12) % CLASSES
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(images)
    net.eval()
    accumulator = pruning.Accumulator(net, "movement")
    functional.cross_entropy(net(images), labels).backward()
    accumulator.add()
    net.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        channels = find_channels(net, images[:2])
    units = unit_groups(net, example_input=images[:2])
    return Subject(net, images, labels, channels, units, accumulator.sums)


def refusal(network: str, granularity: str, criterion: str) -> str | None:
    for *patterns, message in REFUSALS:
        names = (network, granularity, criterion)
        if all(re.fullmatch(pattern, name) for pattern, name in zip(patterns, names, strict=True)):
            return message
    return None


def pools(masks: Masks, groups: tuple[Group, ...] | None) -> Iterator[tuple[int, int]]:
    """Yield the size of every weight or group, and how many of it are gone."""
    if groups is None:
        yield from ((mask.numel(), int((~mask).sum())) for mask in masks.values() if mask.dim() > 1)
    else:
        yield from ((group.size, int((~alive_units(group, masks)).sum())) for group in groups)


def half(total: int, *, keeps_one: bool) -> int:
    return min(int(0.5 * total + 0.5), total - keeps_one)


def check_cut(one: Subject, masks: Masks, granularity: str) -> None:
    """What is cut out computes what the masked network does, in float64, and has fewer parameters."""
    masked = deepcopy(one.net).double()
    pruning.apply_masks(masked, masks)
    small = pruning.shrink(one.net, masks, one.images[:2], groups=one.groups(granularity)).double()
    images = torch.randn(3, *one.images.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(small(images), masked(images), rtol=1e-9, atol=1e-9)
    counts = [sum(p.numel() for p in net.parameters()) for net in (small, one.net)]
    assert counts[0] < counts[1]


def check_criteria(network: str, granularity: str, scopes: tuple[str, ...] = ("layer", "global")) -> None:
    one, groups = subject(network), subject(network).groups(granularity)
    for number, criterion in enumerate(criteria):
        scope = scopes[number % len(scopes)]
        message = refusal(network, granularity, criterion)
        if message is not None:
            with pytest.raises(ValueError, match=message) as error:
                one.prune(granularity, criterion, scope=scope)
            assert "\n" not in str(error.value)
            continue
        masks = one.prune(granularity, criterion, scope=scope)
        sizes = list(pools(masks, groups))
        if scope == "global":
            total, gone = map(sum, zip(*sizes, strict=True))
            assert gone == half(total, keeps_one=False), (criterion, sizes)
        else:
            assert all(g == half(n, keeps_one=groups is not None) for n, g in sizes), (criterion, sizes)
        if granularity in ("channel", "head"):
            check_cut(one, masks, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES[:3])
@pytest.mark.parametrize("network", SMALL)
def test_every_criterion_on_a_small_network(network: str, granularity: str) -> None:
    check_criteria(network, granularity)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("granularity", GRANULARITIES[:3])
@pytest.mark.parametrize("network", LARGE)
def test_every_criterion_on_a_larger_network(network: str, granularity: str) -> None:
    check_criteria(network, granularity)


@pytest.mark.parametrize("network", WITH_HEADS)
def test_every_criterion_on_heads(network: str) -> None:
    check_criteria(network, "head")


@pytest.mark.parametrize("network", sorted({*SMALL, "mobilenet"} - {*WITH_HEADS}))
def test_networks_without_heads(network: str) -> None:
    one = subject(network)
    with pytest.raises(ValueError, match="has no attention whose heads can be removed"):
        pruning.prune(one.net, amount=0.5, granularity="head", example_input=one.images[:2])


@pytest.mark.parametrize("network", [*SMALL, "mobilenet"])
def test_refit_comes_closer_to_the_dense_network_or_says_why_not(network: str) -> None:
    one = subject(network)
    masks = one.prune("channel", "l2")
    if network in REFIT_REFUSALS:
        with pytest.raises(ValueError, match=REFIT_REFUSALS[network]) as error:
            refit(one.net, masks, one.channels.groups, one.images, dense=one.net)
        assert "\n" not in str(error.value)
        return
    weights = refit(one.net, masks, one.channels.groups, one.images, dense=one.net)
    plain, refitted = deepcopy(one.net), deepcopy(one.net)
    refitted.load_state_dict(weights, strict=False)
    for net in (plain, refitted):
        pruning.apply_masks(net, masks)
    with torch.no_grad():
        errors = [float((net(one.images) - one.net(one.images)).norm()) for net in (refitted, plain)]
    assert errors[0] < errors[1]
    small = pruning.shrink(refitted, masks, one.images[:2], groups=one.channels.groups)
    torch.testing.assert_close(small(one.images), refitted(one.images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [*SMALL, "mobilenet"])
@pytest.mark.parametrize("kind", KINDS)
def test_group_lasso_penalises_every_unit_of_every_group(network: str, kind: str) -> None:
    one = subject(network)
    lasso = make_lasso_groups(one.net, kind, groups=one.channels.groups)
    assert len(lasso.sizes) >= sum(group.size for group in one.channels.groups)
    assert int(lasso.sizes.min()) > 0
    parameters = dict(one.net.named_parameters())
    counted = torch.zeros_like(lasso.sizes)
    for piece in lasso.slices:
        weight = parameters[piece.name]
        counted.index_add_(
            0, piece.root, torch.full_like(piece.root, weight.numel() // weight.shape[piece.dim])
        )
    assert torch.equal(counted, lasso.sizes)


@pytest.mark.parametrize("network", [*SMALL, "mobilenet"])
def test_adaptive_schedules_remove_no_more_than_the_ceiling(network: str) -> None:
    one = subject(network)
    for granularity in (g for g in GRANULARITIES if g == "weight" or one.groups(g)):
        for schedule in ("pq_index", "threshold(value=0.5)", "column_mean(fraction=0.9)"):
            masks = one.prune(granularity, "l2", schedule=schedule, amount=0.3)
            for total, gone in pools(masks, one.groups(granularity)):
                assert gone <= int(0.3 * total + 0.5)
            if granularity == "weight":
                assert 0 < pruning.sparsity(masks) <= 0.31


@pytest.mark.parametrize("network", [*SMALL, "mobilenet"])
def test_two_of_four_weights_of_every_block_of_a_unit_stay(network: str) -> None:
    one = subject(network)
    masks = one.prune("nm(n=2, m=4)", "magnitude")
    for name, layer in prunable_layers(one.net).items():
        rows = turn_rows(layer, masks[f"{name}.weight"]).flatten(1)
        blocks = rows.shape[1] // 4
        whole, remainder = rows[:, : 4 * blocks].unflatten(1, (blocks, 4)), rows[:, 4 * blocks :]
        assert (whole.sum(2) == 2).all()
        assert remainder.all()
        values = (
            turn_rows(layer, layer.weight.detach())
            .flatten(1)[:, : 4 * blocks]
            .unflatten(1, (blocks, 4))
            .abs()
        )
        if blocks:
            kept, gone = values.masked_fill(~whole, torch.inf), values.masked_fill(whole, 0.0)
            assert (kept.amin(2) >= gone.amax(2)).all()


@pytest.mark.parametrize("network", [*SMALL, "mobilenet"])
def test_macs_are_those_of_torch_s_counter_dense_and_cut(network: str) -> None:
    one = subject(network)
    masks = one.prune("channel", "l2")
    cut = pruning.shrink(one.net, masks, one.images[:2], groups=one.channels.groups)
    totals = []
    for net in (one.net, cut):
        counted = profile(net, tuple(one.images.shape[1:]))
        # FlopCounterMode has no formula for the CPU's fused attention, whose products are the plain one's.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            net(one.images[:1])
        totals.append(counted.total_macs)
        assert 2 * counted.total_macs == counter.get_total_flops()
    assert totals[1] < totals[0]

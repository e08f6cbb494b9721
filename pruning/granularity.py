"""What is pruned together: single weights, units, channels, or weights in n:m blocks.

A granularity takes the network and returns its groups, or None where every weight stands for itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from pruning.channels import Channels, find_channels
from pruning.dataflow import DataFlow, find_data_flow
from pruning.hyperparameters import Between
from pruning.layer_names import find_protected_layers
from pruning.masking import Group, Member, prunable_layers, unit_members, width_of
from pruning.registry import Method, Registry

granularities = Registry("granularity")
GRANULARITIES = ("weight", "unit", "channel", "head", "nm")
Block = Annotated[int, Between(1, 1024)]
Groups = tuple[Group, ...] | None


@granularities.register(summary="every weight for itself")
def weight(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """No groups."""
    return None


@granularities.register(summary="a neuron or filter: a row, its bias, its norm's entries")
def unit(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """The groups of an earlier `unit_groups`, or new ones: one per hidden layer."""
    if groups is None:
        return unit_groups(net, protect=protect, example_input=example_input)
    return _unprotected(groups, net, protect)


@granularities.register(summary="a channel with all that depends on it, so that it can be cut out")
def channel(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """The groups of an earlier trace, or those of a new one; ValueError without groups or example.

    Layers that are left whole are named in a warning.
    """
    if groups is not None:
        return _unprotected(groups, net, protect, example_input)
    return _channels(net, protect, example_input, "channel").groups


@granularities.register(
    summary="an attention head: its query, key and value rows and what reads them, so that it can be cut out",
    paper="Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019",
)
def head(
    net: nn.Module, *, protect: Collection[str], example_input: Tensor | None, groups: Sequence[Group] | None
) -> Groups:
    """The groups of an earlier trace, or those of a new one; ValueError where no heads can be cut out."""
    if groups is not None:
        return _unprotected(groups, net, protect, example_input)
    heads = _channels(net, protect, example_input, "head").heads
    if not heads and not protect:
        raise ValueError(f"{type(net).__name__} has no attention whose heads can be removed")
    return heads


def _channels(
    net: nn.Module, protect: Collection[str], example_input: Tensor | None, granularity: str
) -> Channels:
    if example_input is None:
        raise ValueError(
            f"granularity {granularity!r} needs example_input, a batch of images to trace the network"
        )
    channels = find_channels(net, example_input, protect=protect)
    names = channels.left_whole if granularity == "channel" else channels.heads_left_whole
    if names:
        suffix = f" and {len(names) - 4} more" if len(names) > 4 else ""
        warnings.warn(f"not pruned: {', '.join(names[:4])}{suffix}", stacklevel=6)
    return channels


def _unprotected(
    groups: Sequence[Group], net: nn.Module, protect: Collection[str], example_input: Tensor | None = None
) -> tuple[Group, ...]:
    """Return the groups whose units no protected layer makes."""
    protected = find_protected_layers(net, protect, example_input=example_input)
    # In a network of one layer the units are its input features, so that its columns make them.
    single = len(prunable_layers(net)) == 1
    return tuple(
        group
        for group in groups
        if not any(m.module in protected and (m.side == "out" or single) for m in group.members)
    )


def check_nm(*, n: int, m: int) -> None:
    """Raise ValueError unless n < m."""
    if n >= m:
        raise ValueError(f"nm(n) is {n} and nm(m) is {m}; n must be below m")


@granularities.register(
    summary="n of every m consecutive weights stay",
    paper="Mishra et al., Accelerating Sparse Deep Neural Networks, 2021",
    check=check_nm,
    block="m",
)
def nm(
    net: nn.Module,
    *,
    protect: Collection[str],
    example_input: Tensor | None,
    groups: Sequence[Group] | None,
    n: Block = 2,
    m: Block = 4,
) -> Groups:
    """No groups: the n best of every m consecutive weights of a row stay, whatever the scope.

    A row is a unit's weights in memory order, [in, height, width] for a filter; a remainder shorter
    than m stays whole. The amount is implied.
    """
    return None


def resolve_amount(granularity: Method, amount: float) -> float:
    """Return the amount. ValueError where n:m implies another: it must be 0 or 1 - n / m there."""
    if granularity.name != "nm":
        return amount
    n, m = granularity.options["n"], granularity.options["m"]
    implied = 1.0 - n / m
    if amount and abs(amount - implied) > 1e-9:
        raise ValueError(f"amount is {amount!r}; {n}:{m} removes {implied:g} of every row: give that, or 0")
    return amount and implied


def split_blocks(tensor: Tensor, m: int) -> Tensor:
    """Return [blocks, m]: the full blocks of every row, without the remainders."""
    rows = tensor.flatten(1)
    return rows[:, : rows.shape[1] // m * m].reshape(-1, m)


def join_blocks(blocks: Tensor, mask: Tensor) -> Tensor:
    """Return `mask` with its full blocks replaced by `blocks`, [blocks, m]."""
    rows = mask.flatten(1).clone()
    width = blocks.numel() // len(rows)
    rows[:, :width] = blocks.reshape(len(rows), width)
    return rows.reshape(mask.shape)


def unit_groups(
    net: nn.Module,
    *,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    flow: DataFlow | None = None,
) -> tuple[Group, ...]:
    """Return one group per hidden layer: its rows, biases, and the entries of the norms that read just it.

    Hidden layers are those that run and do not make the logits, as `flow` or a pass of `example_input` shows;
    layers that share a weight share their units. In a network without a hidden layer the units are input
    features. ValueError for a network that cannot be run.
    """
    layers = prunable_layers(net)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        columns = torch.arange(layer.weight.shape[1])
        features = Group(name, len(columns), (Member(name, "in", columns, columns),))
        return () if find_protected_layers(net, protect) else (features,)
    flow = flow or find_data_flow(net, example_input)
    protected = find_protected_layers(net, protect, flow=flow)
    names_by_weight: dict[int, list[str]] = {}
    for name, layer in layers.items():
        names_by_weight.setdefault(id(layer.weight), []).append(name)
    groups = []
    for names in names_by_weight.values():
        if not protected.isdisjoint(names) or any(n not in flow.layers or n in flow.outputs for n in names):
            continue
        rows = torch.arange(width_of(layers[names[0]], "out"))
        norms = dict.fromkeys(norm for name in names for norm in flow.norms.get(name, ()))
        members = [member for name in names for member in unit_members(name, layers[name], rows)]
        members += [Member(norm, "norm", rows, rows) for norm in norms]
        groups.append(Group(names[0], len(rows), tuple(members)))
    return tuple(groups)

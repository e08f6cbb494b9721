"""Groups inside attentions: heads, and the widths inside of them.

A *head* is what `channel_groups` has as one channel of several rows: its queries, keys and values, and the
columns that read them. Heads that share keys and values are one unit. *Inside*, position d of every head is
one unit: all heads of an attention keep the same width, and the same positions of queries, keys and values.
Which rows belong to which position is taken from their order; the check of removals judges it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import gcd

import torch
from torch import nn

from pruning.cutting.attention import PROJECTIONS, HeadAttention, SplitAttention, is_splittable
from pruning.cutting.layer_widths import (
    HEAD_DIMS,
    HEADS,
    KEY_HEADS,
    count_of,
    counting_attributes,
    replace_module,
)
from pruning.cutting.narrow_attention import UNTRACEABLE, find_narrow
from pruning.masking import Group, Member, width_of

NO_WIDTH = "the rows of its heads come in no equal parts that read and are read alike"


def open_attentions(net: nn.Module) -> dict[str, nn.Module]:
    """Let attentions call each of their layers, in place; return the split ones by name.

    torch's own have one weight for queries, keys and values, and get a layer for each; others give the
    weight of a layer to a function, where it is not seen.
    """
    modules = dict(net.named_modules())
    split = [name for name, module in modules.items() if is_splittable(module)]
    for name in split:
        replace_module(net, name, SplitAttention(modules[name]))
    for name, module in modules.items():
        kind = find_narrow(module)
        if kind is not None and issubclass(kind, UNTRACEABLE):
            module = kind(module)
            replace_module(net, name, module)
        if isinstance(module, UNTRACEABLE):
            module.is_traced = True
    return {name: net.get_submodule(name) for name in split}


def join_projections(group: Group, attentions: Mapping[str, nn.Module]) -> Group:
    """Return a group in which query, key and value are rows of their attention's one weight.

    `attentions`: name -> the `SplitAttention` that the network was traced with.
    """
    members: list[Member] = []
    followers = list(group.followers)
    for member in group.members:
        name, _, leaf = member.module.rpartition(".")
        if name not in attentions or leaf not in PROJECTIONS:
            members.append(member)
        elif member.side == "out":
            layer = attentions[name].get_submodule(leaf)
            index = member.index + PROJECTIONS.index(leaf) * width_of(layer, "out")
            for parameter in ("in_proj_weight", "in_proj_bias")[: 1 if layer.bias is None else 2]:
                members.append(Member(name, "entry", index, member.root, parameter, 0))
                followers.append(Member(name, "slice", index, member.root, parameter, 0))
    root = _root_name(group.name, attentions)
    return Group(root, group.size, tuple(members), tuple(followers))


def _root_name(name: str, attentions: Mapping[str, nn.Module]) -> str:
    owner, _, leaf = name.rpartition(".")
    return owner if owner in attentions and leaf in PROJECTIONS else name


def with_heads(net: nn.Module, group: Group) -> Group | None:
    """Return a group of attention heads with the attributes that count them; None for another group.

    The attentions are the nearest modules around the layers of the group that have as many heads, or as many
    of keys and values, as the group has units.
    """
    owners = _owners(net, group)
    modules = {f"{member.module}." for member in group.members}
    if group.size == 1 and not all(any(m.startswith(f"{o}.") for o in owners) for m in modules):
        return None  # the width of a residual stream, say, which attentions read and write
    counts = {
        (name, attribute): count_of(net.get_submodule(name), attribute)
        for name in owners
        for attribute in counting_attributes(net.get_submodule(name), HEADS + KEY_HEADS)
    }
    biases = _biases(net, group, dict.fromkeys(name for name, _ in counts))
    entries = [
        replace(m, side="entry") for m in biases if m.parameter in net.get_submodule(m.module)._parameters
    ]
    members, followers = [*group.members, *entries], [*group.followers, *biases]
    for (name, attribute), count in counts.items():
        index = torch.arange(count)
        if count % group.size:
            return None
        followers.append(Member(name, "heads", index, index // (count // group.size), attribute))
    return replace(group, members=tuple(members), followers=tuple(followers)) if counts else None


def _owners(net: nn.Module, group: Group) -> tuple[str, ...]:
    owners: dict[str, None] = {}
    for module in dict.fromkeys(member.module for member in (*group.members, *group.followers)):
        path = module
        while path:
            owner = net.get_submodule(path)
            names = counting_attributes(owner, KEY_HEADS) or counting_attributes(owner, HEADS)
            if any(count_of(owner, name) == group.size for name in names):
                owners[path] = None
                break
            path = path.rpartition(".")[0]
    return tuple(owners)


def _biases(net: nn.Module, group: Group, owners: Iterable[str]) -> list[Member]:
    """Return the slices of an attention's own vectors of heads times width: biases beside those of layers."""
    is_sliced = {(m.module, m.parameter) for m in group.followers if m.side == "slice"}
    slices = []
    for name in owners:
        module = net.get_submodule(name)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in () if isinstance(module, (nn.MultiheadAttention, HeadAttention)) else tensors:
            width = len(tensor) // group.size if tensor.dim() == 1 and tensor.is_floating_point() else 0
            if width > 1 and len(tensor) % group.size == 0 and (name, leaf) not in is_sliced:
                index = torch.arange(len(tensor))
                slices.append(Member(name, "slice", index, index // width, leaf, 0))
    return slices


def find_inside(net: nn.Module, heads: Group) -> Group | None:
    """Return the group of the widths inside these heads; None where their rows do not come in equal parts."""
    members = [*heads.members, *(m for m in heads.followers if m.side != "heads")]
    counts = [member.root.bincount(minlength=heads.size) for member in members]
    # What a head has one of (a scale, a column of a table) has no width.
    wide = [(m, c) for m, c in zip(members, counts, strict=True) if int(c.max()) > 1]
    size = gcd(*(int(number) for _, count in wide for number in count.unique()))
    if size < 2 or any(len(count.unique()) > 1 for _, count in wide):
        return None
    positions = [_positions(member, size) for member, _ in wide]
    inner = [positions[number] for number, (m, _) in enumerate(wide) if any(m is x for x in heads.members)]
    followers = [
        positions[number] for number, (m, _) in enumerate(wide) if all(m is not x for x in heads.members)
    ]
    for name in dict.fromkeys(m.module for m in heads.followers if m.side == "heads"):
        for attribute in counting_attributes(net.get_submodule(name), HEAD_DIMS):
            if getattr(net.get_submodule(name), attribute) == size:
                index = torch.arange(size)
                followers.append(Member(name, "heads", index, index, attribute))
    return Group(heads.name, size, tuple(inner), tuple(followers))


def find_query_heads(net: nn.Module, heads: Group) -> Group | None:
    """Return the group of the query heads of an attention with one head of keys and values; None for others.

    Keys and values stay: every query head reads them.
    """
    counts = [m for m in heads.followers if m.side == "heads" and m.parameter in HEADS]
    if heads.size > 1 or not counts or len(counts[0].index) < 2:
        return None
    size, most = len(counts[0].index), max(len(member.index) for member in heads.members)
    members, followers = (
        tuple(
            replace(member, root=member.index.argsort().argsort() * size // most)
            for member in side
            if len(member.index) == most and member.side != "heads"
        )
        for side in (heads.members, heads.followers)
    )
    index = torch.arange(size)
    own_counts = tuple(replace(count, root=index) for count in counts)
    return Group(heads.name, size, members, (*followers, *own_counts))


def _positions(member: Member, size: int) -> Member:
    """Return a member whose units are positions inside a head, in place of heads."""
    order = (member.root * (int(member.index.max()) + 1) + member.index).argsort()
    count = int((member.root == member.root[0]).sum())
    position = torch.empty_like(member.root)
    position[order] = torch.arange(len(order)) % count % size
    return replace(member, root=position)

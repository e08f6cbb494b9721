"""Which weights group lasso penalises as one, and the 2-norms of those groups.

Groups are `filter` (each row of a hidden layer), `channel` (what one layer reads of one hidden channel:
a column), or `group` (a unit of a dependency group: its rows in every layer that makes it and its
columns in every layer that reads it, under one norm). Rows do not overlap, nor do columns. Units of
`group` do where a layer has rows in one and columns in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from pruning.checks import check_groups_fit, check_network
from pruning.dataflow import data_flow
from pruning.masking import Group, Member, entries, prunable_layers
from pruning.units import unit_groups

KINDS = ("filter", "channel", "group")


@dataclass(frozen=True)
class LassoPart:
    """Positions `index` along `dim` of the parameter `name`, and the lasso group `root` of each; int64."""

    name: str
    dim: int
    index: Tensor
    root: Tensor


@dataclass(frozen=True)
class LassoGroups:
    """The lasso groups of a network, numbered through; `sizes`, int64 [G], counts the weights of each."""

    kind: str
    sizes: Tensor
    parts: tuple[LassoPart, ...]


def lasso_groups(net: nn.Module, kind: str, *, groups: Sequence[Group] | None = None) -> LassoGroups:
    """What is penalised as one.

    `groups` (of `trace`, or of `unit_groups`) limits all kinds to the layers in it, and `group` needs it.
    With it, `channel` joins the columns that a flattened map repeats per cell; without, every column of
    every layer but the first that runs stands alone. ValueError for another kind, or where none is found.
    """
    check_one_of("kind", kind, KINDS)
    check_network(net)
    if groups is not None:
        check_groups_fit(net, groups)
    weights = weights_of(net)
    sizes: list[Tensor] = []
    places: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for size, members in _together(net, kind, groups):
        count = torch.zeros(size, dtype=torch.int64)
        for member in members:
            name, dim = entries(member)[0]
            weight = known_weight(weights, name)
            each = torch.full_like(member.root, weight.numel() // weight.shape[dim])
            count.index_add_(0, member.root, each)
            places.setdefault((name, dim), []).append((member.index, member.root + start))
        sizes.append(count)
        start += size
    if not places:
        raise ValueError(
            f"kind {kind!r} finds no weights to penalise here; other kinds: "
            f"{', '.join(other for other in KINDS if other != kind)}"
        )
    parts = tuple(_part(weights[name], name, dim, found) for (name, dim), found in places.items())
    return LassoGroups(kind, torch.cat(sizes).to(parts[0].index.device), parts)


def _part(weight: Tensor, name: str, dim: int, places: Sequence[tuple[Tensor, Tensor]]) -> LassoPart:
    # One part for all the groups along a dimension: in a DenseNet twenty of them share a layer's columns.
    index, root = (torch.cat(tensors).to(weight.device) for tensors in zip(*places, strict=True))
    return LassoPart(name, dim, index, root)


def _together(
    net: nn.Module, kind: str, groups: Sequence[Group] | None
) -> Iterator[tuple[int, tuple[Member, ...]]]:
    """(number of lasso groups, the members that they share), one after the other."""
    if kind == "group":
        if groups is None:
            raise ValueError("kind 'group' needs groups, those of trace(net, example_input)")
        for group in groups:
            yield group.size, tuple(member for member in group.members if member.side != "norm")
    elif groups is None and kind == "channel":
        layers = prunable_layers(net)
        hidden = [name for name in layers if name != data_flow(net).layers[0]] if len(layers) > 1 else layers
        for name in hidden:
            columns = torch.arange(layers[name].weight.shape[1])
            yield len(columns), (Member(name, "in", columns, columns),)
    else:
        side = "out" if kind == "filter" else "in"
        for group in unit_groups(net) if groups is None else groups:
            for module in dict.fromkeys(member.module for member in group.members if member.side == side):
                yield group.size, tuple(m for m in group.members if (m.module, m.side) == (module, side))


def norms_of(weights: Mapping[str, Tensor], lasso: LassoGroups) -> Tensor:
    """[G]: 2-norm of each lasso group; differentiable, with gradient 0 at zero."""
    here = torch.cat([norms_along(weights[part.name], part.dim).square()[part.index] for part in lasso.parts])
    roots = torch.cat([part.root for part in lasso.parts])
    squares = here.new_zeros(len(lasso.sizes)).index_add(0, roots, here)
    empty = squares == 0
    return squares.masked_fill(empty, 1.0).sqrt().masked_fill(empty, 0.0)


def norms_along(weight: Tensor, dim: int) -> Tensor:
    """2-norm of each slice along `dim`, in float32 at least."""
    others = [other for other in range(weight.dim()) if other != dim]
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=others, dtype=wide)
    return norms


def weights_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its name."""
    return dict(net.named_parameters())


def known_weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """The weight of that name; ValueError where the network has none that can be changed."""
    if name not in weights:
        raise ValueError(f"{name} is no parameter of its own: it is computed, or tied to another layer's")
    return weights[name]


def check_one_of(label: str, given: str, allowed: Sequence[str]) -> None:
    """ValueError, with the nearest names, for what is not allowed."""
    if given not in allowed:
        near = get_close_matches(given, allowed, n=1) or allowed
        raise ValueError(f"{label} is {given!r}; it must be {' or '.join(near)}")

"""Masks: what is removed together, and where it sits in the network.

A mask is a boolean tensor per parameter, True where the entry is alive. Masks live beside the
network, never inside it; `apply_masks` multiplies them in.

With granularity `weight` every entry stands for itself. With `unit` and `channel` entries go
together: a `Group` numbers the units that compete with each other, and its members say which rows,
columns and norm entries belong to each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]
Scores = dict[str, Tensor]
Side = Literal["out", "in", "norm"]
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Member:
    """Positions along one side of a module, and the unit that each belongs to.

    `out`: rows of the weight, and the bias; `in`: columns of the weight; `norm`: entries of a
    batch norm. `index` and `root` are int64 tensors of one length.
    """

    module: str
    side: Side
    index: Tensor
    root: Tensor


@dataclass(frozen=True)
class Group:
    """`size` units that compete with each other, each spread over all `members`."""

    name: str
    size: int
    members: tuple[Member, ...]


def prunable_layers(net: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers whose weights can be pruned, by module name, in order of registration."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def output_layer(net: nn.Module) -> str:
    """Name of the layer whose rows are the classes: the last one registered."""
    names = list(prunable_layers(net))
    if not names:
        raise ValueError(f"{type(net).__name__} has no Linear or Conv2d layer: there is nothing to prune")
    return names[-1]


def protected_layers(net: nn.Module, protect: Collection[str]) -> frozenset[str]:
    """Module names for `protect`: `input`, `output`, or names of layers. ValueError for others."""
    layers = list(prunable_layers(net))
    aliases = {"input": layers[0], "output": output_layer(net)}
    names = frozenset(aliases.get(name, name) for name in protect)
    for name in names - set(layers):
        near = get_close_matches(name, [*aliases, *layers], n=3, cutoff=0.4) or [*aliases, *layers[:5]]
        raise ValueError(f"protect: no layer {name!r}; there are {', '.join(near)}")
    return names


def unit_groups(net: nn.Module, *, protect: Collection[str] = ()) -> tuple[Group, ...]:
    """One group per hidden layer: its rows, biases, and the entries of the norm that follows.

    The norm is the next registered leaf, where its width fits. Rows of the output layer are
    classes and are no units; in a network without a hidden layer the units are input features.
    """
    layers = prunable_layers(net)
    kept, last = protected_layers(net, protect), output_layer(net)
    if len(layers) == 1:
        columns = torch.arange(layers[last].weight.shape[1])
        return () if last in kept else (Group(last, len(columns), (Member(last, "in", columns, columns),)),)
    norms = _following_norms(net)
    groups = []
    for name, layer in layers.items():
        if name == last or name in kept:
            continue
        rows = torch.arange(layer.weight.shape[0])
        members = [Member(name, "out", rows, rows)]
        members += [Member(norms[name], "norm", rows, rows)] if name in norms else []
        groups.append(Group(name, len(rows), tuple(members)))
    return tuple(groups)


def _following_norms(net: nn.Module) -> dict[str, str]:
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    return {
        name: following
        for (name, layer), (following, norm) in pairwise(leaves)
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        and isinstance(norm, Norm)
        and norm.num_features == layer.weight.shape[0]
    }


def full_masks(net: nn.Module, groups: Sequence[Group] | None, *, protect: Collection[str] = ()) -> Masks:
    """Masks with everything alive: of the weights (`groups` is None), or of all that the groups touch."""
    parameters = dict(net.named_parameters())
    if groups is None:
        kept = protected_layers(net, protect)
        names = [f"{layer}.weight" for layer in prunable_layers(net) if layer not in kept]
    else:
        names = [name for group in groups for member in group.members for name, _ in entries(member)]
    return {
        name: torch.ones_like(parameters[name], dtype=torch.bool)
        for name in dict.fromkeys(names)
        if name in parameters
    }


def entries(member: Member) -> tuple[tuple[str, int], ...]:
    """(parameter name, dimension) pairs that a member covers; a bias may be absent from the network."""
    if member.side == "in":
        return ((f"{member.module}.weight", 1),)
    return ((f"{member.module}.weight", 0), (f"{member.module}.bias", 0))


def gather(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Score of each unit, float64 [size]: the sum over its weights in every member that has scores."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        name, dim = entries(member)[0]
        if name in scores:
            moved = scores[name].double().movedim(dim, 0)
            per_position = moved.reshape(len(moved), -1).sum(1)
            total.index_add_(0, member.root, per_position[member.index])
    return total


def alive_units(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """bool [size]: False for units of which every masked row, column and norm entry is dead."""
    alive = torch.zeros(group.size, dtype=torch.bool)
    for member in group.members:
        for name, dim in entries(member):
            if name in masks and (member.side != "in" or len(group.members) == 1):
                moved = masks[name].movedim(dim, 0)
                living = moved.reshape(len(moved), -1).any(1)[member.index]
                alive[member.root[living]] = True
    return alive


def expand(group: Group, alive: Tensor, masks: Masks) -> Masks:
    """New masks in which the dead units of `alive`, bool [size], are masked in every member."""
    result = dict(masks)
    for member in group.members:
        dead = member.index[~alive[member.root]]
        for name, dim in entries(member):
            if name in result and len(dead):
                result[name] = result[name].index_fill(dim, dead, False)
    return result


def count_alive(alive: Tensor) -> Tensor:
    """int64 [P]: how many of each row of bool [P, n] live."""
    # torch widens every bool to eight bytes before it adds them up: 10 times as long.
    return torch.from_numpy(np.count_nonzero(alive.numpy(), axis=1))


def alive_in(mask: Tensor) -> int:
    """How many entries of a mask, bool of any shape, live."""
    return int(np.count_nonzero(mask.cpu().numpy()))


@torch.no_grad()
def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the dead entries of the network's parameters to exactly zero, in place, NaN and infinite ones too.

    ValueError, and nothing is changed, for a mask that is not a bool tensor of its parameter's shape.
    """
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        _check_mask(name, mask, parameters)
    for name, mask in masks.items():
        bits_of(parameters[name]).mul_(mask.to(parameters[name].device))


def _check_mask(name: str, mask: object, parameters: Mapping[str, Tensor]) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        form = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask {name!r} is of type {form}; give a torch.bool tensor, True where it is alive")
    if name not in parameters:
        near = get_close_matches(name, parameters, n=3, cutoff=0.4) or list(parameters)[:3]
        raise ValueError(
            f"mask {name!r} fits no parameter of the network; there are {', '.join(near) or 'none'}"
        )
    if parameters[name].shape != mask.shape:
        raise ValueError(
            f"mask {name!r} of shape {tuple(mask.shape)} fits no parameter of the network; "
            f"it must be {tuple(parameters[name].shape)}"
        )


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with their dead entries at zero; a tensor in which everything lives is the same one."""
    return {
        name: tensor if name not in masks or masks[name].all() else zeroed(tensor, masks[name])
        for name, tensor in weights.items()
    }


def zeroed(weight: Tensor, mask: Tensor) -> Tensor:
    """A copy with exactly zero where the mask is False; a product of floats would keep NaN."""
    product: Tensor = bits_of(weight) * mask.to(weight.device)
    return product.view(weight.dtype)


def bits_of(tensor: Tensor) -> Tensor:
    """The same memory as whole numbers of the same width.

    Multiplied by 1 they stay as they are, by 0 they are those of +0, be they of a number, infinite or
    NaN. `masked_fill_` does the same and takes ten times as long.
    """
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(widths[tensor.itemsize])


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Fraction of the prunable weights that are gone: over masked tensors of two dimensions or more."""
    weights = [mask for mask in masks.values() if mask.dim() > 1]
    total = sum(mask.numel() for mask in weights)
    return 1.0 - sum(map(alive_in, weights)) / total if total else 0.0

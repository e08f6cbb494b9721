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
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]
Scores = dict[str, Tensor]
Side = Literal["out", "in", "norm"]
Norm = nn.modules.batchnorm._BatchNorm
Layer = nn.Linear | nn.Conv2d


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


def prunable_layers(net: nn.Module) -> dict[str, Layer]:
    """The layers whose weights can be pruned, by module name, in order of registration."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def full_masks(net: nn.Module, groups: Sequence[Group] | None, *, protect: Collection[str] = ()) -> Masks:
    """Masks with everything alive: of the weights (`groups` is None), or of all that the groups touch.

    `protect`: names of layers whose weights are left alone; it counts for single weights, groups come without
    them. A weight that several layers share has one mask, under its first name.
    """
    parameters = dict(net.named_parameters())
    if groups is None:
        layers = prunable_layers(net)
        protected = {id(layers[name].weight) for name in protect if name in layers}
        names = [f"{name}.weight" for name, layer in layers.items() if id(layer.weight) not in protected]
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


def check_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """ValueError unless every mask is a bool tensor in the shape of the parameter that it names."""
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask {name!r} is of type {kind}; a bool tensor is needed, True = alive")
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


@torch.no_grad()
def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the dead entries of the network's parameters to exactly zero, in place, NaN and infinite ones too.

    ValueError, and nothing is changed, for a mask that is not a bool tensor of its parameter's shape.
    """
    check_masks(net, masks)
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        bits_of(parameters[name]).mul_(mask.to(parameters[name].device))


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

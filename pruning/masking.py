"""Masks, and the groups of entries that are pruned together.

A mask is a boolean tensor per parameter, True where the entry is alive. Masks are kept beside the network,
never inside it; `apply_masks` multiplies them in.

With granularity `weight` every entry stands for itself. With `unit` and `channel` entries go together: a
`Group` numbers the units that compete with each other, and its members say which rows, columns and norm
entries belong to each of them.
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
Side = Literal["out", "in", "norm", "entry", "slice", "heads"]
Norm = nn.modules.batchnorm._BatchNorm
Conv = nn.modules.conv._ConvNd  # of one, two or three dimensions, transposed or not
Layer = nn.Linear | nn.modules.conv._ConvNd
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class Member:
    """Positions along one side of a module, and the unit that each belongs to.

    `out`: rows of the weight, and the bias; `in`: columns of the weight; `norm`: entries of a norm; `entry`:
    those of one parameter, beside another side of its module; `slice`: of a parameter that is no layer's;
    `heads`: an attention's heads.
    `index` (positions) and `root` (units) are int64 tensors of one length. With `parameter` the positions are
    those of its dimension `dim`: a transposed convolution has its units in dimension 1 of the weight. `width`
    is how many positions the side had when it was traced; 0 where the member has all of them.
    """

    module: str
    side: Side
    index: Tensor
    root: Tensor
    parameter: str = ""
    dim: int = 0
    width: int = 0


@dataclass(frozen=True)
class Group:
    """`size` units that compete with each other, each spread over the `members`.

    `followers` are positions that are cut out with the units and have no mask of their own: the inputs of a
    grouped convolution, slices of a parameter that is no layer's weight.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    followers: tuple[Member, ...] = ()


def prunable_layers(net: nn.Module) -> dict[str, Layer]:
    """Return the layers whose weights can be pruned, by module name, in order of registration."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, Conv))}


def channel_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's input and output, from the end, along which its channels lie."""
    return -len(layer.kernel_size) - 1 if isinstance(layer, Conv) else -1


def unit_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that numbers its units, or its groups of units."""
    return 1 if isinstance(layer, Conv) and layer.transposed and layer.groups == 1 else 0


def turn_rows(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a weight's tensor with a row for every unit, [units, inputs of a group, ...], or the way back.

    A transposed convolution has a row for every input, [inputs, units of a group, ...]. The other layers'
    tensors stay as they are.
    """
    if not (isinstance(layer, Conv) and layer.transposed):
        return tensor
    grouped: Tensor = tensor.unflatten(0, (layer.groups, -1))
    return grouped.transpose(1, 2).flatten(0, 1)


def width_of(layer: nn.Module, side: str) -> int:
    """Return how many units (`out`) or columns (`in`) a layer has."""
    if isinstance(layer, Conv):
        return layer.out_channels if side == "out" else layer.in_channels
    return int(layer.get_parameter("weight").shape[0 if side == "out" else 1])


def members_of(name: str, side: Side, roots: Tensor) -> list[Member]:
    """Return the member of one side of a module; `roots`, int64, has the unit of each position, or -1."""
    index = (roots >= 0).nonzero().flatten()
    return [Member(name, side, index, roots[index], width=len(roots))] if len(index) else []


def unit_members(name: str, layer: nn.Module, roots: Tensor) -> list[Member]:
    """Return the members with the rows and bias of a layer's units; `roots` [units] as in `members_of`."""
    members = members_of(name, "out", roots)
    if not members or not isinstance(layer, Conv) or not layer.transposed:
        return members
    index, root = members[0].index, members[0].root
    entries = [Member(name, "entry", index, root, "bias")] if layer.bias is not None else []
    if layer.groups == 1:
        return [Member(name, "out", index, root, "weight", 1, len(roots)), *entries]
    # Dimension 0 of the weight has the inputs, group by group.
    per_unit, per_input = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    roots_of_inputs = roots[torch.arange(layer.in_channels) // per_input * per_unit]
    rows = members_of(name, "entry", roots_of_inputs)
    return [Member(name, "entry", row.index, row.root, "weight", 0) for row in rows] + entries


def full_masks(net: nn.Module, groups: Sequence[Group] | None, *, protect: Collection[str] = ()) -> Masks:
    """Return masks with everything alive: of the weights, or of all parameters of the `groups`.

    `protect` names layers whose weights are left alone; it is for single weights, as groups come without
    them. A weight that several layers share has one mask, under its first name.
    """
    parameters = dict(net.named_parameters())
    if groups is None:
        layers = prunable_layers(net)
        protected = {id(layers[name].weight) for name in protect if name in layers}
        names = [f"{name}.weight" for name, layer in layers.items() if id(layer.weight) not in protected]
    else:
        names = [name for group in groups for member in group.members for name, _ in parameter_dims(member)]
    return {
        name: torch.ones_like(parameters[name], dtype=torch.bool)
        for name in dict.fromkeys(names)  # once each: a layer has rows in one group and columns in another
        if name in parameters
    }


def parameter_dims(member: Member) -> tuple[tuple[str, int], ...]:
    """Return the (parameter name, dimension) pairs of a member; the network may lack a bias named here."""
    if member.parameter:
        return ((f"{member.module}.{member.parameter}", member.dim),)
    if member.side == "in":
        return ((f"{member.module}.weight", 1),)
    return ((f"{member.module}.weight", 0), (f"{member.module}.bias", 0))


def sum_by_unit(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Return each unit's score, float64 [size]: the sum over its weights in all members that have scores."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        name, dim = parameter_dims(member)[0]
        if name in scores:
            moved = scores[name].double().movedim(dim, 0)
            per_position = moved.reshape(len(moved), -1).sum(1)
            total.index_add_(0, member.root, per_position[member.index])
    return total


def alive_units(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Return bool [size]: False for units of which every masked row, bias and norm entry is pruned.

    Columns count only in a group of one member, the input features: elsewhere another layer reads them.
    """
    alive = torch.zeros(group.size, dtype=torch.bool)
    for member in group.members:
        for name, dim in parameter_dims(member):
            if name in masks and (member.side != "in" or len(group.members) == 1):
                moved = masks[name].movedim(dim, 0)
                alive_here = moved.reshape(len(moved), -1).any(1)[member.index]
                alive[member.root[alive_here]] = True
    return alive


def mask_units(group: Group, alive: Tensor, masks: Masks) -> Masks:
    """Return new masks with the units that are False in `alive`, bool [size], pruned in every member."""
    result = dict(masks)
    for member in group.members:
        pruned = member.index[~alive[member.root]]
        for name, dim in parameter_dims(member):
            if name in result and len(pruned):
                result[name] = result[name].index_fill(dim, pruned, False)
    return result


def count_alive_rows(alive: Tensor) -> Tensor:
    """Return int64 [P]: how many entries of each row of bool [P, n] are True."""
    # torch widens every bool to eight bytes before it adds them up, which takes ten times as long.
    return torch.from_numpy(np.count_nonzero(alive.numpy(), axis=1))


def count_alive(mask: Tensor) -> int:
    """Return how many entries of a mask, bool of any shape, are alive."""
    return int(np.count_nonzero(mask.cpu().numpy()))


def check_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every mask is a bool tensor in the shape of the parameter that it names."""
    if not isinstance(net, nn.Module) or not isinstance(masks, Mapping):
        raise ValueError(
            f"net is of type {type(net).__name__} and masks of type {type(masks).__name__}; a network and a "
            "dictionary of masks by parameter name are needed"
        )
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask {name!r} is of type {kind}; a bool tensor is needed, True = alive")
        if mask.is_meta:
            raise ValueError(f"mask {name!r} is on the meta device and has no values")
        if name not in parameters:
            near = get_close_matches(str(name), parameters, n=3, cutoff=0.4) or list(parameters)[:3]
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
    """Set the pruned entries of the network's parameters to exactly zero, in place, even NaN and infinity.

    ValueError, and nothing is changed, for a mask that is not a bool tensor of its parameter's shape.
    """
    check_masks(net, masks)
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        view_as_integers(parameters[name]).mul_(mask.to(parameters[name].device))


def mask_weights(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with their pruned entries at zero; a tensor with nothing pruned is the same object."""
    return {
        name: weight if _is_full(masks.get(name)) else mask_weight(weight, masks[name])
        for name, weight in weights.items()
    }


def _is_full(mask: Tensor | None) -> bool:
    return mask is None or bool(mask.cpu().numpy().all())


def mask_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a copy with exactly zero where the mask is False; a product of floats would keep NaN."""
    product: Tensor = view_as_integers(weight) * mask.to(weight.device)
    return product.view(weight.dtype)


def view_as_integers(tensor: Tensor) -> Tensor:
    """Return a view of the same memory as integers of the same width.

    Times 1 the bits stay as they are, times 0 they are those of +0, be they of a number, infinity or NaN.
    `masked_fill_` does the same in ten times the time.
    """
    return tensor.detach().view(INTEGERS[tensor.itemsize])


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Return the fraction of weights that are pruned, over masks of two dimensions or more."""
    weights = [mask for mask in masks.values() if mask.dim() > 1]
    total = sum(mask.numel() for mask in weights)
    return 1.0 - sum(map(count_alive, weights)) / total if total else 0.0


def shuffle_masks(masks: Masks, generator: torch.Generator) -> Masks:
    """Return the masks with the entries of each layer in random order: equal densities, another choice.

    A control that a pruning method must beat before its choice of weights means anything (Frankle et al.,
    Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, ICLR 2021); the inverted score is
    `prune(..., invert=True)`. For masks of single weights. ValueError for masks of units or channels, which
    also cover biases and norms: shuffled, they would no longer be units.
    """
    for name, mask in masks.items():
        if mask.dim() < 2:
            raise ValueError(
                f"mask {name!r} is of one dimension: only masks of single weights can be shuffled"
            )
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }

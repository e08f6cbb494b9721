"""Channels: which of them belong together, and the smaller network without the dead ones.

What `tracing` gives is never believed: whatever is cut out is compared with what is masked, when a network
is traced and again when it is cut (see `equivalence`). After the trace all is index arithmetic on weight,
bias and running statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.architecture import SelectedLinear, replace_module, select_in_place, size_names, tie_again, tied
from pruning.checks import FORWARD_ERRORS, check_example, check_groups_fit, check_network
from pruning.copies import float64_twin, random_images
from pruning.dataflow import data_flow, protected_layers
from pruning.equivalence import check_equal, silent_columns
from pruning.masking import (
    Group,
    Masks,
    alive_units,
    apply_masks,
    check_masks,
    expand,
    full_masks,
    prunable_layers,
)
from pruning.own_weights import check_own_weights
from pruning.tracing import check_groups, dependency_groups, input_features

Gone = dict[tuple[str, int], Tensor]


def trace(net: nn.Module, example_input: Tensor, *, protect: Collection[str] = ()) -> tuple[Group, ...]:
    """The channel groups of `net`, in order of registration of their root layers.

    A group bears its root layer's name. Rows of the layers that make the logits are classes and in no group;
    in a network without a hidden layer the group is the input features. Groups with a layer of `protect` are
    left out. ValueError, with the layer, where a channel meets something that cannot be cut, or where half
    of the channels, cut out, leave another network than half of them masked. `net` is not touched.
    """
    check_network(net)
    example_input = check_example(example_input)
    flow = data_flow(net, example_input)
    layers, protected = prunable_layers(net), protected_layers(net, protect, flow=flow)
    check_own_weights(net, layers.keys() - protected)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        groups = {} if protected else {name: input_features(name, layer)}
    else:
        groups, left_out = dependency_groups(net, example_input, outputs=flow.outputs, protected=protected)
        hidden = [name for name in layers if name not in {*flow.outputs, *protected, *left_out}]
        check_groups(groups.values(), hidden=hidden, outputs=flow.outputs)
    in_order = tuple(groups[name] for name in layers if name in groups)
    members = {member.module for group in in_order for member in group.members}
    check_own_weights(net, members & layers.keys())  # what reads them, too
    _check_law(net, in_order, example_input)
    return in_order


def _check_law(net: nn.Module, groups: Sequence[Group], example_input: Tensor) -> None:
    """ValueError unless a network with half of every group cut out computes what the masked one does."""
    if all(group.size == 1 for group in groups):
        return
    plain = float64_twin(net)
    parameter = next(p for p in plain.parameters() if p.is_floating_point())
    stirred = _stirred(plain)
    if not _runs(stirred, random_images(example_input, parameter)):
        stirred = plain  # a scale under a root, say, that has become negative
    generator, whole = torch.Generator().manual_seed(0), full_masks(net, groups)
    for draw in (0, 1, 2):
        masks = whole
        for group in groups:
            order = torch.randperm(group.size, generator=generator)
            alive = torch.ones(group.size, dtype=torch.bool).index_fill(0, order[: group.size // 2], False)
            masks = expand(group, alive, masks)
        masked = deepcopy(stirred)
        apply_masks(masked, masks)
        gone = _gone_positions(groups, _all_masks(masked, masks))
        images = random_images(example_input, parameter, draw=draw)
        check_equal(masked, _cut_out(deepcopy(masked), gone), images, gone=gone)


@torch.no_grad()
def _stirred(plain: nn.Module) -> nn.Module:
    """A float64 copy whose parameters and statistics are moved from where they start.

    A fresh network has shifts of 0, scales of 1, and often a scale of 0 behind a residual branch: these hide
    what training will show. Rows and columns are moved as such: numbers for every weight take too long.
    """
    twin = deepcopy(plain)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        for dim in range(min(tensor.dim(), 2)):
            factor = torch.rand(tensor.shape[dim], generator=generator, dtype=torch.float64).add_(0.5)
            tensor.mul_(_along(factor, dim, tensor))
        if tensor.dim() and (isinstance(tensor, nn.Parameter) or name.endswith("running_mean")):
            shift = _along(torch.rand(len(tensor), generator=generator, dtype=torch.float64) - 0.5, 0, tensor)
            if tensor.dim() > 1:
                other = torch.rand(tensor.shape[1], generator=generator, dtype=torch.float64) - 0.5
                shift = shift * _along(other, 1, tensor)
            tensor.add_(0.2 * shift)
    return twin


def _along(values: Tensor, dim: int, tensor: Tensor) -> Tensor:
    """The values along one dimension of the tensor, so that the two can be multiplied."""
    return values.to(tensor.device).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


@torch.no_grad()
def _runs(net: nn.Module, images: Tensor) -> bool:
    try:
        logits = net(images)
    except FORWARD_ERRORS:
        return False
    return isinstance(logits, Tensor) and bool(torch.isfinite(logits[:1]).all())


def kept_channels(
    groups: Iterable[Group], masks: Mapping[str, Tensor], *, whole_if_dead: bool = False
) -> dict[str, Tensor]:
    """Group name -> int64 positions of the channels that stay, ascending.

    Of a group that is wholly dead the first stays, as no layer is without channels; or all of them with
    `whole_if_dead`. A parameter without a mask is taken for one that the network does not have.
    """
    kept = {}
    for group in groups:
        alive = alive_units(group, masks)
        least = torch.arange(group.size if whole_if_dead else 1)
        kept[group.name] = alive.nonzero().flatten() if alive.any() else least
    return kept


def dead_groups(groups: Iterable[Group], masks: Mapping[str, Tensor], *, net: nn.Module) -> tuple[str, ...]:
    """The names of the groups of which no channel lives; a parameter without a mask is alive."""
    whole = _all_masks(net, masks)
    return tuple(group.name for group in groups if not alive_units(group, whole).any())


def shrink(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Tensor,
    *,
    groups: Sequence[Group] | None = None,
    whole_if_dead: bool = False,
) -> nn.Module:
    """A new network without the dead channels; it computes what the masked `net` computes.

    A channel is dead when its rows, biases and norm entries are. Of a group that is dead as a whole one
    channel stays, masked; with `whole_if_dead` all do, as in networks that were recorded before. `groups` is
    an earlier `trace` of `net`. ValueError, with the layer, where the two would not be equal on random images
    in float64: where a living column still reads something else than zero from a dead channel (a sigmoid,
    say), or channels do not lie where the trace has them.
    """
    net, example_input = check_network(net), check_example(example_input)
    check_masks(net, masks)
    if groups is None:
        groups = trace(net, example_input, protect=whole_layers(net, masks))
    check_groups_fit(net, groups)
    masked = deepcopy(net)
    apply_masks(masked, masks)
    gone = _gone_positions(groups, _all_masks(masked, masks), whole_if_dead=whole_if_dead)
    if not gone:
        return masked
    small = _cut_out(deepcopy(masked), gone)
    twin, other = float64_twin(masked), float64_twin(small)
    parameter = next(p for p in twin.parameters() if p.is_floating_point())
    for draw in (0, 1):
        check_equal(twin, other, random_images(example_input, parameter, draw=draw), gone=gone)
    return small


def whole_layers(net: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The layers of which every row has living entries: nothing of them can be cut."""
    layers = prunable_layers(net)
    if len(layers) == 1:
        return ()
    names = {id(parameter): name for name, parameter in net.named_parameters()}  # one for tied layers, too
    rows = {name: masks.get(names.get(id(layer.weight), "")) for name, layer in layers.items()}
    return tuple(name for name, mask in rows.items() if mask is None or bool(mask.flatten(1).any(1).all()))


def propagate(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    groups: Sequence[Group],
    *,
    example_input: Tensor,
) -> Masks:
    """The masks with what is dead by consequence masked, too: the columns that read nothing but dead units.

    A unit is dead when its rows, biases and norm entries are; a bias without a mask lives. Its columns are
    dead where they read zero on random images, so that masking them changes nothing: behind a sigmoid they
    do not. Columns that are masked may leave further units without a living weight, and so on.
    """
    spread, whole = dict(masks), _all_masks(net, masks)
    while due := _columns_of_the_dead(groups, whole):
        silent = _silent_columns(net, spread, example_input)
        grown = False
        for name, columns in due.items():
            columns = columns[silent[name][columns]] if name in silent else columns[:0]
            weight = f"{name}.weight"
            if whole[weight].index_select(1, columns).any():
                whole[weight] = spread[weight] = whole[weight].index_fill(1, columns, False)
                grown = True
        if not grown:
            break
    return spread


def _columns_of_the_dead(groups: Sequence[Group], whole: Masks) -> dict[str, Tensor]:
    """Layer -> its columns that belong to dead units, of the layers where some of them live."""
    columns: dict[str, list[Tensor]] = {}
    for group in groups:
        dead = ~alive_units(group, whole)
        for member in group.members if dead.any() and len(group.members) > 1 else ():
            if member.side == "in" and f"{member.module}.weight" in whole:
                columns.setdefault(member.module, []).append(member.index[dead[member.root]])
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    return {
        name: index for name, index in joined.items() if whole[f"{name}.weight"].index_select(1, index).any()
    }


def _silent_columns(net: nn.Module, masks: Masks, example_input: Tensor) -> dict[str, Tensor]:
    """Layer -> bool [columns]: where the masked network gives it zeros alone, on all random images."""
    masked = float64_twin(net)
    apply_masks(masked, masks)
    parameter = next(p for p in masked.parameters() if p.is_floating_point())
    draws = [silent_columns(masked, random_images(example_input, parameter, draw=draw)) for draw in (0, 1)]
    return {name: draws[0][name] & draws[1][name] for name in draws[0].keys() & draws[1].keys()}


@torch.no_grad()
def _cut_out(net: nn.Module, gone: Gone) -> nn.Module:
    """The network without these positions; what shared a parameter shares it still. It edits `net`."""
    shared, single = tied(net), len(prunable_layers(net)) == 1
    for (name, dim), positions in gone.items():
        module = net.get_submodule(name)
        keep = _others(positions, getattr(module, size_names(module)[dim]))
        if type(module) is nn.Linear and single:  # input features, not channels
            net = replace_module(net, name, SelectedLinear(module, keep))
        else:
            select_in_place(module, dim, keep)
    tie_again(net, shared)
    return net


def shrink_masks(masks: Mapping[str, Tensor], groups: Sequence[Group], *, net: nn.Module) -> Masks:
    """The masks of what `shrink(net, masks, ...)` leaves, under the same parameter names."""
    small = dict(masks)
    for (name, dim), positions in _gone_positions(groups, _all_masks(net, masks)).items():
        for full in [key for key in small if key.rpartition(".")[0] == name]:
            mask = small[full]
            if dim < mask.dim():
                small[full] = mask.index_select(dim, _others(positions, mask.shape[dim]).to(mask.device))
    return small


def _all_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Parameters without a mask are alive: a bias that nobody masked keeps its channel."""
    return {
        name: masks[name].cpu() if name in masks else torch.ones(parameter.shape, dtype=torch.bool)
        for name, parameter in net.named_parameters()
    }


def _gone_positions(groups: Sequence[Group], masks: Masks, *, whole_if_dead: bool = False) -> Gone:
    """(module name, dimension) -> the positions to be cut there."""
    parts: dict[tuple[str, int], list[Tensor]] = {}
    kept = kept_channels(groups, masks, whole_if_dead=whole_if_dead)
    for group in groups:
        dead = torch.ones(group.size, dtype=torch.bool).index_fill(0, kept[group.name], False)
        for member in group.members if dead.any() else ():
            key = (member.module, 1 if member.side == "in" else 0)
            parts.setdefault(key, []).append(member.index[dead[member.root]])
    return {key: torch.cat(positions) for key, positions in parts.items() if sum(map(len, positions))}


def _others(positions: Tensor, size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool).index_fill(0, positions, False).nonzero().flatten()

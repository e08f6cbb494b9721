"""From masks to the positions that are cut out of a network, and where what is left lies in the whole one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.cutting.layer_widths import Removed, cut_out
from pruning.masking import Group, Masks, alive_units


def remaining_channels(
    groups: Iterable[Group], masks: Mapping[str, Tensor], *, whole_if_dead: bool = False
) -> dict[str, Tensor]:
    """Return group name -> int64 positions of the channels that stay, ascending.

    Of a group that is pruned as a whole the first channel stays, as no layer is without channels; or all of
    them with `whole_if_dead`. Of a layer with a part of the group alone, the first of that part stays. A
    parameter without a mask is taken for one that the network does not have.
    """
    return {group.name: _remaining(group, masks, whole_if_dead=whole_if_dead) for group in groups}


def _remaining(group: Group, masks: Mapping[str, Tensor], *, whole_if_dead: bool) -> Tensor:
    alive = alive_units(group, masks)
    if not alive.any():
        return torch.arange(group.size if whole_if_dead else 1)
    for member in (*group.members, *group.followers):
        if member.width == len(member.index) and not alive[member.root].any():
            alive[member.root.min()] = True
    return alive.nonzero().flatten()


def find_pruned_groups(
    groups: Iterable[Group], masks: Mapping[str, Tensor], *, net: nn.Module
) -> tuple[str, ...]:
    """Return the names of the groups of which no channel is alive; a parameter without a mask is alive."""
    every_mask = all_masks(net, masks)
    return tuple(group.name for group in groups if not alive_units(group, every_mask).any())


def all_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Return masks of all parameters, alive where `masks` has none: an unmasked bias keeps its channel."""
    return {
        name: masks[name].cpu() if name in masks else torch.ones(parameter.shape, dtype=torch.bool)
        for name, parameter in net.named_parameters()
    }


def removed_positions(groups: Sequence[Group], masks: Masks, *, whole_if_dead: bool = False) -> Removed:
    """Return (module name, side) -> the positions to cut out there."""
    pieces: dict[tuple[str, str], list[Tensor]] = {}
    for group in groups:  # heads, and widths inside of them, are groups of one name
        remaining = _remaining(group, masks, whole_if_dead=whole_if_dead)
        pruned = torch.ones(group.size, dtype=torch.bool).index_fill(0, remaining, False)
        for member in (*group.members, *group.followers) if pruned.any() else ():
            if member.side != "entry":  # these go with another side of their module
                side = {"slice": f"{member.parameter} {member.dim}", "heads": f":{member.parameter}"}.get(
                    member.side, member.side
                )
                pieces.setdefault((member.module, side), []).append(member.index[pruned[member.root]])
    return {key: torch.cat(positions) for key, positions in pieces.items() if sum(map(len, positions))}


def remaining_entries(net: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Return where each entry of `cut_out(net, removed)` lies in `net`: int64, by the name of its tensor.

    A tensor of positions has the shape of the smaller tensor, and numbers the flattened larger one. Tensors
    that only the smaller network has, as the columns that a SelectedLinear reads, are not among them. `net`
    is not touched.
    """
    numbered, names = deepcopy(net).cpu().requires_grad_(False), net.state_dict().keys()
    for tensor in (*numbered.parameters(), *numbered.buffers()):
        # Shared tensors stay shared: a cut asks whether their copies are equal.
        tensor.data = torch.arange(tensor.numel()).reshape(tensor.shape)
    cut = cut_out(numbered, removed).state_dict()
    return {name: entries.clone() for name, entries in cut.items() if name in names}


def take_entries(tensors: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smaller network's tensors, of those of the larger one that are given; copies."""
    return {name: tensor.flatten()[entries[name]] for name, tensor in tensors.items()}


def put_entries(
    small: Mapping[str, Tensor], entries: Mapping[str, Tensor], *, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the larger network's tensors, of those of the smaller one that are given, in `like`'s order.

    What was cut out is zero; whole numbers, which count or index, are those of `like` there. `like` has the
    larger network's tensors.
    """
    put = {}
    for name, tensor in like.items():
        if name not in small:
            continue
        whole = tensor.cpu()
        is_number = whole.is_floating_point() or whole.is_complex()
        values = (
            torch.zeros_like(whole, memory_format=torch.contiguous_format) if is_number else whole.clone()
        )
        values.view(-1)[entries[name].flatten()] = small[name].flatten()
        put[name] = values
    return put

"""From masks to the positions that are cut out of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.cutting import Removed
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

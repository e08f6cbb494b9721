"""Targets of a trial: what is left of a network by its masks, and the amount at which that is little enough.

Where whole units, channels or heads go, what is left is that of the network that is cut out, counted without
storage. Of single weights it is what is alive: multiply-adds of living weights, living parameters, and the
bytes of these with one bit an entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import lru_cache

import torch
from torch import nn

from orchestrator.trial.context import TrialContext
from orchestrator.trial.macs import Profile, count_macs, profile
from orchestrator.trial.metrics import dense_bytes, effective_macs, nonzero_parameters, sparse_bytes
from orchestrator.trial.structure import (
    BAD_SIZES,
    Architecture,
    channels_of,
    fresh_network,
    groups_of,
    heads_of,
    layers_protected,
    meta_module,
)
from pruning.cutting.layer_widths import cut_out
from pruning.cutting.positions import all_masks, removed_positions
from pruning.masking import Group, Masks, alive_units, count_alive, full_masks, mask_units
from pruning.schedules import rounds_of, schedules
from pruning.target_amounts import find_amount

Quantities = Mapping[str, int]


@lru_cache(maxsize=16)
def dense_profile(architecture: Architecture) -> Profile:
    """Return the cost of one image through the dense network."""
    return profile(fresh_network(architecture), architecture[1])


@lru_cache(maxsize=16)
def dense_quantities(architecture: Architecture) -> dict[str, int]:
    """Return the MACs, parameters and bytes of the dense network."""
    cost = dense_profile(architecture)
    size = dense_bytes(fresh_network(architecture))
    return {"macs": cost.total_macs, "parameters": cost.parameters, "bytes": size}


def remaining_quantities(
    architecture: Architecture, granularity: str, protect: tuple[str, ...], masks: Masks
) -> dict[str, int]:
    """Return the MACs, parameters and bytes that masks leave of a network."""
    net = fresh_network(architecture)
    groups = _cut_groups(architecture, granularity, protect)
    if groups is None:
        cost = dense_profile(architecture)
        return {
            "macs": effective_macs(cost, masks),
            "parameters": nonzero_parameters(cost, masks),
            "bytes": sparse_bytes(net, masks),
        }
    removed = removed_positions(groups, all_masks(net, masks))
    try:
        return _count(cut_out(deepcopy(_meta_network(architecture)), removed), architecture)
    except (*BAD_SIZES, NotImplementedError):  # what does not run without storage
        return _count(cut_out(deepcopy(net), removed), architecture)


def _count(net: nn.Module, architecture: Architecture) -> dict[str, int]:
    return {
        "macs": count_macs(net, architecture[1]),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "bytes": dense_bytes(net),
    }


def _cut_groups(
    architecture: Architecture, granularity: str, protect: tuple[str, ...]
) -> tuple[Group, ...] | None:
    """Return the groups by which a network is cut out; None where nothing is."""
    if groups_of(architecture, granularity, protect) is None:
        return None
    try:
        return (heads_of if granularity == "head" else channels_of)(architecture, protect)
    except ValueError:
        if granularity != "unit":
            raise
        return None  # the neurons of a network that cannot be cut are masked alone


@lru_cache(maxsize=64)
def least_quantities(
    architecture: Architecture, granularity: str, protect: tuple[str, ...]
) -> dict[str, int]:
    """Return the MACs, parameters and bytes that are left where as much goes as can."""
    net, groups = fresh_network(architecture), groups_of(architecture, granularity, protect)
    protected = layers_protected(architecture, protect)
    masks = full_masks(net, groups, protect=protected)
    if groups is None:
        masks = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for group in groups or ():
        masks = mask_units(group, torch.arange(group.size) == 0, masks)
    return remaining_quantities(architecture, granularity, protect, masks)


def masks_at_target(context: TrialContext, masks_at: Callable[[float, int], Masks], *, round: int) -> Masks:
    """Return the masks of a round on the way to the trial's limits; `masks_at` takes an amount and a round.

    In each round the amount is the one that would meet the limits at once.
    """
    options, groups = context.pruned_trial.prune, context.groups
    rounds = rounds_of(schedules.get(options.schedule))
    limits = dict(options.limits)

    def is_met(masks: Masks) -> bool:
        left = remaining_quantities(context.architecture, options.granularity, options.protect, masks)
        return all(left[name] <= limit for name, limit in limits.items())

    def count_removed(masks: Masks) -> int:
        if groups is None:
            return sum(mask.numel() - count_alive(mask) for mask in masks.values())
        return sum(group.size - int(alive_units(group, masks).sum()) for group in groups)

    # An amount of 1 would leave nothing of a group, any below it leaves one unit.
    most = 1.0 if groups is None else math.nextafter(1.0, 0.0)
    amount, masks = find_amount(
        lambda amount: masks_at(amount, rounds), is_met, most=most, count_removed=count_removed
    )
    return masks if round >= rounds else masks_at(amount, round)


@lru_cache(maxsize=2)
def _meta_network(architecture: Architecture) -> nn.Module:
    return meta_module(architecture)

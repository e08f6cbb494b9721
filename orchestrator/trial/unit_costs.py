"""What removing a single unit saves: multiply-adds, parameters and bytes; and a trial's allocation by it.

Whole units, channels and heads are cut out one at a time, without storage, and the network that is left is
counted. The saving of many is not the sum of their savings: what reads two widths gets cheaper twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from orchestrator.config import Prune
from orchestrator.trial.context import TrialContext
from orchestrator.trial.metrics import effective_macs
from orchestrator.trial.structure import Architecture, fresh_network, groups_of, layers_protected
from orchestrator.trial.target_masks import dense_profile, dense_quantities, remaining_quantities
from pruning.allocation import PER_MAC, SENSITIVITY, Allocation
from pruning.amounts import find_makers
from pruning.masking import Group, Masks, full_masks, mask_units

Costs = Mapping[str, Tensor]  # layer's weight or group -> float64: of each unit, or of any


@lru_cache(maxsize=16)
def unit_costs(architecture: Architecture, granularity: str, protect: tuple[str, ...]) -> Mapping[str, Costs]:
    """Return quantity -> what a unit of every group, or a weight of every layer, saves of it.

    A unit that cannot be cut out alone saves the multiply-adds of its own rows.
    """
    groups = groups_of(architecture, granularity, protect)
    masks = full_masks(fresh_network(architecture), groups, protect=layers_protected(architecture, protect))
    if groups is None:
        return _weight_costs(architecture, masks)
    dense = dense_quantities(architecture)
    costs: dict[str, dict[str, Tensor]] = {name: {} for name in dense}
    for group in groups:
        totals = {name: torch.zeros(group.size, dtype=torch.float64) for name in dense}
        for unit, alike in _different_units(group):
            without = mask_units(group, torch.arange(group.size) != unit, masks)
            left = remaining_quantities(architecture, granularity, protect, without)
            saved = {name: dense[name] - left[name] for name in dense}
            if not saved["macs"]:
                cost = dense_profile(architecture)
                saved["macs"] = effective_macs(cost, {}) - effective_macs(cost, without)
            for name in dense:
                totals[name][alike] = float(saved[name])
        for name in dense:
            costs[name][group.name] = totals[name]
    return costs


def _weight_costs(architecture: Architecture, masks: Masks) -> Mapping[str, Costs]:
    cost, net = dense_profile(architecture), fresh_network(architecture)
    macs = dict.fromkeys(masks, 0)
    for layer, name in cost.weights.items():  # layers that share a weight save together
        if name in masks:
            macs[name] += cost.macs[layer]
    parameters = dict(net.named_parameters())
    each = {name: macs[name] / mask.numel() for name, mask in masks.items()}
    return {
        "macs": {name: torch.tensor(each[name], dtype=torch.float64) for name in masks},
        "parameters": {name: torch.tensor(1.0, dtype=torch.float64) for name in masks},
        "bytes": {name: torch.tensor(parameters[name].element_size(), dtype=torch.float64) for name in masks},
    }


def _different_units(group: Group) -> Iterator[tuple[int, Tensor]]:
    """Yield a unit of each kind with all of its kind, int64: those with as many positions everywhere."""
    members = (*group.members, *group.followers)
    counts = torch.stack([torch.bincount(member.root, minlength=group.size) for member in members], 1)
    kinds, kind_of = counts.unique(dim=0, return_inverse=True)
    for kind in range(len(kinds)):
        alike = (kind_of == kind).nonzero().flatten()
        yield int(alike[0]), alike


@lru_cache(maxsize=64)
def group_macs(architecture: Architecture, granularity: str, protect: tuple[str, ...]) -> Mapping[str, int]:
    """Return the multiply-adds of the layers that make each group's units, or that have each weight."""
    cost, groups = dense_profile(architecture), groups_of(architecture, granularity, protect)
    if groups is None:
        names = dict.fromkeys(cost.weights.values())
        return {
            name: sum(cost.macs[layer] for layer, weight in cost.weights.items() if weight == name)
            for name in names
        }
    net = fresh_network(architecture)
    return {group.name: sum(cost.macs[layer] for layer in find_makers(net, group)) for group in groups}


def allocation_of(context: TrialContext) -> Allocation | None:
    """Return the trial's allocation; None where its scope is one of the pruning step.

    RuntimeError where the losses that it goes by have not been measured.
    """
    options = context.pruned_trial.prune
    if options.scope not in (PER_MAC, SENSITIVITY):
        return None
    costs = unit_costs(context.architecture, options.granularity, options.protect)
    if options.scope == PER_MAC:
        return Allocation(costs["macs"])
    if context.curves is None:
        raise RuntimeError("the sensitivity of the dense network has not been measured yet")
    return Allocation(_costs_of_what_is_asked(context.architecture, options, costs), context.curves)


def _costs_of_what_is_asked(architecture: Architecture, options: Prune, costs: Mapping[str, Costs]) -> Costs:
    """Return what a unit brings towards the amount: one, or its part of what is above the limits."""
    if not options.limits:
        return {name: torch.ones((), dtype=torch.float64) for name in costs["macs"]}
    dense = dense_quantities(architecture)
    excess = {name: max(dense[name] - limit, 1) for name, limit in options.limits}
    return {
        name: torch.stack([costs[quantity][name] / excess[quantity] for quantity in excess]).sum(0)
        for name in costs["macs"]
    }

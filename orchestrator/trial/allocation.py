"""The allocation of a trial: how the units of different layers compete, by costs and measured losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from orchestrator.config import Prune
from orchestrator.trial.context import TrialContext
from orchestrator.trial.structure import Architecture
from orchestrator.trial.target_masks import dense_quantities
from orchestrator.trial.unit_costs import Costs, unit_costs
from pruning.allocation import PER_MAC, SENSITIVITY, Allocation


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

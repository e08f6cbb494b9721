"""Pruning as pure functions on torch modules: scores, masks, and the smaller network.

    masks = pruning.prune(net, amount=0.9, criterion="magnitude", granularity="weight", scope="global")
    pruning.apply_masks(net, masks)
    small = pruning.shrink(net, masks, example_input)
"""

from pruning.criteria import criteria
from pruning.engine import GRANULARITIES, prune
from pruning.masking import Masks, apply_masks, sparsity
from pruning.schedules import schedules
from pruning.step import SCOPES
from pruning.structure import shrink, trace

__all__ = [
    "GRANULARITIES",
    "SCOPES",
    "Masks",
    "apply_masks",
    "criteria",
    "prune",
    "schedules",
    "shrink",
    "sparsity",
    "trace",
]

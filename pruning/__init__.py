"""Pruning as pure functions on torch modules: scores, masks, and the smaller network.

masks = pruning.prune(net, amount=0.9, criterion="magnitude", granularity="weight", scope="global")
pruning.apply_masks(net, masks)
small = pruning.shrink(net, masks, example_input)
"""

import pruning.gradient_criteria
import pruning.pivoted_qr  # noqa: F401 - registers its criterion
from pruning.controls import shuffle_masks
from pruning.criteria import criteria
from pruning.decomposition import refit
from pruning.engine import prune
from pruning.granularity import GRANULARITIES, granularities
from pruning.masking import Masks, apply_masks, sparsity
from pruning.pq_index import gini, kept_bound, pq_index, sap_prune_count
from pruning.regularization import regularizers
from pruning.schedules import schedules
from pruning.step import SCOPES
from pruning.structure import shrink, trace

__all__ = [
    "GRANULARITIES",
    "SCOPES",
    "Masks",
    "apply_masks",
    "criteria",
    "gini",
    "granularities",
    "kept_bound",
    "pq_index",
    "prune",
    "refit",
    "regularizers",
    "sap_prune_count",
    "schedules",
    "shrink",
    "shuffle_masks",
    "sparsity",
    "trace",
]

"""Pruning as pure functions on torch modules: scores, masks, and the smaller network.

masks = pruning.prune(net, amount=0.9, criterion="magnitude", granularity="weight", scope="global")
pruning.apply_masks(net, masks)
small = pruning.shrink(net, masks, example_input)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.accumulation import Accumulator
    from pruning.allocation import Allocation, LossCurve
    from pruning.channels import shrink, trace
    from pruning.criteria import criteria
    from pruning.granularity import GRANULARITIES, granularities
    from pruning.group_lasso import regularizers
    from pruning.interpolative_decomposition import refit
    from pruning.mask_selection import SCOPES
    from pruning.masking import Masks, apply_masks, shuffle_masks, sparsity
    from pruning.pq_index import gini, kept_bound, pq_index, sap_prune_count
    from pruning.prune import prune
    from pruning.schedules import schedules

# Imported on first use, by `__getattr__`: `pruning.user_code.plugins` must load without torch.
_NAMES = {
    "accumulation": ("Accumulator",),
    "allocation": ("Allocation", "LossCurve"),
    "channels": ("shrink", "trace"),
    "criteria": ("criteria",),
    "granularity": ("GRANULARITIES", "granularities"),
    "group_lasso": ("regularizers",),
    "interpolative_decomposition": ("refit",),
    "mask_selection": ("SCOPES",),
    "masking": ("Masks", "apply_masks", "shuffle_masks", "sparsity"),
    "pq_index": ("gini", "kept_bound", "pq_index", "sap_prune_count"),
    "prune": ("prune",),
    "schedules": ("schedules",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [  # a literal, which type checkers and documentation tools read
    "GRANULARITIES",
    "SCOPES",
    "Accumulator",
    "Allocation",
    "LossCurve",
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


def __getattr__(name: str) -> Any:  # a function, a registry or a constant, typed above
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module `pruning.pq_index` would bind it here, in place of the function of that name.
        if name not in _MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

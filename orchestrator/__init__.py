"""Sweeps of neural-network pruning: plan, run, record, compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.records import results, rounds

__version__ = "0.1.0"
__all__ = ["__version__", "results", "rounds"]


def __getattr__(name: str) -> Any:  # functions of several types
    """`results` and `rounds` are imported when first asked for: they bring mlflow and pandas."""
    if name in ("results", "rounds"):
        from orchestrator import records as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

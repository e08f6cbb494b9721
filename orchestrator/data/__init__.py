"""Data sets: names, files, splits, loading and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.data.loading import load_dataset as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:  # the one function
    """Import `load` when it is first asked for: it brings torch."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator.data.loading import load_dataset

    return load_dataset

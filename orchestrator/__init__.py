"""Sweeps of neural-network pruning: plan, run, record, compare."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING, Any

# First: a folder `models` or `pruning` of the user's may come before ours on the path.
run_path(str(Path(__file__).parent.parent / "pruning" / "package_imports.py"))["claim_packages"]()

if TYPE_CHECKING:
    from orchestrator.analysis.results import results, rounds
    from orchestrator.model_io.load import load
    from orchestrator.report.figure_file import figure

__version__ = "0.1.0"
__all__ = ["__version__", "figure", "load", "results", "rounds"]


def __getattr__(name: str) -> Any:  # functions of several types
    """Functions are imported when first asked for: they bring mlflow, pandas and torch."""
    if name in ("results", "rounds"):
        from orchestrator.analysis import results as module
    elif name == "figure":
        from orchestrator.report import figure_file as module  # type: ignore[no-redef]
    elif name == "load":
        from orchestrator.model_io import load as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)

"""The models of timm, where it is installed: `timm.resnet18`."""

from __future__ import annotations

from importlib.util import find_spec


def is_installed() -> bool:
    return find_spec("timm") is not None


def find_builder(name: str) -> object:
    """Return the builder of a model of timm. ValueError without timm, or for an unknown name."""
    raise ValueError(f"timm.{name} needs timm: pip install 'pruning-orchestrator[timm]'")

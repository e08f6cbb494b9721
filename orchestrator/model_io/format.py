"""What a form of export is: a way to write a network, and a way to run what was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from orchestrator.storage.model_spec import ModelSpec

Run = Callable[[Tensor], Tensor]  # images float32 [N, C, H, W] -> logits [N, classes]


@dataclass(frozen=True)
class ExportFormat:
    """`tolerance`: how far an output may be off, for outputs up to 1; for larger ones in proportion.

    `needs`: packages of the extra `export`.
    """

    name: str
    about: str
    tolerance: float
    write: Callable[[nn.Module, ModelSpec, Path], None]
    runner: Callable[[Path], Run]
    needs: tuple[str, ...] = ()

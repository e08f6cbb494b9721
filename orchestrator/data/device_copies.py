"""Copies to a GPU: those for which the host does not wait, and those that may not fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from orchestrator.system.memory import is_out_of_memory


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU by way of pinned memory, without a wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # torch keeps pinned memory until the copy is over, and uses it again.
    return tensor.pin_memory().to(device, non_blocking=True)


def moved_if_it_fits(move: Callable[[], Tensor]) -> Tensor | None:
    """Return what `move` returns; None where a GPU's memory does not hold it: batches have the same bits."""
    try:
        return move()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None

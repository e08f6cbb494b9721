"""Copies to a GPU for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the host to a GPU by way of pinned memory, without a wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # torch keeps pinned memory until the copy is over, and uses it again.
    return tensor.pin_memory().to(device, non_blocking=True)

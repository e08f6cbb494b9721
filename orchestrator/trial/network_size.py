"""The size of a network, counted without memory for it, and limits on what is built here."""

from __future__ import annotations

from functools import lru_cache

import psutil
import torch
from torch import Tensor, nn

import models
from pruning import own_code

MAX_PARAMETERS = 1_000_000_000  # 4 GB in float32
MAX_ACTIVATIONS = 1_000_000_000  # numbers that all layers give out for two images
FEW_PARAMETERS = 2_000_000  # below, the activations are not counted: that costs seconds, once
COPIES = 4  # of the weights in a training: themselves, their gradients and two moments
Architecture = tuple[str, tuple[int, int, int], int]  # a model in text form, input shape, number of classes
# What builders and torch raise for bad sizes.
BAD_SIZES = (TypeError, ValueError, RuntimeError, OverflowError, MemoryError)


def _shown(model: str) -> str:
    return own_code.shown(model)[:80]


def meta_module(architecture: Architecture) -> nn.Module:
    """Return the network without storage, in eval mode. One of BAD_SIZES where it cannot be built."""
    model, shape, classes = architecture
    with torch.device("meta"):
        net = models.build(model, input_shape=shape, num_classes=classes).eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{_shown(model)} has {count:,} parameters; {MAX_PARAMETERS:,} is the most")
    return net


@lru_cache(maxsize=256)
def size_conflict(architecture: Architecture) -> str | None:
    """Return why a network cannot be built and traced on this machine; None if it can."""
    try:
        net = meta_module(architecture)
    except BAD_SIZES as error:
        return " ".join(str(error).split())[:200]
    model, shape, _ = architecture
    weight_bytes = sum(parameter.nbytes for parameter in net.parameters())
    memory_bytes = psutil.virtual_memory().total
    if COPIES * weight_bytes > memory_bytes:
        return (
            f"{_shown(model)} takes {COPIES * weight_bytes / 1e9:.3g} GB of memory in training, for its "
            f"weights alone; this machine has {memory_bytes / 1e9:.3g} GB"
        )
    if weight_bytes < 4 * FEW_PARAMETERS:
        return None
    try:
        count = activations(net, torch.empty((2, *shape), device="meta"))
    except BAD_SIZES:
        return None  # what cannot run without storage is told by the run with it
    return activation_conflict(architecture, count)


def activation_conflict(architecture: Architecture, count: int) -> str | None:
    """Return why so many `activations` are too many; None if they are not."""
    if count <= MAX_ACTIVATIONS:
        return None
    return (
        f"{_shown(architecture[0])} gives out {count:,} numbers for two images of {architecture[1]}; "
        f"{MAX_ACTIVATIONS:,} is the most"
    )


@torch.no_grad()
def activations(net: nn.Module, images: Tensor) -> int:
    """Count the numbers that the layers give out for images on `meta`: nothing is computed."""
    counts: list[int] = [images.numel()]

    def count(module: nn.Module, inputs: object, output: object) -> None:
        counts.append(output.numel() if isinstance(output, Tensor) else 0)

    leaves = (module for module in net.modules() if not list(module.children()))
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)

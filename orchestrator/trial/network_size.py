"""How large a network is, counted without memory for it, and what is too large to be built here."""

from __future__ import annotations

from functools import lru_cache

import psutil
import torch
from torch import Tensor, nn

import models

MOST_PARAMETERS = 1_000_000_000  # 4 GB in float32
MOST_ACTIVATIONS = 1_000_000_000  # numbers that all layers give out for two images
FEW_PARAMETERS = 2_000_000  # below, the activations are not counted: that costs seconds, once
COPIES = 4  # of the weights in a training: themselves, their gradients and two moments
Built = tuple[str, tuple[int, int, int], int]
# What builders and torch raise for bad sizes.
BAD_SIZES = (TypeError, ValueError, RuntimeError, OverflowError, MemoryError)


def meta_module(built: Built) -> nn.Module:
    """The network without storage, in eval mode. ValueError, or one of BAD_SIZES, where it cannot be."""
    model, shape, classes = built
    with torch.device("meta"):
        net = models.build(model, input_shape=shape, num_classes=classes).eval()
    count = sum(parameter.numel() for parameter in net.parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{model[:80]} has {count:,} parameters; {MOST_PARAMETERS:,} is the most")
    return net


@lru_cache(maxsize=256)
def size_conflict(built: Built) -> str | None:
    """Why a network is too large to be built and traced on this machine; None where it is not, or is none."""
    try:
        net = meta_module(built)
    except BAD_SIZES as error:
        return " ".join(str(error).split())[:200]
    held = sum(parameter.nbytes for parameter in net.parameters())
    memory = psutil.virtual_memory().total
    if COPIES * held > memory:
        return (
            f"{built[0][:80]} takes {COPIES * held / 1e9:.3g} GB of memory in training, for its weights "
            f"alone; this machine has {memory / 1e9:.3g} GB"
        )
    if held < 4 * FEW_PARAMETERS:
        return None
    try:
        count = activations(net, torch.empty((2, *built[1]), device="meta"))
    except BAD_SIZES:
        return None  # what cannot run without storage is told by the run with it
    return too_many_activations(built, count)


def too_many_activations(built: Built, count: int) -> str | None:
    if count <= MOST_ACTIVATIONS:
        return None
    return (
        f"{built[0][:80]} gives out {count:,} numbers for two images of {built[1]}; "
        f"{MOST_ACTIVATIONS:,} is the most"
    )


@torch.no_grad()
def activations(net: nn.Module, images: Tensor) -> int:
    """Numbers that the layers give out for these images, which have no storage: nothing is computed."""
    given: list[int] = [images.numel()]

    def count(module: nn.Module, inputs: object, output: object) -> None:
        given.append(output.numel() if isinstance(output, Tensor) else 0)

    leaves = (module for module in net.modules() if not list(module.children()))
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(given)

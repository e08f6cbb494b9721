"""Tensors of a network that its state dict leaves out: buffers with `persistent=False`, and plain attributes.

A network is built without storage and then given stored tensors. What is not among these would have no
values, so that a network with such tensors is built with storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from orchestrator.system.determinism import seeded

Build = Callable[[], nn.Module]


def unsaved_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that the state dict leaves out, by name: of buffers, of attributes, and in lists."""
    saved = set(map(id, net.state_dict(keep_vars=True).values()))
    tensors = {
        f"{prefix}.{name}".lstrip("."): tensor
        for prefix, module in net.named_modules()
        for name, value in (*module._buffers.items(), *vars(module).items())
        for tensor in _tensors_in(value)
    }
    return {name: tensor for name, tensor in tensors.items() if id(tensor) not in saved}


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Tensor))


def build_to_load(build: Build, *, build_with_values: Build | None = None) -> nn.Module:
    """Return a network to load a state dict into, without storage where that has all of its tensors.

    `build_with_values`, in place of `build`, is called where it has not.
    """
    with torch.device("meta"):  # no weights are drawn only to be overwritten
        net = build()
    return (build_with_values or build)() if unsaved_tensors(net) else net


def drawn_tensor_conflict(build: Build) -> str | None:
    """Return why a network cannot be stored: a tensor that is drawn at random and in no state dict."""
    with torch.device("meta"):
        if not unsaved_tensors(build()):
            return None
    tensors = []
    for seed in (0, 1):
        with seeded(seed):
            tensors.append(unsaved_tensors(build()))
    first, second = tensors
    for name, tensor in first.items():
        if name not in second or not torch.equal(tensor, second[name]):
            return (
                f"{name} is drawn at random and not part of the state dict, so that it could not be stored; "
                "register it as a buffer with persistent=True"
            )
    return None

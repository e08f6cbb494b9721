"""Where the entries of a network with positions cut out lie in the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.cutting import Removed, cut_out


def remaining_entries(net: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Return where each entry of `cut_out(net, removed)` lies in `net`: int64, by the name of its tensor.

    A tensor of positions has the shape of the smaller tensor, and numbers the flattened larger one. Tensors
    that only the smaller network has, as the columns that a SelectedLinear reads, are not among them. `net`
    is not touched.
    """
    numbered, names = deepcopy(net).cpu().requires_grad_(False), net.state_dict().keys()
    for tensor in (*numbered.parameters(), *numbered.buffers()):
        # Shared tensors stay shared: a cut asks whether their copies are equal.
        tensor.data = torch.arange(tensor.numel()).reshape(tensor.shape)
    cut = cut_out(numbered, removed).state_dict()
    return {name: entries.clone() for name, entries in cut.items() if name in names}


def take_entries(tensors: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smaller network's tensors, of those of the larger one that are given; copies."""
    return {name: tensor.flatten()[entries[name]] for name, tensor in tensors.items()}


def put_entries(
    small: Mapping[str, Tensor], entries: Mapping[str, Tensor], *, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the larger network's tensors, of those of the smaller one that are given, in `like`'s order.

    What was cut out is zero; whole numbers, which count or index, are those of `like` there. `like` has the
    larger network's tensors.
    """
    put = {}
    for name, tensor in like.items():
        if name not in small:
            continue
        whole = tensor.cpu()
        is_number = whole.is_floating_point() or whole.is_complex()
        values = (
            torch.zeros_like(whole, memory_format=torch.contiguous_format) if is_number else whole.clone()
        )
        values.view(-1)[entries[name].flatten()] = small[name].flatten()
        put[name] = values
    return put

"""The widths of a network's layers, and how they are cut or set anew.

`widths` and `resize` rebuild the architecture of a shrunk network without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.masking import Norm


class SelectedLinear(nn.Linear):
    """A Linear that reads some of its input features: x [..., source_features] -> [..., out_features].

    `inputs`, int64 [in_features], holds the positions that are read: the columns kept of `layer`.
    """

    inputs: Tensor

    def __init__(self, layer: nn.Linear, inputs: Tensor) -> None:
        # On "meta" no weights are drawn, so that the global generator stays where it is.
        super().__init__(len(inputs), layer.out_features, bias=layer.bias is not None, device="meta")
        self.source_features = layer.in_features
        self.register_buffer("inputs", inputs.to(layer.weight.device))
        columns = layer.weight.detach().index_select(1, self.inputs)
        self.weight, self.bias = nn.Parameter(columns, layer.weight.requires_grad), layer.bias
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input.index_select(-1, self.inputs), self.weight, self.bias)


def widths(net: nn.Module) -> dict[str, list[int]]:
    """Module name -> [out, in] of a Linear or Conv2d, [features] of a batch norm; for JSON.

    A SelectedLinear has three: [out, source, selected].
    """
    return {name: _widths(module) for name, module in net.named_modules() if size_names(module)}


def resize(net: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """Edit a fresh network to the widths of a shrunk one, and return it: its state dict then fits.

    The values are those of the first rows and columns: load the shrunk network's tensors over them.
    ValueError for widths that are not this network's, or wider than it.
    """
    modules = {name: module for name, module in net.named_modules() if size_names(module)}
    for name in sorted(modules.keys() ^ widths.keys()):
        near = get_close_matches(name, modules, n=3, cutoff=0.4) or list(modules)[:3]
        raise ValueError(
            f"widths and network differ: {name!r} is in one only; the network has {', '.join(near)}"
        )
    shared = tied(net)
    for name, module in modules.items():
        given = list(widths[name])
        _check_widths(name, given, module)
        if len(given) == 3 and type(module) is nn.Linear:
            net = replace_module(net, name, SelectedLinear(module, torch.arange(given[2])))
        for dim in range(len(size_names(module))):
            size = given[-dim]  # 0: the first, 1: the last
            select_in_place(net.get_submodule(name), dim, torch.arange(size))
    tie_again(net, shared)
    return net


def _check_widths(name: str, given: list[int], module: nn.Module) -> None:
    most = _widths(module)
    if len(given) == 3 and type(module) is nn.Linear:
        most = [*most, most[1]]
    fits = len(given) == len(most) and all(
        type(a) is int and 1 <= a <= b for a, b in zip(given, most, strict=True)
    )
    if not fits or (len(most) == 3 and given[1] != most[1]):
        raise ValueError(f"widths of {name!r}: {given}; expected whole numbers from 1 to {most}")


def _widths(module: nn.Module) -> list[int]:
    sizes = [getattr(module, attribute) for attribute in size_names(module)]
    return [sizes[0], module.source_features, sizes[1]] if isinstance(module, SelectedLinear) else sizes


def size_names(module: nn.Module) -> tuple[str, ...]:
    """The attributes that hold a leaf's widths, by dimension of its weight."""
    if isinstance(module, nn.Linear):
        return ("out_features", "in_features")
    if isinstance(module, nn.Conv2d):
        return ("out_channels", "in_channels")
    return ("num_features",) if isinstance(module, Norm) else ()


@torch.no_grad()
def select_in_place(module: nn.Module, dim: int, keep: Tensor) -> None:
    """Keep these positions of every tensor of a leaf that has the dimension, in place."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        # `inputs` of a SelectedLinear goes with the columns; num_batches_tracked has no dimension.
        along = dim - 1 if name == "inputs" else dim
        if 0 <= along < tensor.dim() and len(keep) != tensor.shape[along]:
            part = tensor.index_select(along, keep.to(tensor.device))
            trained = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(part, tensor.requires_grad) if trained else part)
    setattr(module, size_names(module)[dim], len(keep))


def replace_module(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with `module` in the place of that name; the module itself where the name is empty."""
    if not name:
        return module
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
    return net


Ties = list[tuple[tuple[str, str], ...]]  # (module name, parameter name) of every place of one parameter


def tied(net: nn.Module) -> Ties:
    """The parameters that stand in more than one place of the network."""
    places: dict[int, list[tuple[str, str]]] = {}
    for name, module in net.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((name, leaf))
    return [tuple(names) for names in places.values() if len(names) > 1]


def tie_again(net: nn.Module, ties: Ties) -> None:
    """Make the places of each tie one parameter again. ValueError where they have become different."""
    for (first, leaf), *others in ties:
        parameter = net.get_submodule(first).get_parameter(leaf)
        for name, other in others:
            mate = net.get_submodule(name).get_parameter(other)
            if mate.shape != parameter.shape or not torch.equal(mate, parameter):
                raise ValueError(
                    f"{first} and {name} share one parameter and would be cut differently; protect them"
                )
            setattr(net.get_submodule(name), other, parameter)

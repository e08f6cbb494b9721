"""The widths of a network's layers: cut channels out, or set the widths anew.

`layer_widths` and `resize` rebuild the architecture of a shrunk network without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.masking import Norm, prunable_layers

Removed = Mapping[tuple[str, int], Tensor]  # (module name, dimension of its weight) -> positions to cut out


class SelectedLinear(nn.Linear):
    """A Linear that reads some of its input features: x [..., source_features] -> [..., out_features].

    `inputs`, int64 [in_features], are the positions that are read: the columns of `layer` that remain.
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


def layer_widths(net: nn.Module) -> dict[str, list[int]]:
    """Return module name -> [out, in] of a Linear or Conv2d, [features] of a batch norm; for JSON.

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
    ties = _find_ties(net)
    for name, module in modules.items():
        sizes = list(widths[name])
        _check_widths(name, sizes, module)
        if len(sizes) == 3 and type(module) is nn.Linear:  # the shrunk network has a SelectedLinear here
            net = replace_module(net, name, SelectedLinear(module, torch.arange(sizes[2])))
        for dim in range(len(size_names(module))):
            size = sizes[-dim]  # 0: the first, 1: the last
            _select_in_place(net.get_submodule(name), dim, torch.arange(size))
    _restore_ties(net, ties)
    return net


def _check_widths(name: str, sizes: list[int], module: nn.Module) -> None:
    most = _widths(module)
    if len(sizes) == 3 and type(module) is nn.Linear:
        most = [*most, most[1]]
    fits = len(sizes) == len(most) and all(
        type(a) is int and 1 <= a <= b for a, b in zip(sizes, most, strict=True)
    )
    if not fits or (len(most) == 3 and sizes[1] != most[1]):
        raise ValueError(f"widths of {name!r}: {sizes}; expected whole numbers from 1 to {most}")


def _widths(module: nn.Module) -> list[int]:
    sizes = [getattr(module, attribute) for attribute in size_names(module)]
    return [sizes[0], module.source_features, sizes[1]] if isinstance(module, SelectedLinear) else sizes


def size_names(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes that hold a leaf's widths, by dimension of its weight; none for other modules."""
    if isinstance(module, nn.Linear):
        return ("out_features", "in_features")
    if isinstance(module, nn.Conv2d):
        return ("out_channels", "in_channels")
    return ("num_features",) if isinstance(module, Norm) else ()


@torch.no_grad()
def cut_out(net: nn.Module, removed: Removed) -> nn.Module:
    """Remove these positions from `net`, in place, and return it; shared parameters stay shared."""
    ties, is_single = _find_ties(net), len(prunable_layers(net)) == 1
    for (name, dim), positions in removed.items():
        module = net.get_submodule(name)
        remaining = complement(positions, getattr(module, size_names(module)[dim]))
        if type(module) is nn.Linear and is_single:  # input features, not channels
            net = replace_module(net, name, SelectedLinear(module, remaining))
        else:
            _select_in_place(module, dim, remaining)
    _restore_ties(net, ties)  # a cut makes new parameters
    return net


def complement(positions: Tensor, size: int) -> Tensor:
    """Return int64: the positions of range(size) that are not in `positions`, ascending."""
    outside = torch.ones(size, dtype=torch.bool, device=positions.device).index_fill(0, positions, False)
    return outside.nonzero().flatten()


@torch.no_grad()
def _select_in_place(module: nn.Module, dim: int, positions: Tensor) -> None:
    """Reduce every tensor of a leaf that has the dimension to these positions of it, in place."""
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        # `inputs` of a SelectedLinear goes with the columns; num_batches_tracked has no dimension.
        along = dim - 1 if name == "inputs" else dim
        if 0 <= along < tensor.dim() and len(positions) != tensor.shape[along]:
            selected = tensor.index_select(along, positions.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(selected, tensor.requires_grad) if is_parameter else selected)
    setattr(module, size_names(module)[dim], len(positions))


def replace_module(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Return the network with `module` under that name; for the network's own name, "", the module."""
    if not name:
        return module
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)
    return net


Ties = list[tuple[tuple[str, str], ...]]  # for each tied parameter, its (module name, parameter name) pairs


def _find_ties(net: nn.Module) -> Ties:
    """Return the parameters that several modules share, or one module holds under several names."""
    names: dict[int, list[tuple[str, str]]] = {}
    for name, module in net.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append((name, leaf))
    return [tuple(pairs) for pairs in names.values() if len(pairs) > 1]


def _restore_ties(net: nn.Module, ties: Ties) -> None:
    """Make each tie one parameter again. ValueError where its copies have become different."""
    for (first, leaf), *copies in ties:
        parameter = net.get_submodule(first).get_parameter(leaf)
        for name, copy_leaf in copies:
            copy = net.get_submodule(name).get_parameter(copy_leaf)
            if copy.shape != parameter.shape or not torch.equal(copy, parameter):
                raise ValueError(
                    f"{first} and {name} share one parameter and would be cut differently; protect them"
                )
            setattr(net.get_submodule(name), copy_leaf, parameter)

"""The widths of a network's layers: cut channels out, or set the widths anew.

`layer_widths` and `resize` rebuild the architecture of a shrunk network without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.cutting.attention import HeadAttention
from pruning.cutting.narrow_attention import find_narrow
from pruning.masking import Conv, Norm, prunable_layers, unit_dim

# (module name, side) -> positions to cut out; the side may be "NAME DIM" of another parameter, or ":NAME" of
# an attribute that counts
Removed = Mapping[tuple[str, str], Tensor]
# The last in the shape of timm's tables of relative positions.
HEADS = ("num_heads", "n_heads", "heads", "nhead", "num_attention_heads", "bias_shape")
KEY_HEADS = ("num_kv_heads", "n_kv_heads", "num_key_value_heads")  # each serves several query heads
HEAD_DIMS = ("head_dim", "dim_head", "key_dim", "attention_head_size")
# Attributes that hold heads times width, and those that count these.
HEAD_WIDTHS = {
    "attn_dim": HEADS + HEAD_DIMS,
    "inner_dim": HEADS + HEAD_DIMS,
    "all_head_size": HEADS + HEAD_DIMS,
    "kv_dim": KEY_HEADS + HEAD_DIMS,
}


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
    """Return the widths of a network, for JSON, by module name and by the name of other tensors.

    [out, in] of a Linear or convolution, [features] of a norm; a SelectedLinear has three: [out, source,
    selected]. Of parameters and buffers of other modules the shape; `NAME:num_heads` and `NAME:head_dim` are
    an attention's.
    """
    widths = {name: _widths(module) for name, module in net.named_modules() if size_names(module)}
    for name, module in net.named_modules():
        if size_names(module):
            continue
        for leaf, tensor in _own_tensors(module):
            if tensor.dim():
                widths[f"{name}.{leaf}".removeprefix(".")] = list(tensor.shape)
        for attribute in counting_attributes(module):
            widths[f"{name}:{attribute}"] = [count_of(module, attribute)]
    return widths


def resize(net: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """Edit a fresh network to the widths of a shrunk one, and return it: its state dict then fits.

    The values are those of the first rows and columns: load the shrunk network's tensors over them.
    ValueError for widths that are not this network's, or wider than it.
    """
    most, modules = layer_widths(net), dict(net.named_modules())
    temporary = {
        f"{name}.{leaf}".removeprefix(".")
        for name, m in modules.items()
        for leaf in m._non_persistent_buffers_set
    }
    # Widths of before name only what could be cut then.
    required = {name for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Conv2d, Norm))}
    for name in sorted((widths.keys() - most.keys() - temporary) | (required - widths.keys())):
        near = get_close_matches(name, most, n=3, cutoff=0.4) or list(most)[:3]
        raise ValueError(
            f"widths and network differ: {name!r} is in one only; the network has {', '.join(near)}"
        )
    removed: dict[tuple[str, str], Tensor] = {}
    for name, largest in most.items():
        sizes = list(widths.get(name, largest))
        module = modules.get(name)
        if name in temporary and _is_wider(sizes, largest):
            continue  # made for the images of a pass, as it will be again
        _check_widths(name, sizes, largest, module)
        owner, sides = _owner_and_sides(name, module, dims=len(sizes))
        if len(sizes) == 3 and type(module) is nn.Linear:  # the shrunk network has a SelectedLinear here
            net = replace_module(net, name, SelectedLinear(module, torch.arange(sizes[2])))
            removed[name, "out"] = torch.arange(sizes[0], largest[0])
            continue
        for side, size, limit in zip(sides, sizes, largest, strict=True):
            removed[owner, side] = torch.arange(size, limit)
    return cut_out(net, {key: positions for key, positions in removed.items() if len(positions)})


def _owner_and_sides(name: str, module: nn.Module | None, *, dims: int) -> tuple[str, Sequence[str]]:
    """Return the module that an entry of the widths belongs to, and its sides in the entry's order."""
    if module is not None:
        return name, sides_of(module)
    if ":" in name:
        owner, _, attribute = name.partition(":")
        return owner, (f":{attribute}",)
    owner, _, leaf = name.rpartition(".")
    return owner, [f"{leaf} {dim}" for dim in range(dims)]


def _is_wider(sizes: Sequence[int], largest: Sequence[int]) -> bool:
    """Return whether a tensor has more dimensions, or more entries along one, than a fresh network's."""
    pairs = zip(sizes, largest, strict=False)
    return len(sizes) != len(largest) or any(type(a) is int and a > b for a, b in pairs)


def _check_widths(name: str, sizes: list[int], largest: list[int], module: nn.Module | None) -> None:
    if len(sizes) == 3 and type(module) is nn.Linear:
        largest = [*largest, largest[1]]
    fits = len(sizes) == len(largest) and all(
        type(a) is int and 1 <= a <= b for a, b in zip(sizes, largest, strict=True)
    )
    if fits and isinstance(module, Conv) and module.groups > 1:
        fits = sizes[0] * module.in_channels == sizes[1] * module.out_channels
    if not fits or (len(largest) == 3 and isinstance(module, nn.Linear) and sizes[1] != largest[1]):
        raise ValueError(f"widths of {name!r}: {sizes}; expected whole numbers from 1 to {largest}")


def _widths(module: nn.Module) -> list[int]:
    sizes = [getattr(module, attribute) for attribute in size_names(module)]
    return [sizes[0], module.source_features, sizes[1]] if isinstance(module, SelectedLinear) else sizes


def size_names(module: nn.Module | None) -> tuple[str, ...]:
    """Return the attributes that hold a leaf's widths, units first; none for other modules."""
    if isinstance(module, nn.Linear):
        return ("out_features", "in_features")
    if isinstance(module, Conv):
        return ("out_channels", "in_channels")
    if isinstance(module, nn.GroupNorm):
        return ("num_channels",)
    return ("num_features",) if isinstance(module, nn.modules.batchnorm._NormBase) else ()


def sides_of(module: nn.Module) -> tuple[str, ...]:
    """Return the sides of a module with widths, in the order of `size_names`."""
    return ("out", "in") if isinstance(module, (nn.Linear, Conv)) else ("norm",)


def counting_attributes(
    module: nn.Module, names: Sequence[str] = HEADS + KEY_HEADS + HEAD_DIMS
) -> tuple[str, ...]:
    """Return the attributes in which an attention keeps how many heads it has, and how wide they are."""
    kinds = {name: tuple if name == "bias_shape" else int for name in names}
    return tuple(name for name, kind in kinds.items() if type(vars(module).get(name)) is kind)


def count_of(module: nn.Module, attribute: str) -> int:
    """Return what one of the `counting_attributes` counts."""
    value = getattr(module, attribute)
    return int(value[-1] if isinstance(value, tuple) else value)


@torch.no_grad()
def cut_out(net: nn.Module, removed: Removed) -> nn.Module:
    """Remove these positions from `net`, in place, and return it; shared parameters stay shared."""
    ties, is_single = _find_ties(net), len(prunable_layers(net)) == 1
    for name, _ in removed:
        for owner in {name, name.rpartition(".")[0]}:
            net = _make_narrow(net, owner)
    for (name, side), positions in removed.items():
        module = net.get_submodule(name)
        if side.startswith(":"):
            _reduce_count(module, side[1:], len(positions))
        elif " " in side:
            leaf, _, dim = side.partition(" ")
            size = getattr(module, leaf).shape[int(dim)]
            _select_tensor(module, leaf, int(dim), complement(positions, size))
        elif type(module) is nn.Linear and is_single and side == "in":  # input features, not channels
            remaining = complement(positions, module.in_features)
            net = replace_module(net, name, SelectedLinear(module, remaining))
        else:
            _cut_side(module, side, positions)
    _restore_ties(net, ties)  # a cut makes new parameters
    return net


def complement(positions: Tensor, size: int) -> Tensor:
    """Return int64: the positions of range(size) that are not in `positions`, ascending."""
    outside = torch.ones(size, dtype=torch.bool, device=positions.device).index_fill(0, positions, False)
    return outside.nonzero().flatten()


def axis_of(module: nn.Module, tensor_name: str, dims: int, side: str) -> int | None:
    """Return the dimension in which a module's own tensor has the positions of a side; None for none.

    A grouped convolution is cut by whole groups: its weight has them in dimension 0 alone.
    """
    if isinstance(module, Conv) and tensor_name == "weight":
        if module.groups == 1:
            return unit_dim(module) if side == "out" else 1 - unit_dim(module)
        return 0 if side == ("in" if module.transposed else "out") else None
    if side == "in":
        # `inputs` of a SelectedLinear goes with the columns.
        return 0 if tensor_name == "inputs" else 1 if dims > 1 else None
    return 0 if dims and tensor_name != "inputs" else None  # num_batches_tracked has no dimension


@torch.no_grad()
def _cut_side(module: nn.Module, side: str, positions: Tensor) -> None:
    """Remove positions from one side of a leaf: from its tensors, and from the widths that it keeps."""
    attribute = dict(zip(sides_of(module), size_names(module), strict=True))[side]
    size = getattr(module, attribute)
    remaining = complement(positions, size)
    for name, tensor in _own_tensors(module):
        axis = axis_of(module, name, tensor.dim(), side)
        if axis is not None and tensor.shape[axis] == size:
            _select_tensor(module, name, axis, remaining)
    if isinstance(module, Conv) and module.groups > 1 and side == "out":
        module.groups = len(remaining) * module.groups // size
    if isinstance(module, nn.GroupNorm):
        module.num_groups = len(remaining) * module.num_groups // size
    setattr(module, attribute, len(remaining))


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _select_tensor(module: nn.Module, name: str, dim: int, remaining: Tensor) -> None:
    tensor = getattr(module, name)
    selected = tensor.detach().index_select(dim, remaining.to(tensor.device))
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(module, name, nn.Parameter(selected, tensor.requires_grad) if is_parameter else selected)


def _make_narrow(net: nn.Module, name: str) -> nn.Module:
    """Return the network with an attention that can be narrower inside than outside under this name."""
    module = net.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        return replace_module(net, name, HeadAttention(module))
    kind = find_narrow(module)
    return net if kind is None else replace_module(net, name, kind(module))


def _reduce_count(module: nn.Module, attribute: str, count: int) -> None:
    """Lower an attribute that counts heads, or their width, and those that hold its products."""
    before, value = count_of(module, attribute), getattr(module, attribute)
    setattr(module, attribute, (*value[:-1], before - count) if isinstance(value, tuple) else before - count)
    names = next(names for names in (HEADS, KEY_HEADS, HEAD_DIMS) if attribute in names)
    if attribute != counting_attributes(module, names)[0]:
        return  # a second name for the same number
    for width, factors in HEAD_WIDTHS.items():
        if attribute in factors and type(vars(module).get(width)) is int:
            setattr(module, width, getattr(module, width) // before * (before - count))


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
            # On "meta" there are no values to compare.
            if copy.shape != parameter.shape or not (copy.is_meta or torch.equal(copy, parameter)):
                raise ValueError(
                    f"{first} and {name} share one parameter and would be cut differently; protect them"
                )
            setattr(net.get_submodule(name), copy_leaf, parameter)

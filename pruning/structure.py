"""Channels: which of them belong together, and the smaller network without the dead ones.

`trace` runs torch-pruning's dependency graph once and keeps plain index tensors (Fang et al., 2023,
"DepGraph"); everything after it is index arithmetic on weight, bias and running statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph
from torch_pruning.ops import OPTYPE

from pruning.architecture import SelectedLinear, replace_module, select_in_place, size_names
from pruning.masking import (
    Group,
    Masks,
    Member,
    Norm,
    Side,
    alive_units,
    apply_masks,
    output_layer,
    prunable_layers,
)

PASSED_THROUGH = (OPTYPE.CONCAT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE)
Gone = dict[tuple[str, int], Tensor]


def trace(net: nn.Module, example_input: Tensor) -> tuple[Group, ...]:
    """The channel groups of `net`, in order of registration of their root layers.

    A group bears its root layer's name. Rows of the output layer are classes and in no group; in a
    network without a hidden layer the group is the input features. ValueError where a channel meets
    something that cannot be cut. `net` is not touched.
    """
    layers, last = prunable_layers(net), output_layer(net)
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise ValueError(
                f"{name}: its weight is computed; make torch.nn.utils.prune's masks permanent first"
            )
    if len(layers) == 1:
        return (_input_features(last, layers[last]),)
    # Frozen parameters would make groups vanish, training mode would change batch-norm statistics.
    twin = deepcopy(net).requires_grad_(True).eval()
    with torch.enable_grad():
        # Without forward_fn, torch-pruning first tries twin(*x), and hides the error of either try.
        graph = DependencyGraph().build_dependency(
            twin, example_input, forward_fn=lambda module, x: module(x), verbose=False
        )
    traced = graph.get_all_groups(ignored_layers=[twin.get_submodule(last)])
    groups = {group.name: group for group in (_group(twin, graph, items.items) for items in traced)}
    _check_groups(groups.values(), hidden=[name for name in layers if name != last])
    return tuple(groups[name] for name in layers if name in groups)


def _input_features(name: str, layer: nn.Module) -> Group:
    if type(layer) not in (nn.Linear, SelectedLinear):
        raise ValueError(f"{name!r}: a single {type(layer).__name__} has no channels to remove")
    columns = torch.arange(layer.get_parameter("weight").shape[1])
    return Group(name, len(columns), (Member(name, "in", columns, columns),))


def _group(twin: nn.Module, graph: Any, items: Sequence[Any]) -> Group:  # torch-pruning has no types
    names = {id(part): name for name, part in [*twin.named_parameters(), *twin.named_modules()]}
    root = names[id(items[0].dep.target.module)]
    members = []
    for item in items:
        target, kind = item.dep.target.module, item.dep.target.type
        if kind in PASSED_THROUGH:
            continue
        if id(target) not in names:
            raise ValueError(f"{root}: its channels meet {kind.name.lower()}, and cannot be removed")
        side = _side(names[id(target)], target, outgoing=graph.is_out_channel_pruning_fn(item.dep.handler))
        members.append(Member(names[id(target)], side, torch.tensor(item.idxs), torch.tensor(item.root_idxs)))
    return Group(root, len(items[0].idxs), tuple(members))


def _side(name: str, target: object, *, outgoing: bool) -> Side:
    if isinstance(target, Norm):
        return "norm"
    if isinstance(target, nn.Linear) or (isinstance(target, nn.Conv2d) and target.groups == 1):
        return "out" if outgoing else "in"
    grouped = "grouped " if isinstance(target, nn.Conv2d) else ""
    raise ValueError(
        f"{name}: channels of a {grouped}{type(target).__name__} cannot be removed; "
        "Linear, ungrouped Conv2d and BatchNorm can"
    )


def _check_groups(groups: Iterable[Group], *, hidden: Iterable[str]) -> None:
    outputs: Counter[str] = Counter()
    for group in groups:
        sides = {member.side for member in group.members}
        if "in" not in sides:
            raise ValueError(f"{group.name}: no layer reads its channels; register the output layer last")
        outputs.update(member.module for member in group.members if member.side == "out")
    for name in hidden:
        if outputs[name] != 1:
            raise ValueError(
                f"{name}: its channels are in {outputs[name]} groups instead of 1; "
                "it is unused, tied to the output layer or joined to parts of others"
            )


def kept_channels(groups: Iterable[Group], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Group name -> int64 positions of the channels that stay, ascending; all of a group that is wholly dead.

    A parameter without a mask is taken for one that the network does not have.
    """
    kept = {}
    for group in groups:
        alive = alive_units(group, masks)
        kept[group.name] = alive.nonzero().flatten() if alive.any() else torch.arange(group.size)
    return kept


def shrink(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Tensor,
    *,
    groups: Sequence[Group] | None = None,
) -> nn.Module:
    """A new network without the dead channels; it computes what the masked `net` computes.

    A channel is dead when its rows, biases and norm entries are. A group that is dead as a whole stays,
    masked. `groups` is an earlier `trace` of `net`. ValueError where a living column still reads
    something else than zero from a dead channel (a sigmoid, say).
    """
    groups = trace(net, example_input) if groups is None else groups
    small = deepcopy(net)
    apply_masks(small, masks)
    gone = _gone_positions(groups, _all_masks(small, masks))
    if gone:
        _check_silent(small, example_input, gone)
    for (name, dim), positions in gone.items():
        module = small.get_submodule(name)
        keep = _others(positions, getattr(module, size_names(module)[dim]))
        if type(module) is nn.Linear and groups[0].members[0].side == "in":  # input features, not channels
            small = replace_module(small, name, SelectedLinear(module, keep))
        else:
            select_in_place(module, dim, keep)
    return small


def shrink_masks(masks: Mapping[str, Tensor], groups: Sequence[Group], *, net: nn.Module) -> Masks:
    """The masks of what `shrink(net, masks, ...)` leaves, under the same parameter names."""
    small = dict(masks)
    for (name, dim), positions in _gone_positions(groups, _all_masks(net, masks)).items():
        for full in [key for key in small if key.rpartition(".")[0] == name]:
            mask = small[full]
            if dim < mask.dim():
                small[full] = mask.index_select(dim, _others(positions, mask.shape[dim]).to(mask.device))
    return small


def _all_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Parameters without a mask are alive: a bias that nobody masked keeps its channel."""
    return {
        name: masks[name].cpu() if name in masks else torch.ones(parameter.shape, dtype=torch.bool)
        for name, parameter in net.named_parameters()
    }


def _gone_positions(groups: Sequence[Group], masks: Masks) -> Gone:
    """(module name, dimension) -> the positions to be cut there."""
    parts: dict[tuple[str, int], list[Tensor]] = {}
    kept = kept_channels(groups, masks)
    for group in groups:
        dead = torch.ones(group.size, dtype=torch.bool).index_fill(0, kept[group.name], False)
        for member in group.members if dead.any() else ():
            key = (member.module, 1 if member.side == "in" else 0)
            parts.setdefault(key, []).append(member.index[dead[member.root]])
    return {key: torch.cat(positions) for key, positions in parts.items() if sum(map(len, positions))}


def _others(positions: Tensor, size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool).index_fill(0, positions, False).nonzero().flatten()


@torch.no_grad()
def _check_silent(masked: nn.Module, example_input: Tensor, gone: Gone) -> None:
    twin = deepcopy(masked).eval()
    for (name, dim), positions in gone.items():
        if dim == 1:
            twin.get_submodule(name).register_forward_pre_hook(partial(_refuse_noise, name, positions))
    twin(example_input)


def _refuse_noise(name: str, dead: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    weight = layer.get_parameter("weight")
    dead = dead.to(weight.device)
    read = dead[weight.index_select(1, dead).transpose(0, 1).flatten(1).any(1)]
    if inputs[0].index_select(-1 if isinstance(layer, nn.Linear) else -3, read).any():
        raise ValueError(f"{name}: it reads non-zero values from dead channels; mask its columns too")


def propagate(net: nn.Module, masks: Mapping[str, Tensor], groups: Sequence[Group]) -> Masks:
    """The masks with the columns that read dead channels masked as well, until no further channel dies."""
    result = _all_masks(net, masks)
    while True:
        before = dict(result)
        for group in groups:
            dead = ~alive_units(group, result)
            for member in group.members if dead.any() else ():
                name = f"{member.module}.weight"
                if member.side == "in" and result[name].dim() > 1:
                    result[name] = result[name].index_fill(1, member.index[dead[member.root]], False)
        if all(torch.equal(before[name], mask) for name, mask in result.items()):
            return {name: mask for name, mask in result.items() if name in masks or not mask.all()}

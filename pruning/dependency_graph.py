"""Dependency groups by torch-pruning: which rows, columns and norm entries go together, as index tensors.

Fang et al., 2023, "DepGraph". Only the tracer is used. It takes operations that it does not know for
element-wise ones, so nothing here is believed before `channels.trace` has compared networks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph
from torch_pruning.ops import OPTYPE

from pruning.checks import FORWARD_ERRORS, one_line
from pruning.eval_mode import first_float, model_copy, random_images
from pruning.masking import Group, Member, Norm, Side
from pruning.resize import SelectedLinear, size_names

PASSED_THROUGH = (OPTYPE.CONCAT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE)


def input_features(name: str, layer: nn.Module) -> Group:
    """Return the group of a network of one layer: its input features. ValueError for a convolution."""
    if type(layer) not in (nn.Linear, SelectedLinear):
        raise ValueError(f"{name!r}: a single {type(layer).__name__} has no channels to remove")
    columns = torch.arange(layer.get_parameter("weight").shape[1])
    return Group(name, len(columns), (Member(name, "in", columns, columns),))


def dependency_groups(
    net: nn.Module, example_input: Tensor, *, outputs: Collection[str], protected: Collection[str]
) -> tuple[dict[str, Group], frozenset[str]]:
    """Return root layer -> its group, and the layers of the groups that a protected layer leaves out.

    Rows of the output layers are in no group. ValueError where a channel meets something that cannot be cut.
    """
    copy = model_copy(net)
    names = {id(item): name for name, item in [*copy.named_parameters(), *copy.named_modules()]}
    groups: dict[str, Group] = {}
    left_out: set[str] = set()
    for graph, items in _traced_groups(copy, example_input, outputs):
        rows = [names.get(id(item.dep.target.module), "") for item in items if _makes_units(graph, item)]
        if protected and not set(rows).isdisjoint(protected):
            left_out.update(rows)
            continue
        root = names.get(id(items[0].dep.target.module), rows[0] if rows else "the network")
        groups[root] = Group(root, len(items[0].idxs), tuple(_members(root, names, graph, items)))
    return groups, frozenset(left_out)


def _traced_groups(copy: nn.Module, example_input: Tensor, outputs: Collection[str]) -> list[tuple[Any, Any]]:
    """Return (graph, items) of every group; torch-pruning has no types."""
    images = random_images(example_input, first_float(copy))  # of the example the shape counts alone
    try:
        with torch.enable_grad():
            # Without forward_fn, torch-pruning first tries copy(*x), and hides the error of either try.
            graph = DependencyGraph().build_dependency(
                copy, images, forward_fn=lambda module, x: module(x), verbose=False
            )
        ignored = [copy.get_submodule(name) for name in outputs]
        return [(graph, group.items) for group in graph.get_all_groups(ignored_layers=ignored)]
    except FORWARD_ERRORS as error:  # also what the tracer stumbles over
        raise ValueError(
            f"{type(copy).__name__}: its channels cannot be traced ({one_line(error)}); "
            "choose granularity weight or unit"
        ) from error


def _makes_units(graph: Any, item: Any) -> bool:
    is_layer = isinstance(item.dep.target.module, (nn.Linear, nn.Conv2d))
    return is_layer and bool(graph.is_out_channel_pruning_fn(item.dep.handler))


def _members(root: str, names: dict[int, str], graph: Any, items: Sequence[Any]) -> list[Member]:
    members = []
    for item in items:
        target, kind = item.dep.target.module, item.dep.target.type
        if kind in PASSED_THROUGH or _is_alike_for_all(target):
            continue
        if id(target) not in names:
            raise ValueError(
                f"{root}: its channels meet {kind.name.lower()}, and cannot be removed; protect it"
            )
        side = _side(names[id(target)], target, is_output=graph.is_out_channel_pruning_fn(item.dep.handler))
        member = Member(names[id(target)], side, torch.tensor(item.idxs), torch.tensor(item.root_idxs))
        _check_range(root, member, target, units=len(items[0].idxs))
        members.append(member)
    return members


def _check_range(root: str, member: Member, target: nn.Module, *, units: int) -> None:
    """Raise ValueError for positions that the module does not have: the tracer lost its way before it."""
    size = getattr(target, size_names(target)[1 if member.side == "in" else 0])
    for positions, limit in ((member.index, size), (member.root, units)):
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < limit:
            raise ValueError(
                f"{root}: where {member.module} reads its channels cannot be traced (they are moved or mixed "
                "on the way); protect it"
            )


def _is_alike_for_all(target: object) -> bool:
    """Return whether a module has nothing per channel: a PReLU of one slope, a norm without scales."""
    if not isinstance(target, (nn.PReLU, nn.modules.instancenorm._InstanceNorm)):
        return False
    return not any(tensor.numel() > 1 for tensor in [*target.parameters(), *target.buffers()])


def _side(name: str, target: object, *, is_output: bool) -> Side:
    if isinstance(target, Norm):
        return "norm"
    if isinstance(target, nn.Linear) or (isinstance(target, nn.Conv2d) and target.groups == 1):
        return "out" if is_output else "in"
    grouped = "grouped " if isinstance(target, nn.Conv2d) else ""
    raise ValueError(
        f"{name}: channels of a {grouped}{type(target).__name__} cannot be removed; "
        "Linear, ungrouped Conv2d and BatchNorm can; protect the layers before it"
    )


def check_groups(groups: Iterable[Group], *, hidden: Iterable[str], outputs: Collection[str]) -> None:
    """Raise ValueError unless every hidden layer is in one group, and every group is read by a layer."""
    group_counts: Counter[str] = Counter()
    for group in groups:
        if "in" not in {member.side for member in group.members}:
            raise ValueError(f"{group.name}: no layer is seen that reads its channels; protect it")
        rows = {member.module for member in group.members if member.side == "out"}
        if classes := rows & set(outputs):
            raise ValueError(
                f"{group.name}: its channels go with rows of {min(classes)}, which are classes; protect it"
            )
        group_counts.update(rows)
    for name in hidden:
        if group_counts[name] != 1:
            raise ValueError(
                f"{name}: its channels are in {group_counts[name]} groups instead of 1; it is unused, tied "
                "to the output layer or joined to parts of others; protect it"
            )

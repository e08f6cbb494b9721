"""Channels: which of them belong together, and the smaller network without the pruned ones.

What `probe` and `channel_groups` say is never believed: the network with channels cut out is compared with
the masked one, when a network is traced and again when it is cut (see `equivalence`). After the trace all
is index arithmetic on weights, biases and running statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.attention import SplitAttention, is_splittable
from pruning.channel_groups import (
    CLASSES,
    PROTECTED,
    add_slices,
    join_projections,
    make_groups,
    removable_columns,
    with_heads,
)
from pruning.checks import (
    FORWARD_ERRORS,
    check_example,
    check_groups_fit,
    check_network,
    check_stored_weights,
)
from pruning.dataflow import find_data_flow, find_protected_layers
from pruning.equivalence import check_equal, find_zero_columns
from pruning.eval_mode import first_float, float64_copy, random_images
from pruning.masking import (
    Group,
    Masks,
    Member,
    alive_units,
    apply_masks,
    check_masks,
    full_masks,
    mask_units,
    prunable_layers,
)
from pruning.probe import Probe, find_reads, find_slices, open_norms
from pruning.resize import Removed, SelectedLinear, axis_of, complement, cut_out, replace_module

UNCALLED = "it is not called as a layer"


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network, those of its attention heads, and layer -> why it is left whole."""

    groups: tuple[Group, ...]
    heads: tuple[Group, ...]
    whole: Mapping[str, str]

    @property
    def left_whole(self) -> tuple[str, ...]:
        """The hidden layers that are left whole, as `name (reason)`."""
        return tuple(
            f"{name} (left whole: {reason.partition('. ')[0]})"
            for name, reason in self.whole.items()
            if reason not in (CLASSES, PROTECTED)
        )


def trace(net: nn.Module, example_input: Tensor, *, protect: Collection[str] = ()) -> tuple[Group, ...]:
    """Return the channel groups of `net`, in order of registration of their root layers.

    A group bears its root layer's name. Rows of the layers that make the logits are classes and in no group;
    in a network without a hidden layer the group is the input features. Groups with a layer of `protect` are
    left out, and so are those that cannot be removed exactly: see `find_channels`. ValueError for a network
    of which nothing can be removed. `net` is not touched.
    """
    return find_channels(net, example_input, protect=protect).groups


def find_channels(net: nn.Module, example_input: Tensor, *, protect: Collection[str] = ()) -> Channels:
    """Return what `trace` does, with the layers that are left whole.

    The network is asked which columns read which units (see `probe`). Groups of which half of the channels,
    cut out, leave another network than half of them masked are left whole. ValueError, with the reasons,
    where that leaves nothing.
    """
    check_network(net)
    example_input = check_example(example_input)
    flow = find_data_flow(net, example_input)
    layers, protected = prunable_layers(net), find_protected_layers(net, protect, flow=flow)
    check_stored_weights(net, layers.keys() - protected)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        features = () if protected else (input_features(name, layer),)
        _Law(net, example_input).check(features)
        return Channels(features, (), {})
    law = _Law(net, example_input)
    split = deepcopy(law.perturbed)
    attentions = split_attentions(split)
    open_norms(split)
    probe = Probe(split, law.small_example, _norms(split))
    reads = find_reads(probe)
    made = make_groups(split, reads, outputs=flow.outputs, protected=protected)
    slices = find_slices(probe, removable_columns(made.groups.values(), reads))
    candidates = [join_projections(group, attentions) for group in add_slices(made.groups.values(), slices)]
    heads = {group.name: with_heads(net, group) for group in candidates if not _is_single(group)}
    candidates = [heads.get(group.name) or group for group in candidates]
    errors = _computed_weights(net, candidates)
    exact, inexact = law.keep_exact(tuple(group for group in candidates if group.name not in errors))
    errors |= inexact
    called = {*reads.order, *(f"{name}.out_proj" for name in attentions)}
    whole = {name: UNCALLED for name in layers if name not in called} | dict(made.whole)
    for group in candidates:
        if group.name in errors:
            whole |= {m.module: errors[group.name] for m in group.members if m.side in ("out", "entry")}
    reasons = [(name, reason) for name, reason in whole.items() if reason not in (CLASSES, PROTECTED)]
    if not exact and reasons:
        (name, reason), *_ = reasons
        reason = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
        raise ValueError(f"{reason}; no channel of {type(net).__name__} can be removed")
    return Channels(
        tuple(group for group in exact if not heads.get(group.name)),
        tuple(group for group in exact if heads.get(group.name)),
        whole,
    )


def split_attentions(net: nn.Module) -> dict[str, nn.Module]:
    """Give torch's attentions a layer for each projection, in place; return the new ones by name."""
    names = [name for name, module in net.named_modules() if is_splittable(module)]
    for name in names:
        replace_module(net, name, SplitAttention(net.get_submodule(name)))  # type: ignore[arg-type]
    return {name: net.get_submodule(name) for name in names}


def _is_single(group: Group) -> bool:
    """Return whether a unit of the group has one row at most in each layer."""
    rows = [member.root for member in group.members if member.side in ("out", "entry")]
    return all(len(root.unique()) == len(root) for root in rows)


def _computed_weights(net: nn.Module, groups: Iterable[Group]) -> dict[str, str]:
    """Return group -> the error of a layer that reads it and computes its weight; protected layers, too."""
    errors = {}
    for group in groups:
        try:
            check_stored_weights(net, {member.module for member in group.members})
        except ValueError as error:
            errors[group.name] = str(error)
    return errors


def _norms(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def input_features(name: str, layer: nn.Module) -> Group:
    """Return the group of a network of one layer: its input features. ValueError for a convolution."""
    if type(layer) not in (nn.Linear, SelectedLinear):
        raise ValueError(f"{name!r}: a single {type(layer).__name__} has no channels to remove")
    columns = torch.arange(layer.get_parameter("weight").shape[1])
    return Group(name, len(columns), (Member(name, "in", columns, columns),))


class _Law:
    """The law of cutting, on half of the channels of some groups: cut out and masked compute the same."""

    def __init__(self, net: nn.Module, example_input: Tensor) -> None:
        self.net = net
        copy = float64_copy(net)
        parameter = first_float(copy)
        self.perturbed = _perturbed(copy)
        if not _runs(self.perturbed, random_images(example_input, parameter)):
            self.perturbed = copy  # a scale under a root, say, that has become negative
        self.example = example_input
        self.small_example = torch.empty_like(example_input, dtype=torch.float64, device=parameter.device)

    def keep_exact(self, groups: tuple[Group, ...]) -> tuple[tuple[Group, ...], dict[str, str]]:
        """Return the groups that hold the law together, and name -> the error of each other one."""
        error = self.error(groups)
        if not error or not groups:
            return groups, {}
        if len(groups) == 1:
            return (), {groups[0].name: error}
        middle = len(groups) // 2
        exact: tuple[Group, ...] = ()
        errors: dict[str, str] = {}
        for half in (groups[:middle], groups[middle:]):
            held, failed = self.keep_exact(half)
            exact, errors = (*exact, *held), errors | failed
        if exact != groups and not self.error(exact):
            return exact, errors
        held_one_by_one: tuple[Group, ...] = ()
        for group in exact:  # groups that hold alone and not together
            if error := self.error((*held_one_by_one, group)):
                errors[group.name] = error
            else:
                held_one_by_one = (*held_one_by_one, group)
        return held_one_by_one, errors

    def error(self, groups: Sequence[Group]) -> str:
        """Return why the law does not hold for these groups; "" where it does."""
        try:
            self.check(groups)
        except ValueError as error:
            return str(error)
        return ""

    def check(self, groups: Sequence[Group]) -> None:
        """Raise ValueError unless half of every group, cut out, leaves what the masked network computes."""
        if all(group.size == 1 for group in groups):
            return
        parameter = first_float(self.perturbed)
        generator, full = torch.Generator().manual_seed(0), full_masks(self.net, groups)
        for draw in (0, 1, 2):
            masks = full
            for group in groups:
                order = torch.randperm(group.size, generator=generator)
                alive = torch.ones(group.size, dtype=torch.bool)
                masks = mask_units(group, alive.index_fill(0, order[: group.size // 2], False), masks)
            masked = deepcopy(self.perturbed)
            apply_masks(masked, masks)
            removed = _removed_positions(groups, _all_masks(masked, masks))
            images = random_images(self.example, parameter, draw=draw)
            check_equal(masked, cut_out(deepcopy(masked), removed), images, removed=removed)


@torch.no_grad()
def _perturbed(net: nn.Module) -> nn.Module:
    """Return a copy whose parameters and statistics are moved from their initial values.

    A fresh network has shifts of 0, scales of 1, and often a scale of 0 behind a residual branch: these hide
    what training will show. Rows and columns are moved as such: numbers for every weight take too long.
    """
    copy = deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        for dim in range(min(tensor.dim(), 2)):
            factor = torch.rand(tensor.shape[dim], generator=generator, dtype=torch.float64).add_(0.5)
            tensor.mul_(_along(factor, dim, tensor))
        if tensor.dim() and (isinstance(tensor, nn.Parameter) or name.endswith("running_mean")):
            shift = _along(torch.rand(len(tensor), generator=generator, dtype=torch.float64) - 0.5, 0, tensor)
            if tensor.dim() > 1:
                column = torch.rand(tensor.shape[1], generator=generator, dtype=torch.float64) - 0.5
                shift = shift * _along(column, 1, tensor)
            tensor.add_(0.2 * shift)
    return copy


def _along(values: Tensor, dim: int, tensor: Tensor) -> Tensor:
    """Return the values in a shape that multiplies `tensor` along one dimension."""
    return values.to(tensor.device).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


@torch.no_grad()
def _runs(net: nn.Module, images: Tensor) -> bool:
    try:
        logits = net(images)
    except FORWARD_ERRORS:
        return False
    return isinstance(logits, Tensor) and bool(torch.isfinite(logits[:1]).all())


def remaining_channels(
    groups: Iterable[Group], masks: Mapping[str, Tensor], *, whole_if_dead: bool = False
) -> dict[str, Tensor]:
    """Return group name -> int64 positions of the channels that stay, ascending.

    Of a group that is pruned as a whole the first channel stays, as no layer is without channels; or all of
    them with `whole_if_dead`. A parameter without a mask is taken for one that the network does not have.
    """
    remaining = {}
    for group in groups:
        alive = alive_units(group, masks)
        least = torch.arange(group.size if whole_if_dead else 1)
        remaining[group.name] = alive.nonzero().flatten() if alive.any() else least
    return remaining


def find_pruned_groups(
    groups: Iterable[Group], masks: Mapping[str, Tensor], *, net: nn.Module
) -> tuple[str, ...]:
    """Return the names of the groups of which no channel is alive; a parameter without a mask is alive."""
    all_masks = _all_masks(net, masks)
    return tuple(group.name for group in groups if not alive_units(group, all_masks).any())


def shrink(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Tensor,
    *,
    groups: Sequence[Group] | None = None,
    whole_if_dead: bool = False,
) -> nn.Module:
    """Return a new network without the pruned channels; it computes what the masked `net` computes.

    A channel is pruned when its rows, biases and norm entries are. Of a group that is pruned as a whole one
    channel stays, masked; with `whole_if_dead` all do, as in networks that were recorded before. `groups` is
    an earlier `trace` of `net`. ValueError, with the layer, where the two would not be equal on random images
    in float64: where a column still reads something else than zero from a pruned channel (a sigmoid, say), or
    channels do not lie where the trace has them.
    """
    net, example_input = check_network(net), check_example(example_input)
    check_masks(net, masks)
    if groups is None:
        channels = find_channels(net, example_input, protect=find_uncut_layers(net, masks))
        groups = (*channels.groups, *channels.heads)
    check_groups_fit(net, groups)
    masked = deepcopy(net)
    apply_masks(masked, masks)
    removed = _removed_positions(groups, _all_masks(masked, masks), whole_if_dead=whole_if_dead)
    if not removed:
        return masked
    small = cut_out(deepcopy(masked), removed)
    masked64, small64 = float64_copy(masked), float64_copy(small)
    for draw in (0, 1):
        images = random_images(example_input, first_float(masked64), draw=draw)
        check_equal(masked64, small64, images, removed=removed)
    return small


def find_uncut_layers(net: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the layers of which every row has alive entries: nothing of them can be cut."""
    layers = prunable_layers(net)
    if len(layers) == 1:
        return ()
    names = {id(parameter): name for name, parameter in net.named_parameters()}  # one for tied layers, too
    rows = {name: masks.get(names.get(id(layer.weight), "")) for name, layer in layers.items()}
    return tuple(name for name, mask in rows.items() if mask is None or bool(mask.flatten(1).any(1).all()))


def propagate_masks(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    groups: Sequence[Group],
    *,
    example_input: Tensor,
) -> Masks:
    """Return the masks with the columns pruned, too, that read nothing but pruned units.

    A unit is pruned when its rows, biases and norm entries are; a bias without a mask is alive. Its columns
    are pruned where they read zero on random images, so that masking them changes nothing: behind a sigmoid
    they do not. Pruned columns may leave further units without an alive weight, and so on.
    """
    result, all_masks = dict(masks), _all_masks(net, masks)
    while columns_by_layer := _columns_of_pruned_units(groups, all_masks):
        zero = _zero_columns(net, result, example_input)
        has_changed = False
        for name, columns in columns_by_layer.items():
            columns = columns[zero[name][columns]] if name in zero else columns[:0]
            weight = f"{name}.weight"
            if all_masks[weight].index_select(1, columns).any():
                all_masks[weight] = result[weight] = all_masks[weight].index_fill(1, columns, False)
                has_changed = True
        if not has_changed:
            break
    return result


def _columns_of_pruned_units(groups: Sequence[Group], all_masks: Masks) -> dict[str, Tensor]:
    """Return layer -> its columns that belong to pruned units, of the layers where some of them are alive."""
    pieces: dict[str, list[Tensor]] = {}
    for group in groups:
        pruned = ~alive_units(group, all_masks)
        for member in group.members if pruned.any() and len(group.members) > 1 else ():
            if member.side == "in" and f"{member.module}.weight" in all_masks:
                pieces.setdefault(member.module, []).append(member.index[pruned[member.root]])
    columns = {name: torch.cat(tensors) for name, tensors in pieces.items()}
    return {
        name: index
        for name, index in columns.items()
        if all_masks[f"{name}.weight"].index_select(1, index).any()
    }


def _zero_columns(net: nn.Module, masks: Masks, example_input: Tensor) -> dict[str, Tensor]:
    """Return layer -> bool [columns]: where the masked network passes zeros alone, on all random images."""
    masked = float64_copy(net)
    apply_masks(masked, masks)
    first, second = (
        find_zero_columns(masked, random_images(example_input, first_float(masked), draw=draw))
        for draw in (0, 1)
    )
    return {name: first[name] & second[name] for name in first.keys() & second.keys()}


def shrink_masks(masks: Mapping[str, Tensor], groups: Sequence[Group], *, net: nn.Module) -> Masks:
    """Return the masks of the network that `shrink(net, masks, ...)` returns, by the same parameter names."""
    small = dict(masks)
    for (module, side), positions in _removed_positions(groups, _all_masks(net, masks)).items():
        for name in [name for name in small if name.rpartition(".")[0] == module]:
            mask, leaf = small[name], name.rpartition(".")[2]
            axis = int(side.split()[1]) if side.startswith(f"{leaf} ") else None
            if " " not in side:
                axis = axis_of(net.get_submodule(module), leaf, mask.dim(), side)
            if axis is not None:
                remaining = complement(positions, mask.shape[axis]).to(mask.device)
                small[name] = mask.index_select(axis, remaining)
    return small


def _all_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Return masks of all parameters, alive where `masks` has none: an unmasked bias keeps its channel."""
    return {
        name: masks[name].cpu() if name in masks else torch.ones(parameter.shape, dtype=torch.bool)
        for name, parameter in net.named_parameters()
    }


def _removed_positions(groups: Sequence[Group], masks: Masks, *, whole_if_dead: bool = False) -> Removed:
    """Return (module name, side) -> the positions to cut out there."""
    pieces: dict[tuple[str, str], list[Tensor]] = {}
    remaining = remaining_channels(groups, masks, whole_if_dead=whole_if_dead)
    for group in groups:
        pruned = torch.ones(group.size, dtype=torch.bool).index_fill(0, remaining[group.name], False)
        for member in (*group.members, *group.followers) if pruned.any() else ():
            if member.side != "entry":  # these go with another side of their module
                side = f"{member.parameter} {member.dim}" if member.side == "slice" else member.side
                pieces.setdefault((member.module, side), []).append(member.index[pruned[member.root]])
    return {key: torch.cat(positions) for key, positions in pieces.items() if sum(map(len, positions))}

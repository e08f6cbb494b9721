"""Channels: which of them belong together, and the smaller network without the pruned ones.

What `reads` and `channel_groups` say is never believed: the network with channels cut out is compared with
the masked one, when a network is traced and again when it is cut (see `equivalence`). After the trace all
is index arithmetic on weights, biases and running statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pruning.channel_mapping.block_ties import add_block_groups
from pruning.channel_mapping.channel_groups import (
    CLASSES,
    PROTECTED,
    add_slices,
    make_groups,
    removable_columns,
)
from pruning.channel_mapping.column_readers import find_reads
from pruning.channel_mapping.head_groups import (
    NO_WIDTH,
    find_inside,
    find_query_heads,
    join_projections,
    open_attentions,
    with_heads,
)
from pruning.channel_mapping.parameter_slices import find_slices
from pruning.channel_mapping.probe import Probe
from pruning.channel_mapping.probe_setup import open_norms, smallest_batch, smallest_images
from pruning.channel_mapping.removal_check import RemovalCheck
from pruning.checks import (
    check_example,
    check_groups_fit,
    check_network,
    check_stored_weights,
)
from pruning.cutting.equivalence import check_equal, run_masked
from pruning.cutting.layer_widths import SelectedLinear, axis_of, complement, cut_out
from pruning.cutting.positions import all_masks, removed_positions
from pruning.dataflow import find_data_flow
from pruning.eval_mode import first_float, fixed_generators, random_images, widened_copy
from pruning.layer_names import find_protected_layers
from pruning.masking import (
    Group,
    Masks,
    Member,
    apply_masks,
    check_masks,
    prunable_layers,
    turn_rows,
)

UNCALLED = "it is not called as a layer"


@dataclass(frozen=True)
class Channels:
    """The channel groups of a network, and those of its attention heads; layer -> why it is left whole.

    `whole` has the layers without a channel group, `whole_heads` those of attentions whose heads stay.
    """

    groups: tuple[Group, ...]
    heads: tuple[Group, ...]
    whole: Mapping[str, str]
    whole_heads: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_whole(self) -> tuple[str, ...]:
        """The hidden layers that are left whole, as `name (reason)`."""
        return _as_texts(self.whole)

    @property
    def heads_left_whole(self) -> tuple[str, ...]:
        """The layers of attentions whose heads are left whole, as `name (reason)`."""
        return _as_texts(self.whole_heads)


def _as_texts(whole: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{name} (left whole: {reason.partition('. ')[0]})"
        for name, reason in whole.items()
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
    with fixed_generators(check_network(net)):
        return _find_channels(net, check_example(example_input), protect)


def _find_channels(net: nn.Module, example_input: Tensor, protect: Collection[str]) -> Channels:
    flow = find_data_flow(net, example_input)
    layers, protected = prunable_layers(net), find_protected_layers(net, protect, flow=flow)
    check_stored_weights(net, layers.keys() - protected)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        features = () if protected else (input_features(name, layer),)
        RemovalCheck(net, example_input).check(features)
        return Channels(features, (), {})
    check = RemovalCheck(net, smallest_images(net, example_input))
    candidates, mixed, whole = _find_candidates(check, flow.outputs, protected)
    heads = _heads(net, candidates)
    channels = [group for group in candidates if group.name not in heads]
    single_heads = _heads(net, mixed)
    for group in (*heads.values(), *single_heads.values()):
        inside = find_inside(net, group)
        if inside is None:
            whole |= _makers(group, NO_WIDTH)
        else:
            channels.append(inside)
            whole = {name: whole[name] for name in whole if name not in _makers(group, "")}
    queries = {name: find_query_heads(net, group) for name, group in single_heads.items()}
    heads |= {name: group for name, group in queries.items() if group is not None}
    order = {name: number for number, (name, _) in enumerate(net.named_modules())}
    channels.sort(key=lambda group: order[group.name])
    exact, channel_errors = _keep_exact(check, channels, example_input)
    keep_exact = partial(_keep_exact, check, example_input=example_input)
    exact, channel_errors = add_block_groups(check, channels, exact, channel_errors, keep_exact)
    exact_heads, head_errors = _keep_exact(check, heads.values(), example_input)
    for group in channels:
        whole |= _makers(group, channel_errors.get(group.name))
    whole_heads: dict[str, str] = {}
    for group in heads.values():
        whole_heads |= _makers(group, head_errors.get(group.name))
    reasons = [(n, r) for n, r in (*whole.items(), *whole_heads.items()) if r not in (CLASSES, PROTECTED)]
    if not exact and not exact_heads and reasons:
        (name, reason), *_ = reasons
        reason = reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
        raise ValueError(f"{reason}; no channel of {type(net).__name__} can be removed")
    return Channels(exact, exact_heads, whole, whole_heads)


def _find_candidates(
    check: RemovalCheck, outputs: Sequence[str], protected: Collection[str]
) -> tuple[list[Group], list[Group], dict[str, str]]:
    """Ask the network. Return what may be cut, what is mixed (see `make_groups`), and what is left whole."""
    net = check.copy()
    attentions = open_attentions(net)
    open_norms(net)
    images = torch.empty_like(check.example, dtype=torch.float64, device=first_float(net).device)
    probe = Probe(net, images, _norms(net), batch=smallest_batch(net, check.example))
    reads = find_reads(probe)
    made = make_groups(net, reads, outputs=outputs, protected=protected)
    slices = find_slices(probe, removable_columns(made.groups.values(), reads))
    candidates = [join_projections(group, attentions) for group in add_slices(made.groups.values(), slices)]
    mixed = [join_projections(group, attentions) for group in made.mixed.values()]
    called = {*reads.order, *(f"{name}.out_proj" for name in attentions)}
    uncalled = {name: UNCALLED for name in prunable_layers(check.net) if name not in called}
    return candidates, mixed, uncalled | dict(made.whole)


def _heads(net: nn.Module, groups: Iterable[Group]) -> dict[str, Group]:
    """Return those of the groups that are heads of attentions, by name."""
    heads = {group.name: with_heads(net, group) for group in groups if not _is_single(group)}
    return {name: group for name, group in heads.items() if group is not None}


def _makers(group: Group, reason: str | None) -> dict[str, str]:
    """Return layer -> the reason why it is left whole, if any, of the layers that make the units."""
    if reason is None:
        return {}
    return {member.module: reason for member in group.members if member.side in ("out", "entry")}


def _keep_exact(
    check: RemovalCheck, groups: Iterable[Group], example_input: Tensor
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Return the groups that can be cut out exactly, on small images and on those of the example's size."""
    groups = tuple(groups)
    errors = _computed_weights(check.net, groups)
    exact, inexact = check.keep_exact(tuple(group for group in groups if group.name not in errors))
    errors |= inexact
    if check.example.shape != example_input.shape:
        exact, inexact = check.at(example_input).keep_exact(exact)
        errors |= inexact
    return exact, errors


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
    else:  # groups of a trace of this very network may leave some rows of a layer out
        check_groups_fit(net, groups)
    small = deepcopy(net)
    apply_masks(small, masks)
    removed = removed_positions(groups, all_masks(small, masks), whole_if_dead=whole_if_dead)
    if not removed:
        return small

    def rebuild() -> nn.Module:
        masked = widened_copy(net)
        apply_masks(masked, masks)
        return masked

    with fixed_generators(net):
        # One after the other: the network, what is left of it, and one of the two in float64 are in memory.
        masked64 = widened_copy(small)
        draws = [random_images(example_input, first_float(masked64), draw=draw) for draw in (0, 1)]
        runs = [run_masked(masked64, images, removed=removed) for images in draws]
        del masked64
        small = cut_out(small, removed)
        small64 = widened_copy(small)
        for run, images in zip(runs, draws, strict=True):
            check_equal(run, small64, images, rebuild=rebuild)
    return small


def find_uncut_layers(net: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the layers of which every row has alive entries: nothing of them can be cut."""
    layers = prunable_layers(net)
    if len(layers) == 1:
        return ()
    names = {id(parameter): name for name, parameter in net.named_parameters()}  # one for tied layers, too
    of_layer = {name: masks.get(names.get(id(layer.weight), "")) for name, layer in layers.items()}
    rows = {n: None if mask is None else turn_rows(layers[n], mask) for n, mask in of_layer.items()}
    return tuple(name for name, mask in rows.items() if mask is None or bool(mask.flatten(1).any(1).all()))


def shrink_masks(masks: Mapping[str, Tensor], groups: Sequence[Group], *, net: nn.Module) -> Masks:
    """Return the masks of the network that `shrink(net, masks, ...)` returns, by the same parameter names."""
    small = dict(masks)
    for (module, side), positions in removed_positions(groups, all_masks(net, masks)).items():
        for name in [name for name in small if name.rpartition(".")[0] == module]:
            mask, leaf = small[name], name.rpartition(".")[2]
            axis = int(side.split()[1]) if side.startswith(f"{leaf} ") else None
            if " " not in side and ":" not in side:
                axis = axis_of(net.get_submodule(module), leaf, mask.dim(), side)
            if axis is not None:
                remaining = complement(positions, mask.shape[axis]).to(mask.device)
                small[name] = mask.index_select(axis, remaining)
    return small

"""Channels: which of them belong together, and the smaller network without the pruned ones.

What `reads` and `channel_groups` say is never believed: the network with channels cut out is compared with
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
    check_example,
    check_groups_fit,
    check_network,
    check_stored_weights,
)
from pruning.cutting_law import CuttingLaw
from pruning.dataflow import find_data_flow
from pruning.equivalence import check_equal
from pruning.eval_mode import first_float, fixed_generators, random_images, widened_copy
from pruning.layer_names import find_protected_layers
from pruning.masking import (
    Group,
    Masks,
    Member,
    apply_masks,
    check_masks,
    prunable_layers,
)
from pruning.probe import Probe
from pruning.probe_setup import open_norms, smallest_batch, smallest_images
from pruning.reads import find_reads
from pruning.removal import all_masks, removed_positions
from pruning.resize import SelectedLinear, axis_of, complement, cut_out, replace_module
from pruning.slices import find_slices

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
    with fixed_generators(check_network(net)):
        return _find_channels(net, check_example(example_input), protect)


def _find_channels(net: nn.Module, example_input: Tensor, protect: Collection[str]) -> Channels:
    flow = find_data_flow(net, example_input)
    layers, protected = prunable_layers(net), find_protected_layers(net, protect, flow=flow)
    check_stored_weights(net, layers.keys() - protected)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        features = () if protected else (input_features(name, layer),)
        CuttingLaw(net, example_input).check(features)
        return Channels(features, (), {})
    law = CuttingLaw(net, smallest_images(net, example_input))
    split = law.copy()
    attentions = split_attentions(split)
    open_norms(split)
    images = torch.empty_like(law.example, dtype=torch.float64, device=first_float(split).device)
    probe = Probe(split, images, _norms(split), batch=smallest_batch(split, law.example))
    reads = find_reads(probe)
    made = make_groups(split, reads, outputs=flow.outputs, protected=protected)
    slices = find_slices(probe, removable_columns(made.groups.values(), reads))
    candidates = [join_projections(group, attentions) for group in add_slices(made.groups.values(), slices)]
    heads = {group.name: with_heads(net, group) for group in candidates if not _is_single(group)}
    candidates = [heads.get(group.name) or group for group in candidates]
    del split, probe  # as large as what the law compares
    attention_names = tuple(attentions)
    attentions.clear()
    errors = _computed_weights(net, candidates)
    exact, inexact = law.keep_exact(tuple(group for group in candidates if group.name not in errors))
    errors |= inexact
    if law.example.shape != example_input.shape:
        exact, inexact = law.at(example_input).keep_exact(exact)
        errors |= inexact
    called = {*reads.order, *(f"{name}.out_proj" for name in attention_names)}
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
    masked = deepcopy(net)
    apply_masks(masked, masks)
    removed = removed_positions(groups, all_masks(masked, masks), whole_if_dead=whole_if_dead)
    if not removed:
        return masked
    masked64 = widened_copy(masked)
    small = cut_out(masked, removed)
    small64 = widened_copy(small)
    with fixed_generators(net):
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


def shrink_masks(masks: Mapping[str, Tensor], groups: Sequence[Group], *, net: nn.Module) -> Masks:
    """Return the masks of the network that `shrink(net, masks, ...)` returns, by the same parameter names."""
    small = dict(masks)
    for (module, side), positions in removed_positions(groups, all_masks(net, masks)).items():
        for name in [name for name in small if name.rpartition(".")[0] == module]:
            mask, leaf = small[name], name.rpartition(".")[2]
            axis = int(side.split()[1]) if side.startswith(f"{leaf} ") else None
            if " " not in side:
                axis = axis_of(net.get_submodule(module), leaf, mask.dim(), side)
            if axis is not None:
                remaining = complement(positions, mask.shape[axis]).to(mask.device)
                small[name] = mask.index_select(axis, remaining)
    return small

"""Units: the rows of hidden layers, each with its bias and the entries of the norms that read it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from pruning.dataflow import DataFlow, data_flow, protected_layers
from pruning.masking import Group, Layer, Member, prunable_layers


def unit_groups(
    net: nn.Module,
    *,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    flow: DataFlow | None = None,
) -> tuple[Group, ...]:
    """One group per hidden layer: its rows, biases, and the entries of the norms that read it one to one.

    Hidden layers are those that run and do not make the logits, as `flow` or a pass of `example_input` shows;
    layers that share a weight share their units. In a network without a hidden layer the units are input
    features. ValueError for a network that cannot be run.
    """
    layers = prunable_layers(net)
    if len(layers) == 1:
        (name, layer) = next(iter(layers.items()))
        columns = torch.arange(layer.weight.shape[1])
        whole = Group(name, len(columns), (Member(name, "in", columns, columns),))
        return () if protected_layers(net, protect) else (whole,)
    flow = flow or data_flow(net, example_input)
    protected = protected_layers(net, protect, flow=flow)
    groups = []
    for names in _sharing(layers):
        if not protected.isdisjoint(names) or any(n not in flow.layers or n in flow.outputs for n in names):
            continue
        rows = torch.arange(layers[names[0]].weight.shape[0])
        norms = dict.fromkeys(norm for name in names for norm in flow.norms.get(name, ()))
        members = [Member(name, "out", rows, rows) for name in names]
        members += [Member(norm, "norm", rows, rows) for norm in norms]
        groups.append(Group(names[0], len(rows), tuple(members)))
    return tuple(groups)


def _sharing(layers: dict[str, Layer]) -> list[tuple[str, ...]]:
    """Names of the layers, those with one weight between them together."""
    by_weight: dict[int, list[str]] = {}
    for name, layer in layers.items():
        by_weight.setdefault(id(layer.weight), []).append(name)
    return [tuple(names) for names in by_weight.values()]

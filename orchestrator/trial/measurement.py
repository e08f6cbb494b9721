"""Measure a state of a trial: dense, masked and cut out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config import TrialConfig
from orchestrator.errors import DivergedError
from orchestrator.training.evaluation import evaluate
from orchestrator.training.loop import EpochRecord
from orchestrator.trial.context import NetworkState, TrialContext, channel_groups
from orchestrator.trial.metrics import (
    LayerRow,
    Measurement,
    collapse_notes,
    dense_bytes,
    effective_macs,
    layer_rows,
    nonzero_parameters,
    profile,
    remaining_weights,
    sparse_bytes,
    sparsity_indices,
)
from orchestrator.trial.structure import layers_protected
from pruning.masking import Group, Masks, alive_in, alive_units, prunable_layers, sparsity
from pruning.schedules import rounds_of, schedules, target_after
from pruning.step import target_count
from pruning.structure import dead_groups, propagate, shrink


@dataclass(frozen=True, eq=False)
class MeasuredRound:
    """A state, what it measures, and the network as it would be shipped: cut where channels could go."""

    state: NetworkState
    measurement: Measurement
    net: nn.Module
    cut: bool
    layers: tuple[LayerRow, ...]
    living: Masks  # with what is dead by consequence
    confusion: Tensor
    notes: tuple[str, ...]

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        return self.state.history


@dataclass(frozen=True)
class ResumedRound:
    """A round that an earlier process measured: all that is recorded of a round that is not the last."""

    measurement: Measurement
    history: tuple[EpochRecord, ...]
    notes: tuple[str, ...]


def measure(
    context: TrialContext,
    state: NetworkState,
    groups: Sequence[Group] | None,
    *,
    config: TrialConfig | None = None,
    round: int = 0,
) -> MeasuredRound:
    """Evaluate a state on test and validation images, and count what it costs dense, masked and cut."""
    with context.seeded("measure", round):  # for a network that draws in eval mode, too
        return _measured(context, state, groups, config, round)


def _measured(
    context: TrialContext,
    state: NetworkState,
    groups: Sequence[Group] | None,
    config: TrialConfig | None,
    round: int,
) -> MeasuredRound:
    net = context.build_module(state)
    numerics = replace(context.config.numerics, micro_batch=state.micro_batch)
    test = evaluate(net, context.data.test, numerics=numerics)
    held_out = evaluate(net, context.data.validation, numerics=numerics)
    if not math.isfinite(test.loss) or not math.isfinite(held_out.loss):
        raise DivergedError(f"the loss of the pruned network is not finite after {state.epochs} epochs")
    small, notes = _cut(context, net, state.masks, config, round=round)
    masks, whole = _propagated(context, net, state.masks, config)
    living = remaining_weights(net, context.cost, masks)
    if config is not None:
        notes += _differences(config, state.masks, groups, round=round)
    notes += collapse_notes(masks, held_out, classes=context.data.num_classes, round=round)
    measurement = Measurement(
        accuracy=test.accuracy,
        top5=test.top5,
        loss=test.loss,
        val_accuracy=held_out.accuracy,
        val_loss=held_out.loss,
        test_seconds=test.seconds,
        amount=achieved_amount(state.masks, groups),
        epochs=state.epochs,
        train_seconds=state.train_seconds,
        train_flops=state.train_flops,
        sparsity_chosen=sparsity({**whole, **state.masks}),
        macs_effective_chosen=effective_macs(context.cost, state.masks),
        **_costs(context, net, small, masks, living),
    )
    rows = tuple(layer_rows(net, context.cost, living, state.masks))
    return MeasuredRound(state, measurement, small, small is not net, rows, masks, test.confusion, notes)


def _propagated(
    context: TrialContext, net: nn.Module, masks: Masks, config: TrialConfig | None
) -> tuple[Masks, Masks]:
    """The masks with what is dead by consequence, where whole units or channels go; and the whole ones.

    These are of the other weights that count in a sparsity: what reads units, dead or not, so that both
    sparsities are fractions of the same weights at every amount. Where channels cannot be told nothing is
    dead by consequence, and all weights count that are not protected.
    """
    if config is None or config.prune.granularity not in ("unit", "channel"):
        return masks, {}
    parameters, protect = dict(net.named_parameters()), config.prune.protect
    try:
        groups = channel_groups(context, protect)
    except ValueError:
        result = masks
        counted = [
            name for name in prunable_layers(net) if name not in layers_protected(context.built, protect)
        ]
    else:
        image = torch.zeros((2, *context.data.input_shape))  # of which the shape counts alone
        result = propagate(net, masks, groups, example_input=image)
        counted = [member.module for group in groups for member in group.members]
    whole = {
        name: torch.ones(parameters[name].shape, dtype=torch.bool)
        for name in (f"{layer}.weight" for layer in counted)
        if name in parameters and name not in masks
    }
    return {**whole, **result}, whole


def _costs(
    context: TrialContext, net: nn.Module, small: nn.Module, masks: Masks, living: Mapping[str, Tensor]
) -> dict[str, Any]:  # int or float
    """What is left of the network: dense, with its masks, and cut out."""
    physical = context.cost if small is net else profile(small, context.data.input_shape)
    nonzero = nonzero_parameters(context.cost, masks)
    index, gini = sparsity_indices(living)
    return {
        "sparsity": sparsity(masks),
        "pq_index": index,
        "gini": gini,
        "compression": context.cost.parameters / max(nonzero, 1),
        "parameters_dense": context.cost.parameters,
        "parameters_nonzero": nonzero,
        "parameters_physical": physical.parameters,
        "macs_dense": context.cost.total_macs,
        "macs_effective": effective_macs(context.cost, masks),
        "macs_physical": physical.total_macs,
        "bytes_dense": dense_bytes(net),
        "bytes_sparse": sparse_bytes(net, masks),
        "bytes_physical": dense_bytes(small),
    }


def achieved_amount(masks: Masks, groups: Sequence[Group] | None) -> float:
    """Fraction of the units (weights, units or channels) that are gone."""
    total, living = 0, 0
    for _, here, alive in _pools(masks, groups):
        total, living = total + here, living + alive
    return 1.0 - living / total if total else 0.0


def _pools(masks: Masks, groups: Sequence[Group] | None) -> list[tuple[str, int, int]]:
    """(layer or group, its units, those that live)."""
    if groups is None:
        # An ancestor's masks of units cover biases and norms as well; an amount is of weights.
        weights = {name: mask for name, mask in masks.items() if mask.dim() > 1}
        return [(name, mask.numel(), alive_in(mask)) for name, mask in weights.items()]
    return [(group.name, group.size, int(alive_units(group, masks).sum())) for group in groups]


def _cut(
    context: TrialContext, net: nn.Module, masks: Masks, config: TrialConfig | None, *, round: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network without its dead channels, where whole units or channels go; and what there is to say."""
    if config is None or config.prune.granularity not in ("unit", "channel"):
        return net, ()
    if all(mask.all() for mask in masks.values()):
        return net, ()
    image = torch.zeros((2, *context.data.input_shape))  # of which the shape counts alone
    try:
        groups = channel_groups(context, config.prune.protect)
        small = shrink(net, masks, image, groups=groups)
        return small, _emptied(dead_groups(groups, masks, net=net), config.prune.granularity, round=round)
    except ValueError as error:
        if config.prune.granularity == "channel":
            raise
        return net, (f"round {round}: not cut out, so that physical numbers are dense ones: {error}",)


def _emptied(names: Sequence[str], granularity: str, *, round: int) -> tuple[str, ...]:
    """One note for groups of which nothing lives: what is cut out, and counted, has zeros there."""
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"round {round}: nothing is left of {', '.join(names[:3])}{more}: "
        f"cut out, it keeps one {granularity} of zeros in each",
    )


def _differences(
    config: TrialConfig, masks: Masks, groups: Sequence[Group] | None, *, round: int
) -> tuple[str, ...]:
    """One note where another number of units went than the schedule's target of this round asks for."""
    schedule = schedules.get(config.prune.schedule)
    # An untrained network, or one in training, is measured once, after the last round.
    number = round if config.when == "after" else rounds_of(schedule)
    asked = target_after(schedule, amount=config.prune.amount, round=number)
    if asked is None:
        return ()
    pools = _pools(masks, groups)
    if config.prune.scope in ("global", "erk"):  # erk spreads one amount unevenly over the layers
        pools = [("the network", sum(n for _, n, _ in pools), sum(alive for _, _, alive in pools))]
    rows = {
        name: len(masks[name]) if config.prune.scope == "unit" else 1 for name, _, _ in pools if name in masks
    }
    off = [
        f"{name} {1 - alive / total:.4f}"
        for name, total, alive in pools
        if total - alive != _target(asked, total, rows.get(name, 1))
    ]
    more = f" and {len(off) - 5} more" if len(off) > 5 else ""
    where = f"round {number}: " if rounds_of(schedule) > 1 else ""
    return (f"{where}asked for {asked:.4g}, achieved: {', '.join(off[:5])}{more}",) if off else ()


def _target(amount: float, total: int, rows: int) -> int:
    """How many of `total` units are to go where each of so many rows is counted by itself."""
    return rows * target_count(amount, total // rows)

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
from orchestrator.training.evaluation import evaluate_in_memory
from orchestrator.training.loop import EpochRecord
from orchestrator.trial.context import NetworkState, TrialContext
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
from orchestrator.trial.structure import layers_protected, mixed_amounts_of, pool_amounts_of, removable_of
from orchestrator.trial.target_masks import remaining_quantities
from pruning.channels import shrink
from pruning.cutting.positions import find_pruned_groups
from pruning.cutting.propagation import propagate_masks
from pruning.mask_selection import target_count
from pruning.masking import Group, Masks, alive_units, count_alive, prunable_layers, sparsity, width_of
from pruning.schedules import rounds_of, schedules, target_after


@dataclass(frozen=True, eq=False)
class MeasuredRound:
    """A state with its measurement, and the network as it would be deployed: dead channels cut out."""

    state: NetworkState
    measurement: Measurement
    net: nn.Module
    cut: bool
    layers: tuple[LayerRow, ...]
    effective_masks: Masks  # with what is dead by consequence
    confusion: Tensor
    notes: tuple[str, ...]

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        return self.state.history


@dataclass(frozen=True)
class ResumedRound:
    """A round that an earlier process measured: what is recorded of every round but the last."""

    measurement: Measurement
    history: tuple[EpochRecord, ...]
    notes: tuple[str, ...]


def measure(context: TrialContext, state: NetworkState, *, round: int = 0) -> MeasuredRound:
    """Evaluate a state on test and validation images, and count what it costs dense, masked and cut.

    DivergedError where a loss is not finite. In the context of a dense training nothing is cut.
    """
    with context.seeded("measure", round):  # for a network that draws in eval mode, too
        return _measure(context, state, round)


def _measure(context: TrialContext, state: NetworkState, round: int) -> MeasuredRound:
    net = context.build_module(state)
    numerics = replace(context.config.numerics, micro_batch=state.micro_batch)
    test, at_once = evaluate_in_memory(net, context.data.test, numerics=numerics)
    numerics = replace(numerics, micro_batch=at_once)
    validation, at_once = evaluate_in_memory(net, context.data.validation, numerics=numerics)
    state = replace(state, micro_batch=at_once) if at_once < state.micro_batch else state
    if not math.isfinite(test.loss) or not math.isfinite(validation.loss):
        raise DivergedError(f"the loss of the pruned network is not finite after {state.epochs} epochs")
    cut, notes = _cut_out(context, net, state.masks, round=round)
    masks, full = _propagate(context, net, state.masks)
    remaining = remaining_weights(net, context.cost, masks)
    notes += _amount_notes(context, net, state.masks, round=round)
    notes += collapse_notes(masks, validation, classes=context.data.num_classes, round=round)
    measurement = Measurement(
        accuracy=test.accuracy,
        top5=test.top5,
        loss=test.loss,
        val_accuracy=validation.accuracy,
        val_loss=validation.loss,
        test_seconds=test.seconds,
        amount=achieved_amount(state.masks, context.groups),
        epochs=state.epochs,
        train_seconds=state.train_seconds,
        train_flops=state.train_flops,
        sparsity_chosen=sparsity({**full, **state.masks}),
        macs_effective_chosen=effective_macs(context.cost, state.masks),
        train_flops_effective=state.train_flops_effective,
        **_costs(context, net, cut, masks, remaining),
    )
    rows = tuple(layer_rows(net, context.cost, remaining, state.masks))
    return MeasuredRound(state, measurement, cut, cut is not net, rows, masks, test.confusion, notes)


def _propagate(context: TrialContext, net: nn.Module, masks: Masks) -> tuple[Masks, Masks]:
    """Return the masks with what is dead by consequence, and full masks of the other weights that count.

    Both are the given masks and nothing unless whole units or channels go. The other weights are those that
    read units, dead or not, so that both sparsities are fractions of the same weights at every amount. Where
    the channels of a network cannot be traced nothing is dead by consequence, and all weights count that are
    not protected.
    """
    if context.trial is None or context.groups is None:
        return masks, {}
    parameters, protect = dict(net.named_parameters()), context.trial.prune.protect
    try:
        groups = removable_of(context.architecture, context.trial.prune.granularity, protect)
    except ValueError:
        propagated = masks
        protected = layers_protected(context.architecture, protect)
        counted = [name for name in prunable_layers(net) if name not in protected]
    else:
        image = torch.zeros((2, *context.data.input_shape))  # only its shape matters
        propagated = propagate_masks(net, masks, groups, example_input=image)
        counted = [member.module for group in groups for member in group.members]
    full = {
        name: torch.ones(parameters[name].shape, dtype=torch.bool)
        for name in (f"{layer}.weight" for layer in counted)
        if name in parameters and name not in masks
    }
    return {**full, **propagated}, full


def _costs(
    context: TrialContext, net: nn.Module, cut: nn.Module, masks: Masks, remaining: Mapping[str, Tensor]
) -> dict[str, Any]:  # int or float
    """Count what remains of the network: dense, with its masks, and cut out."""
    physical = context.cost if cut is net else profile(cut, context.data.input_shape)
    nonzero = nonzero_parameters(context.cost, masks)
    index, gini = sparsity_indices(remaining)
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
        "bytes_physical": dense_bytes(cut),
    }


def achieved_amount(masks: Masks, groups: Sequence[Group] | None) -> float:
    """Return the fraction of the units (weights, units or channels) that are removed."""
    pools = _pools(masks, groups)
    total = sum(size for _, size, _ in pools)
    return 1.0 - sum(alive for _, _, alive in pools) / total if total else 0.0


def _pools(masks: Masks, groups: Sequence[Group] | None) -> list[tuple[str, int, int]]:
    """Return (layer or group, its units, those that are alive)."""
    if groups is None:
        # A source model's masks of units cover biases and norms as well; an amount is of weights.
        weights = {name: mask for name, mask in masks.items() if mask.dim() > 1}
        return [(name, mask.numel(), count_alive(mask)) for name, mask in weights.items()]
    return [(group.name, group.size, int(alive_units(group, masks).sum())) for group in groups]


def _cut_out(
    context: TrialContext, net: nn.Module, masks: Masks, *, round: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network without its dead channels, where whole units or channels go, and notes on it."""
    if context.trial is None or context.groups is None or all(mask.all() for mask in masks.values()):
        return net, ()
    options = context.trial.prune
    image = torch.zeros((2, *context.data.input_shape))  # only its shape matters
    try:
        groups = removable_of(context.architecture, options.granularity, options.protect)
        cut = shrink(net, masks, image, groups=groups)
        empty = find_pruned_groups(groups, masks, net=net)
    except ValueError as error:
        if options.granularity in ("channel", "head"):
            raise
        return net, (f"round {round}: not cut out, so that physical numbers are dense ones: {error}",)
    if not empty:
        return cut, ()
    omitted = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    return cut, (
        f"round {round}: nothing is left of {', '.join(empty[:3])}{omitted}: "
        f"cut out, it keeps one {options.granularity} of zeros in each",
    )


def _amount_notes(context: TrialContext, net: nn.Module, masks: Masks, *, round: int) -> tuple[str, ...]:
    """Return notes on pools of which another number is removed than the schedule's target of this round.

    And on what layers of several amounts make together.
    """
    config = context.trial
    if config is None:
        return ()
    if config.prune.limits:
        return _limit_notes(context, config, masks)
    schedule = schedules.get(config.prune.schedule)
    # An untrained network, or one in training, is measured once, after the last round.
    number = round if config.when == "after" else rounds_of(schedule)
    widths = {name: width_of(layer, "out") for name, layer in prunable_layers(net).items()}
    differing: dict[float, list[str]] = {}
    for name, total, alive, amount in _pools_with_amounts(context, config, masks):
        target = target_after(schedule, amount=amount, round=number)
        if target is None:
            return ()
        # With scope `unit` each row of a weight is pruned, and rounded, by itself.
        rows = widths[name.removesuffix(".weight")] if config.prune.scope == "unit" and name in masks else 1
        if total - alive != rows * target_count(target, total // rows):
            differing.setdefault(target, []).append(f"{name} {1 - alive / total:.4f}")
    prefix = f"round {number}: " if rounds_of(schedule) > 1 else ""
    notes = [
        f"{prefix}asked for {target:.4g}, achieved: {_first(names)}" for target, names in differing.items()
    ]
    return (*notes, *_mixed_amounts(context, config))


def _limit_notes(context: TrialContext, config: TrialConfig, masks: Masks) -> tuple[str, ...]:
    """Return a note on what was allowed to be left, and what is."""
    options = config.prune
    left = remaining_quantities(context.architecture, options.granularity, options.protect, masks)
    limits = (f"{limit:,} {name} ({left[name]:,} left)" for name, limit in options.limits)
    return (f"asked for at most {', '.join(limits)}",)


def _first(names: Sequence[str], count: int = 5) -> str:
    omitted = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{omitted}"


def _pools_with_amounts(
    context: TrialContext, config: TrialConfig, masks: Masks
) -> list[tuple[str, int, int, float]]:
    """Return (name, units, those that are alive, amount) of all that is pruned by a count of its own."""
    options = config.prune
    amounts: Mapping[str, float] = {}
    if options.layer_amounts:
        amounts = pool_amounts_of(
            context.architecture, options.granularity, options.protect, options.layer_amounts
        )
    pools = [(*pool, amounts.get(pool[0], options.amount)) for pool in _pools(masks, context.groups)]
    if options.scope in ("unit", "layer"):
        return pools
    # Layers of one amount compete, or it is spread unevenly over them.
    together: dict[float, list[tuple[str, int, int, float]]] = {}
    for pool in pools:
        together.setdefault(pool[3], []).append(pool)
    return [
        (
            "the network" if len(together) == 1 else f"layers at {amount:.4g}",
            sum(total for _, total, _, _ in members),
            sum(alive for _, _, alive, _ in members),
            amount,
        )
        for amount, members in together.items()
    ]


def _mixed_amounts(context: TrialContext, config: TrialConfig) -> tuple[str, ...]:
    """Return a note on what layers of several amounts make together: it gets the smallest."""
    options = config.prune
    if not options.layer_amounts:
        return ()
    mixed = mixed_amounts_of(context.architecture, options.granularity, options.protect, options.amount_label)
    return (f"layers that make channels together: {_first(mixed, 3)}",) if mixed else ()

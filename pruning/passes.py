"""The passes of one round: scores, then the step, and the masks that it leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruning.activations import producers
from pruning.allocation import Allocation
from pruning.amounts import Share
from pruning.criteria import ScoringContext, absolute_weights, score_weights
from pruning.granularity import join_blocks, split_blocks
from pruning.mask_selection import Count, Scope, prune_step, round_widths, share_by_erk
from pruning.masking import (
    Group,
    Masks,
    Scores,
    alive_units,
    mask_units,
    mask_weights,
    parameter_dims,
    prunable_layers,
    sum_by_unit,
    turn_rows,
)
from pruning.registry import Method
from pruning.schedules import split_into_passes


@dataclass(frozen=True)
class Rules:
    """What the passes of a round have in common; `prunable` are parameter names, `block` is the m of n:m.

    `adaptive` is that of the schedule; `multiple`: of how many units a multiple is left of every group. An
    `allocation` says how the units of different layers compete, in scope `global`.
    """

    criterion: Method
    scope: Scope
    groups: Sequence[Group] | None
    prunable: Collection[str]
    block: int | None
    adaptive: bool
    invert: bool
    multiple: int = 1
    allocation: Allocation | None = None

    def keeps_one(self, amount: float) -> bool:
        """Whether the best unit of every group stays: an amount below 1 is not to empty a layer."""
        return self.groups is not None and (amount < 1 or self.adaptive)


def run_passes(
    context: ScoringContext, rules: Rules, shares: Sequence[Share], counts: Sequence[Count]
) -> Masks:
    """Return the masks after all passes of a criterion; `counts` are how many each share loses in all."""
    masks = context.masks
    passes = int(rules.criterion.options.get(rules.criterion.traits.get("passes", ""), 1))
    for pass_counts in zip(*(split_into_passes(count, passes) for count in counts), strict=True):
        context = replace(context, weights=_alive_weights(context.net, masks), masks=masks)
        scores = score_weights(rules.criterion, context)
        if rules.invert:
            scores = {name: -score for name, score in scores.items()}
        masks = _step(context, scores, list(zip(shares, pass_counts, strict=True)), rules)
    return masks


def _alive_weights(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return the weights on the CPU, pruned entries at zero, whether the masks are applied to `net` or not.

    A weight with nothing pruned is the network's own tensor.
    """
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach().cpu() for name, mask in masks.items() if mask.dim() > 1}
    return mask_weights(weights, masks)


def _step(
    context: ScoringContext, scores: Scores, counts: Sequence[tuple[Share, Count]], rules: Rules
) -> Masks:
    # Of these criteria the scores are the absolute weights: one tensor serves as both.
    is_absolute = rules.criterion.traits.get("absolute") and not rules.invert
    values = scores if is_absolute else absolute_weights(context.weights)
    alive = {name: context.masks[name] for name in context.weights if name in rules.prunable}
    if rules.block is not None or rules.scope == "unit":
        return context.masks | _step_in_rows(context.net, scores, values, alive, counts, rules)
    if rules.groups is None:
        return context.masks | _step_by_share(_ranked(scores, alive, rules), values, alive, counts, rules)
    squares = {name: values[name].square() for name in context.weights}
    unit_scores = {group.name: _unit_scores(group, scores, rules.criterion) for group in rules.groups}
    alive_before = {group.name: alive_units(group, context.masks) for group in rules.groups}
    unit_scores = _ranked(unit_scores, alive_before, rules)
    norms = {group.name: sum_by_unit(group, squares).sqrt() for group in rules.groups}
    remaining = _step_by_share(unit_scores, norms, alive_before, counts, rules)
    if rules.multiple > 1:
        remaining = round_widths(unit_scores, alive_before, remaining, multiple=rules.multiple)
    masks = context.masks
    for group in rules.groups:
        masks = mask_units(group, remaining[group.name], masks)
    return masks


def _ranked(scores: Scores, alive: Masks, rules: Rules) -> Scores:
    """Return the scores by which units of different layers compete."""
    return scores if rules.allocation is None else rules.allocation.rank(scores, alive)


def _step_by_share(
    scores: Scores,
    values: Mapping[str, Tensor],
    alive: Masks,
    counts: Sequence[tuple[Share, Count]],
    rules: Rules,
) -> Masks:
    """Return which weights or units are alive after a step that prunes every share by itself."""
    remaining: Masks = {}
    for share, share_count in counts:
        pools, count = alive, share_count
        if share.names is not None:
            pools = {name: mask for name, mask in alive.items() if name in share.names}
            if not pools:  # of a weight whose first name is no layer's, as an embedding's
                continue
        pool_scores = scores if share.names is None else {name: scores[name] for name in pools}
        if rules.scope == "erk":
            count = share_by_erk(count, pool_scores, values, pools)
        keep_one = rules.keeps_one(share.amount)
        remaining |= prune_step(pool_scores, values, pools, scope=rules.scope, count=count, keep_one=keep_one)
    return remaining


def _step_in_rows(
    net: nn.Module,
    scores: Scores,
    values: Mapping[str, Tensor],
    alive: Masks,
    counts: Sequence[tuple[Share, Count]],
    rules: Rules,
) -> Masks:
    """Return which weights are alive after a step within the row of each unit, or within blocks of it."""
    layers = {f"{name}.weight": layer for name, layer in prunable_layers(net).items()}
    score_rows, value_rows, alive_rows = (
        {name: turn_rows(layers[name], tensors[name]) for name in alive}
        for tensors in (scores, values, alive)
    )
    if rules.block is None:
        remaining = _step_by_share(score_rows, value_rows, alive_rows, counts, rules)
    else:
        remaining = _step_in_blocks(score_rows, value_rows, alive_rows, counts[0][1], rules.block)
    return {name: turn_rows(layers[name], mask) for name, mask in remaining.items()}


def _step_in_blocks(
    scores: Scores, values: Mapping[str, Tensor], alive: Masks, count: Count, block: int
) -> Masks:
    wide = [name for name, mask in alive.items() if mask[0].numel() >= block]
    blocks = [
        {name: split_blocks(tensors[name], block) for name in wide} for tensors in (scores, values, alive)
    ]
    remaining = prune_step(*blocks, scope="unit", count=count, keep_one=False)
    return {
        name: join_blocks(remaining[name], mask) if name in remaining else mask
        for name, mask in alive.items()
    }


def _unit_scores(group: Group, scores: Mapping[str, Tensor], criterion: Method) -> Tensor:
    if not criterion.traits.get("one_draw"):
        return sum_by_unit(group, scores)
    unit_scores = torch.zeros(group.size, dtype=torch.float64)
    for member in reversed(producers(group)):  # of several layers that make a unit the first decides
        name, dim = parameter_dims(member)[0]
        if name in scores:  # layers that share a weight have it under the first one's name
            draws = scores[name].movedim(dim, 0).flatten(1)[:, 0]
            unit_scores.index_copy_(0, member.root, draws[member.index])
    return unit_scores

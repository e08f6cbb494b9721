"""One round of pruning: criterion -> scores -> pools -> the step -> masks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.activations import producers
from pruning.checks import (
    check_example,
    check_groups_fit,
    check_network,
    check_sample,
    check_seed,
    check_stored_weights,
    names_of_layers,
)
from pruning.criteria import ScoringContext, absolute_weights, criteria, score_weights
from pruning.dataflow import find_data_flow, find_unprunable
from pruning.granularity import granularities, join_blocks, resolve_amount, split_blocks
from pruning.layer_names import find_protected_layers
from pruning.masking import (
    Group,
    Masks,
    Scores,
    alive_units,
    check_masks,
    full_masks,
    mask_units,
    mask_weights,
    parameter_dims,
    prunable_layers,
    sum_by_unit,
)
from pruning.registry import Method, to_float, to_int
from pruning.schedules import schedules, split_into_passes
from pruning.step import SCOPES, Count, Scope, prune_step, share_by_erk

Spec = str | Mapping[str, Any] | Method  # options of a method are literals of any type
Sample = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Rules:
    """What the passes of a round have in common; `prunable` are parameter names, `block` is the m of n:m.

    `keep_one` keeps the best unit of every group: an amount below 1 is not to empty a layer.
    """

    criterion: Method
    scope: Scope
    groups: Sequence[Group] | None
    prunable: Collection[str]
    block: int | None
    keep_one: bool
    invert: bool


def prune(
    net: nn.Module,
    *,
    amount: float,
    criterion: Spec = "magnitude",
    granularity: Spec = "weight",
    scope: str = "global",
    schedule: Spec = "one_shot",
    round: int = 1,
    masks: Masks | None = None,
    protect: Collection[str] = (),
    only: Collection[str] = (),
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
    sample: Sample | None = None,
    accumulated: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    invert: bool = False,
) -> Masks:
    """Return masks after one round of pruning: {parameter name: bool, True = alive}, on the CPU.

    `amount` in [0, 1] is the fraction of all weights, units or channels to prune; what `masks` has pruned
    counts already and stays pruned. To an adaptive schedule it is a ceiling. Granularity `channel` needs
    `example_input`, images [N, C, H, W] of which only the shape counts, or the `groups` of an earlier trace.
    `protect` and `only` take names of layers and patterns (`layer4.*`, `*.downsample.*`; `*` crosses dots),
    `input` and `output`: layers of `protect` are left whole, and with `only` so are all others than its own;
    a unit or channel that such a layer makes stays. For `unit`, and for `output` or `input`, the network is
    run once to see which layers make the logits; without `example_input`, on an input that its layers
    suggest. `sample` (images, labels) is for
    criteria that look at data, `accumulated` the sums of an `Accumulator` for those that look at a training.
    `invert` prunes the best first, a control. `net` is untouched. What has weights and is not pruned is named
    in a warning. ValueError for bad values, unknown names, and networks
    that cannot be pruned.
    """
    pattern, score, plan = granularities.get(granularity), criteria.get(criterion), schedules.get(schedule)
    amount, round = _check_numbers(amount, pattern, scope, round)
    generator = torch.Generator().manual_seed(check_seed(seed))
    protected = _check_inputs(net, protect, only, example_input, sample, masks)
    _warn_unprunable(net, pattern, protected, example_input, groups)
    groups = make_groups(net, pattern, protect=protected, example_input=example_input, groups=groups)
    _check_methods(net, score, pattern, plan, groups, invert=invert)
    prunable = full_masks(net, groups, protect=protected)
    masks = {name: mask.cpu() for name, mask in (prunable | (masks or {})).items()}
    if not prunable:
        _check_nothing_asked(amount, protect, only)
        return masks
    block = pattern.options.get(pattern.traits.get("block", ""))
    keep_one = groups is not None and (amount < 1 or bool(plan.traits.get("adaptive")))
    rules = _Rules(score, cast(Scope, scope), groups, prunable.keys(), block, keep_one, invert)
    context = ScoringContext(net, {}, masks, generator, sample, groups, accumulated)
    return _run_passes(context, rules, partial(plan, amount=amount, round=round))


def _run_passes(context: ScoringContext, rules: _Rules, count: Count) -> Masks:
    masks = context.masks
    passes = int(rules.criterion.options.get(rules.criterion.traits.get("passes", ""), 1))
    for pass_count in split_into_passes(count, passes):
        context = replace(context, weights=_alive_weights(context.net, masks), masks=masks)
        scores = score_weights(rules.criterion, context)
        if rules.invert:
            scores = {name: -score for name, score in scores.items()}
        masks = _step(context, scores, pass_count, rules)
    return masks


def _alive_weights(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return the weights on the CPU, pruned entries at zero, whether the masks are applied to `net` or not.

    A weight with nothing pruned is the network's own tensor.
    """
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach().cpu() for name, mask in masks.items() if mask.dim() > 1}
    return mask_weights(weights, masks)


def _step(context: ScoringContext, scores: Scores, count: Count, rules: _Rules) -> Masks:
    # Of these criteria the scores are the absolute weights: one tensor serves as both.
    is_absolute = rules.criterion.traits.get("absolute") and not rules.invert
    values = scores if is_absolute else absolute_weights(context.weights)
    alive = {name: context.masks[name] for name in context.weights if name in rules.prunable}
    if rules.block is not None:
        return context.masks | _step_in_blocks(scores, values, alive, count, rules.block)
    if rules.groups is None:
        if rules.scope == "erk":
            count = share_by_erk(count, scores, values, alive)
        step = prune_step(scores, values, alive, scope=rules.scope, count=count, keep_one=False)
        return context.masks | step
    squares = {name: values[name].square() for name in context.weights}
    remaining = prune_step(
        {group.name: _unit_scores(group, scores, rules.criterion) for group in rules.groups},
        {group.name: sum_by_unit(group, squares).sqrt() for group in rules.groups},
        {group.name: alive_units(group, context.masks) for group in rules.groups},
        scope=rules.scope,
        count=count,
        keep_one=rules.keep_one,
    )
    masks = context.masks
    for group in rules.groups:
        masks = mask_units(group, remaining[group.name], masks)
    return masks


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


def make_groups(
    net: nn.Module,
    granularity: Spec,
    *,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
) -> tuple[Group, ...] | None:
    """Return what is pruned together: None for weights; units; or channels, traced unless in `groups`."""
    if groups is not None:
        check_groups_fit(net, groups)
    made = granularities.get(granularity)(net, protect=protect, example_input=example_input, groups=groups)
    return cast("tuple[Group, ...] | None", made)


def _warn_unprunable(
    net: nn.Module,
    granularity: Method,
    protected: Collection[str],
    example_input: Tensor | None,
    groups: Sequence[Group] | None,
) -> None:
    """Name in a warning what has weights and is not pruned; see `find_unprunable`."""
    is_traced = groups is None and granularity.name in ("unit", "channel")
    names = find_unprunable(net, find_data_flow(net, example_input) if is_traced else None)
    names = tuple(name for name in names if name.partition(" ")[0] not in protected)
    if names:
        suffix = f" and {len(names) - 8} more" if len(names) > 8 else ""
        # stacklevel 3: the line that calls `prune`
        warnings.warn(f"not pruned: {', '.join(names[:8])}{suffix}", stacklevel=3)


def _check_numbers(amount: float, granularity: Method, scope: str, round: int) -> tuple[float, int]:
    """Return the amount and the round as Python's numbers."""
    fraction, number = to_float(amount), to_int(round)
    if fraction is None or not 0 <= fraction <= 1:
        raise ValueError(f"amount is {amount!r}; it must be a fraction in [0, 1]")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(SCOPES)}")
    allowed = {"unit": ("weight", "nm"), "erk": ("weight",)}.get(scope)
    if allowed and granularity.name not in allowed:
        raise ValueError(
            f"scope {scope!r} is for granularity {' or '.join(allowed)}, not {granularity.name!r}"
        )
    if number is None or number < 1:
        raise ValueError(f"round is {round!r}; rounds count from 1")
    return resolve_amount(granularity, fraction), number


def _check_inputs(
    net: nn.Module,
    protect: Collection[str],
    only: Collection[str],
    example_input: Tensor | None,
    sample: Sample | None,
    masks: Masks | None,
) -> frozenset[str]:
    """Return the names of the protected layers. ValueError for an unusable network, input or mask."""
    protect, only = names_of_layers("protect", protect), names_of_layers("only", only)
    check_network(net)
    if example_input is not None:
        check_example(example_input)
    check_sample(sample)
    check_masks(net, masks or {})
    protected = find_protected_layers(net, protect, only=only, example_input=example_input)
    check_stored_weights(net, prunable_layers(net).keys() - protected)
    return protected


def check_criterion_fits(criterion: Method, granularity: Method, groups: Sequence[Group] | None) -> None:
    """Raise ValueError for a criterion of whole units and single weights: those of a unit would tie."""
    if groups is None and criterion.traits.get("groups"):
        raise ValueError(
            f"criterion {criterion.label!r} ranks whole units or channels, and granularity "
            f"{granularity.name!r} removes single weights: choose unit or channel, or another criterion"
        )


def check_invert(schedule: Method, *, invert: bool) -> None:
    """Raise ValueError for inverted scores and a schedule that compares the scores with a value."""
    if invert and schedule.traits.get("scores"):
        raise ValueError(
            f"schedule {schedule.label!r} counts what scores below a value, and the scores are inverted: "
            "choose another schedule"
        )


def _check_methods(
    net: nn.Module,
    criterion: Method,
    granularity: Method,
    schedule: Method,
    groups: Sequence[Group] | None,
    *,
    invert: bool,
) -> None:
    check_criterion_fits(criterion, granularity, groups)
    check_invert(schedule, invert=invert)
    if groups is None or not criterion.traits.get("norms"):
        return
    # A group without a norm has no scores: all of its units would tie in silence.
    parameters = dict(net.named_parameters())
    for group in groups:
        scales = (f"{member.module}.weight" for member in group.members if member.side == "norm")
        if not any(name in parameters for name in scales):
            raise ValueError(
                f"criterion {criterion.label!r} reads batch norms, and none with a scale follows "
                f"{group.name!r}: protect it, or choose another criterion"
            )


def _check_nothing_asked(amount: float, protect: Collection[str], only: Collection[str]) -> None:
    """Raise ValueError for an amount above 0 where no layer can be pruned."""
    if amount > 0:
        by_label = {
            label: list(names_of_layers(label, names))
            for label, names in (("only", only), ("protect", protect))
            if names
        }
        choice = " and ".join(f"{label} is {names}" for label, names in by_label.items())
        reason = f"{choice}: that" if by_label else "what makes the logits is never removed: it"
        raise ValueError(f"{reason} leaves nothing to prune")

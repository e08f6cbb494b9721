"""One round of pruning: criterion -> scores -> pools -> the step -> masks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.allocation import Allocation
from pruning.amounts import Amount, check_amount, check_one_amount, share_out
from pruning.checks import (
    check_example,
    check_groups_fit,
    check_network,
    check_sample,
    check_seed,
    check_stored_weights,
    names_of_layers,
)
from pruning.criteria import ScoringContext, criteria
from pruning.dataflow import find_data_flow, find_unprunable
from pruning.granularity import granularities, resolve_amount
from pruning.hyperparameters import to_int
from pruning.layer_names import find_protected_layers
from pruning.mask_selection import SCOPES, Scope
from pruning.masking import (
    Group,
    Masks,
    check_masks,
    full_masks,
    prunable_layers,
)
from pruning.passes import Rules, run_passes
from pruning.registry import Method
from pruning.schedules import schedules

Spec = str | Mapping[str, Any] | Method  # options of a method are literals of any type
Sample = tuple[Tensor, Tensor]


def prune(
    net: nn.Module,
    *,
    amount: Amount,
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
    round_to: int = 1,
    allocation: Allocation | None = None,
) -> Masks:
    """Return masks after one round of pruning: {parameter name: bool, True = alive}, on the CPU.

    Args:
        net: The network, which is left untouched. What has weights and is not pruned is named in a warning.
        amount: The fraction in [0, 1] of all weights, units or channels to prune, those that `masks` has
            pruned included; to an adaptive schedule a ceiling. A mapping gives amounts by layer,
            `{"layer4.*": 0.75, "*": 0.5}`: the first name or pattern that matches counts, and a layer without
            a match has amount 0.
        criterion: What scores weights or units; the lowest go. A name, `"name(option=value)"` or a mapping.
        granularity: What is removed: weight, unit, channel, head or nm.
        scope: What competes: `global`, `layer`, `erk`, or `unit` for weights.
        schedule: How much of the amount goes at each round.
        round: Counted from 1.
        masks: Those of the rounds before; what they have pruned stays pruned.
        protect: Layers that are left whole: names, patterns (`layer4.*`, `*.downsample.*`; `*` crosses dots),
            `input` and `output`. A unit or channel that such a layer makes stays.
        only: Layers of which alone something is pruned, in the same words.
        example_input: Images [N, C, H, W] of which only the shape counts; granularity `channel` needs them,
            or `groups`. For `unit`, `input` and `output` the network is run once to see which layers make the
            logits; without images, on an input that its layers suggest.
        groups: The groups of an earlier trace.
        sample: (images [N, C, H, W], labels [N]) for criteria that look at data.
        accumulated: The sums of an `Accumulator`, for criteria that look at a training.
        seed: Of all that is drawn.
        invert: Prune the highest scores, a control.
        round_to: The multiple of units, channels or heads that stays of each group, the nearest to what the
            amount leaves.
        allocation: For scope `global`: ranks by which layers compete in place of the scores.

    Raises:
        ValueError: For bad values, unknown names, and networks that cannot be pruned.
    """
    pattern, score, plan = granularities.get(granularity), criteria.get(criterion), schedules.get(schedule)
    amount, round = _check_numbers(amount, pattern, scope, round)
    generator = torch.Generator().manual_seed(check_seed(seed))
    protected = _check_inputs(net, protect, only, example_input, sample, masks)
    _warn_unprunable(net, pattern, protected, example_input, groups)
    groups = make_groups(net, pattern, protect=protected, example_input=example_input, groups=groups)
    _check_methods(net, score, pattern, plan, groups, invert=invert)
    if allocation is not None:
        check_allocation_fits(pattern, plan, scope=scope)
    prunable = full_masks(net, groups, protect=protected)
    masks = {name: mask.cpu() for name, mask in (prunable | (masks or {})).items()}
    shares = share_out(net, amount, groups=groups, protected=protected, example_input=example_input)
    if len(shares) > 1:
        check_one_amount(pattern, plan)
    amounts = [resolve_amount(pattern, share.amount) for share in shares]
    if not prunable:
        _check_nothing_asked(max(amounts), protect, only)
        return masks
    block = pattern.options.get(pattern.traits.get("block", ""))
    is_adaptive = bool(plan.traits.get("adaptive"))
    multiple = check_multiple(round_to, pattern, groups)
    rules = Rules(
        score,
        cast(Scope, scope),
        groups,
        prunable.keys(),
        block,
        is_adaptive,
        invert,
        multiple,
        allocation,
    )
    context = ScoringContext(net, {}, masks, generator, sample, groups, accumulated)
    counts = [partial(plan, amount=amount, round=round) for amount in amounts]
    return run_passes(context, rules, shares, counts)


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


def _check_numbers(
    amount: Amount, granularity: Method, scope: str, round: int
) -> tuple[float | dict[str, float], int]:
    """Return the amount, or each pattern's, and the round as Python's numbers."""
    fraction, number = check_amount(amount), to_int(round)
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(SCOPES)}")
    allowed = {"unit": ("weight", "nm"), "erk": ("weight",)}.get(scope)
    if allowed and granularity.name not in allowed:
        raise ValueError(
            f"scope {scope!r} is for granularity {' or '.join(allowed)}, not {granularity.name!r}"
        )
    if number is None or number < 1:
        raise ValueError(f"round is {round!r}; rounds count from 1")
    return fraction, number


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


def check_multiple(multiple: int, granularity: Method, groups: Sequence[Group] | None) -> int:
    """Return a multiple as Python's number. ValueError for one that is none, and for single weights."""
    number = to_int(multiple)
    if number is None or number < 1:
        raise ValueError(f"round_to is {multiple!r}; it must be 1 or more")
    if number > 1 and groups is None:
        raise ValueError(
            f"round_to is for units, channels and heads, and granularity {granularity.name!r} removes weights"
        )
    return number


def check_allocation_fits(granularity: Method, schedule: Method, *, scope: str = "global") -> None:
    """Raise ValueError where the methods decide themselves how much every layer loses."""
    if scope != "global":
        raise ValueError(f"an allocation ranks the units of all layers: scope is {scope!r}, and not 'global'")
    if granularity.name == "nm":
        raise ValueError(
            f"granularity {granularity.label!r} removes a fixed part of every row: choose weight, unit, "
            "channel or head"
        )
    if schedule.traits.get("adaptive"):
        raise ValueError(
            f"schedule {schedule.label!r} decides itself how much every layer loses: choose one_shot, "
            "iterative or cubic"
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

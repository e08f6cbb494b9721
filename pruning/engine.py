"""One pruning round: criterion -> scores -> pools -> the step -> masks."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.allocation import erk
from pruning.checks import (
    check_example,
    check_groups_fit,
    check_network,
    check_sample,
    check_seed,
    names_to_protect,
    one_line,
)
from pruning.criteria import Scene, criteria, magnitudes
from pruning.dataflow import DataFlow, data_flow, protected_layers, unpruned
from pruning.granularity import amount_for, blocks, granularities, join
from pruning.masking import (
    Group,
    Masks,
    Scores,
    alive_units,
    check_masks,
    entries,
    expand,
    full_masks,
    gather,
    prunable_layers,
    zeroed,
)
from pruning.own_weights import check_own_weights
from pruning.registry import Method
from pruning.scalars import real_number, whole_number
from pruning.schedules import in_passes, schedules
from pruning.step import SCOPES, Count, Scope, prune_step

Spec = str | Mapping[str, Any] | Method  # options of a method are literals of any type


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
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
    sample: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    invert: bool = False,
) -> Masks:
    """Masks after one round of pruning: {parameter name: bool, True = alive}. The network is untouched.

    `amount` in [0, 1] is the fraction of all weights, units or channels that is to be gone; what
    `masks` has removed already counts and stays removed. It may be any real number: `np.float32(0.1)` is
    the float that it holds, a little above 0.1. An adaptive schedule removes what it finds, and the amount
    is its ceiling. `channel` needs `example_input`, images [N, C, H, W] of which only the
    shape counts, or the `groups` of an earlier trace. For `unit`, and for `protect` with `output` or `input`,
    the network is run once to see which layers make the logits: without `example_input`, on an input that
    its layers suggest. `sample` (images, labels) is for criteria that look at data. `invert` removes the
    best first, a control. Masks are on the CPU. What has weights and is not pruned is named in a warning.
    ValueError for bad values, unknown names, and a network of which nothing right can be made.
    """
    pattern, score, plan = granularities.get(granularity), criteria.get(criterion), schedules.get(schedule)
    amount, round = _checked(amount, pattern, scope, round)
    amount = amount_for(pattern, amount)
    seed, protect = check_seed(seed), names_to_protect(protect)
    protected = _check_network(net, protect, example_input, sample, masks)
    grouped = groups is None and pattern.name in ("unit", "channel")
    _warn_unpruned(net, data_flow(net, example_input) if grouped else None, protected)
    groups = groups_of(net, pattern, protect=protected, example_input=example_input, groups=groups)
    check_grouped(score, pattern, groups)
    check_invert(plan, invert=invert)
    prunable = full_masks(net, groups, protect=protected)
    masks = {name: mask.cpu() for name, mask in (prunable | (masks or {})).items()}
    if not prunable and amount > 0:
        why = f"protect is {list(protect)}: that" if protect else "what makes the logits is never removed: it"
        raise ValueError(f"{why} leaves nothing to prune")
    if not prunable:
        return masks
    _check_norms(net, score, groups)
    step = partial(
        _step,
        prunable=prunable,
        groups=groups,
        block=pattern.options.get(pattern.traits.get("block", "")),
        scope=cast(Scope, scope),
        keep_one=groups is not None and (amount < 1 or bool(plan.traits.get("adaptive"))),
        inverted=invert,
    )
    generator = torch.Generator().manual_seed(seed)
    passes = int(score.options.get(score.traits.get("passes", ""), 1))
    for count in in_passes(partial(plan, amount=amount, round=round), passes):
        scene = Scene(net, _weights(net, masks), masks, generator, sample)
        scores = {name: -value if invert else value for name, value in _scores(score, scene).items()}
        masks = step(scene, scores, score, count)
    return masks


def _scores(criterion: Method, scene: Scene) -> Scores:
    try:
        return cast(Scores, criterion(scene))
    except (RuntimeError, IndexError) as error:  # torch's own, of a network that does not take the sample
        if scene.sample is None:
            raise
        raise ValueError(
            f"criterion {criterion.name!r} cannot score {type(scene.net).__name__} with this sample: "
            f"{one_line(error)}"
        ) from error


def _check_network(
    net: nn.Module,
    protect: Collection[str],
    example_input: Tensor | None,
    sample: tuple[Tensor, Tensor] | None,
    masks: Masks | None,
) -> frozenset[str]:
    """Names of the protected layers. ValueError for a network, input or mask that nothing can be made of."""
    check_network(net)
    if example_input is not None:
        check_example(example_input)
    check_sample(sample)
    check_masks(net, masks or {})
    protected = protected_layers(net, protect, example_input=example_input)
    check_own_weights(net, prunable_layers(net).keys() - protected)
    return protected


def _warn_unpruned(net: nn.Module, flow: DataFlow | None, protected: Collection[str]) -> None:
    """Name in a warning what has weights and is not pruned; see `unpruned`."""
    names = unpruned(net, flow)
    names = tuple(name for name in names if name.partition(" ")[0] not in protected)
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        warnings.warn(f"not pruned: {', '.join(names[:8])}{more}", stacklevel=3)


def groups_of(
    net: nn.Module,
    granularity: Spec,
    *,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
) -> tuple[Group, ...] | None:
    """What is removed together: None for weights; units; or channels (traced, unless `groups` has them)."""
    if groups is not None:
        check_groups_fit(net, groups)
    found = granularities.get(granularity)(net, protect=protect, example_input=example_input, groups=groups)
    return cast("tuple[Group, ...] | None", found)


def check_grouped(criterion: Method, granularity: Method, groups: Sequence[Group] | None) -> None:
    """ValueError for single weights and a criterion that scores whole units: within one all would tie."""
    if groups is None and criterion.traits.get("groups"):
        raise ValueError(
            f"criterion {criterion.name!r} ranks whole units or channels, and granularity "
            f"{granularity.name!r} removes single weights: choose unit or channel, or another criterion"
        )


def check_invert(schedule: Method, *, invert: bool) -> None:
    """ValueError for inverted scores and a schedule that compares the scores with a value of its own."""
    if invert and schedule.traits.get("scores"):
        raise ValueError(
            f"schedule {schedule.name!r} counts what scores below a value, and the scores are inverted: "
            "choose another schedule"
        )


def _weights(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The masked weights, on the CPU: what is dead counts as zero, applied to the network or not.

    Those of a layer in which everything lives are the network's own.
    """
    parameters = dict(net.named_parameters())
    whole = {name: parameters[name].detach().cpu() for name, mask in masks.items() if mask.dim() > 1}
    return {
        name: weight if masks[name].numpy().all() else zeroed(weight, masks[name])
        for name, weight in whole.items()
    }


def _step(
    scene: Scene,
    scores: Scores,
    criterion: Method,
    count: Count,
    *,
    prunable: Collection[str],
    groups: Sequence[Group] | None,
    block: int | None,
    scope: Scope,
    keep_one: bool,
    inverted: bool,
) -> Masks:
    same = criterion.traits.get("absolute") and not inverted
    values = scores if same else magnitudes(scene.weights)
    alive = {name: scene.masks[name] for name in scene.weights if name in prunable}
    if block is not None:
        return scene.masks | _step_in_blocks(scores, values, alive, count, block)
    if groups is None:
        if scope == "erk":
            count = erk(count, scores, values, alive)
        return scene.masks | prune_step(scores, values, alive, scope=scope, count=count, keep_one=False)
    squares = {name: values[name].square() for name in scene.weights}
    survivors = prune_step(
        {group.name: _unit_scores(group, scores, criterion) for group in groups},
        {group.name: gather(group, squares).sqrt() for group in groups},
        {group.name: alive_units(group, scene.masks) for group in groups},
        scope=scope,
        count=count,
        keep_one=keep_one,
    )
    masks = scene.masks
    for group in groups:
        masks = expand(group, survivors[group.name], masks)
    return masks


def _step_in_blocks(
    scores: Scores, magnitudes: Mapping[str, Tensor], alive: Masks, count: Count, block: int
) -> Masks:
    wide = [name for name, mask in alive.items() if mask[0].numel() >= block]
    cut = [{name: blocks(tensors[name], block) for name in wide} for tensors in (scores, magnitudes, alive)]
    kept = prune_step(*cut, scope="unit", count=count, keep_one=False)
    return {name: join(kept[name], mask) if name in kept else mask for name, mask in alive.items()}


def _unit_scores(group: Group, scores: Mapping[str, Tensor], criterion: Method) -> Tensor:
    if not criterion.traits.get("one_draw"):
        return gather(group, scores)
    name, dim = entries(group.members[0])[0]
    draws = scores[name].movedim(dim, 0).flatten(1)[:, 0]
    return torch.empty(group.size, dtype=torch.float64).index_copy_(
        0, group.members[0].root, draws[group.members[0].index]
    )


def _check_norms(net: nn.Module, criterion: Method, groups: Sequence[Group] | None) -> None:
    """A criterion that reads batch norms cannot rank a group that has none: all would tie in silence."""
    if groups is None or not criterion.traits.get("norms"):
        return
    parameters = dict(net.named_parameters())
    for group in groups:
        scales = (f"{member.module}.weight" for member in group.members if member.side == "norm")
        if not any(name in parameters for name in scales):
            raise ValueError(
                f"criterion {criterion.name!r} reads batch norms, and none with a scale follows "
                f"{group.name!r}: protect it, or choose another criterion"
            )


def _checked(amount: float, granularity: Method, scope: str, round: int) -> tuple[float, int]:
    """The amount and the round as Python's numbers."""
    fraction, number = real_number(amount), whole_number(round)
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
    return fraction, number

"""One pruning round: criterion -> scores -> pools -> the step -> masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning.criteria import Scene, criteria
from pruning.masking import (
    Group,
    Masks,
    alive_units,
    entries,
    expand,
    full_masks,
    gather,
    prunable_layers,
    protected_layers,
    unit_groups,
)
from pruning.registry import Method
from pruning.schedules import schedules
from pruning.step import SCOPES, Scope, prune_step
from pruning.structure import trace

GRANULARITIES = ("weight", "unit", "channel")
Spec = str | Mapping[str, Any] | Method  # options of a method are literals of any type


def prune(
    net: nn.Module,
    *,
    amount: float,
    criterion: Spec = "magnitude",
    granularity: str = "weight",
    scope: str = "global",
    schedule: Spec = "one_shot",
    round: int = 1,
    masks: Masks | None = None,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
    sample: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Masks:
    """Masks after one round of pruning: {parameter name: bool, True = alive}. The network is untouched.

    `amount` in [0, 1] is the fraction of all weights, units or channels that is to be gone; what
    `masks` has removed already counts and stays removed. `channel` needs `example_input`
    [N, C, H, W], or the `groups` of an earlier trace. `sample` (images, labels) is for criteria
    that look at data. ValueError for bad values and unknown names.
    """
    _check(amount, granularity, scope, round)
    score, plan = criteria.get(criterion), schedules.get(schedule)
    groups = groups_of(net, granularity, protect=protect, example_input=example_input, groups=groups)
    masks = full_masks(net, groups, protect=protect) if masks is None else masks
    parameters = dict(net.named_parameters())
    scene = Scene(
        net,
        {name: parameters[name] for name in masks if parameters[name].dim() > 1},
        masks,
        torch.Generator().manual_seed(seed),
        sample,
    )
    count = partial(plan, amount=amount, round=round)
    step = partial(prune_step, scope=cast(Scope, scope), count=count, keep_one=bool(groups) and amount < 1)
    magnitudes = {name: weight.detach().double().abs() for name, weight in scene.weights.items()}
    scores = score(scene)
    if groups is None:
        return step(scores, magnitudes, {name: masks[name] for name in scene.weights})
    squares = {name: value.square() for name, value in magnitudes.items()}
    alive = step(
        {group.name: _unit_scores(group, scores, score) for group in groups},
        {group.name: gather(group, squares).sqrt() for group in groups},
        {group.name: alive_units(group, masks) for group in groups},
    )
    for group in groups:
        masks = expand(group, alive[group.name], masks)
    return masks


def groups_of(
    net: nn.Module,
    granularity: str,
    *,
    protect: Collection[str] = (),
    example_input: Tensor | None = None,
    groups: Sequence[Group] | None = None,
) -> tuple[Group, ...] | None:
    """What is removed together: None for weights; units; or channels (traced, unless `groups` has them)."""
    if granularity == "weight":
        return None
    if granularity == "unit":
        return unit_groups(net, protect=protect)
    if groups is None and example_input is None:
        raise ValueError("granularity 'channel' needs example_input, a batch of images to trace the network")
    found = groups if groups is not None else trace(net, cast(Tensor, example_input))
    return tuple(group for group in found if not _touches(group, protect, net))


def _touches(group: Group, protect: Collection[str], net: nn.Module) -> bool:
    kept = protected_layers(net, protect)
    single = len(prunable_layers(net)) == 1
    return any(member.module in kept and (member.side == "out" or single) for member in group.members)


def _unit_scores(group: Group, scores: Mapping[str, Tensor], criterion: Method) -> Tensor:
    if not criterion.traits.get("one_draw"):
        return gather(group, scores)
    name, dim = entries(group.members[0])[0]
    draws = scores[name].movedim(dim, 0).flatten(1)[:, 0]
    return torch.empty(group.size, dtype=torch.float64).index_copy_(
        0, group.members[0].root, draws[group.members[0].index]
    )


def _check(amount: float, granularity: str, scope: str, round: int) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount <= 1:
        raise ValueError(f"amount is {amount!r}; it must be a fraction in [0, 1]")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; it must be one of {', '.join(GRANULARITIES)}")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(SCOPES)}")
    if scope == "unit" and granularity != "weight":
        raise ValueError(f"scope 'unit' is for granularity 'weight': inside a {granularity} nothing competes")
    if round < 1:
        raise ValueError(f"round is {round!r}; rounds count from 1")

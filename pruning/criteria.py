"""Criteria: a score for every weight; those with the lowest are pruned first.

A criterion takes a `ScoringContext` and returns float64 scores in the shape of each weight. The score of a
unit or channel is the sum over its weights, so `l1` ranks rows by their 1-norm and `l2` by their 2-norm.
Criteria that need a gradient are in `gradient_criteria`, those by what a layer reads in
`activation_criteria`, by distances in `fpgm_criterion`, by the steps of a training in `accumulation`.

Traits: `data` (it looks at `ScoringContext.sample`), `on_device` (it scores in float64 on the device of the
network, by what `net`, `masks` and `sample` hold alone), `passes` (the hyper-parameter that says how often it
scores anew within one round), `one_draw` (a unit has the score of its first weight), `groups` (it scores
whole units alone), `norms` (it reads batch norms), `accumulates` (what every training step adds to
`ScoringContext.accumulated`), `absolute` (its scores are the absolute weights), `same_scores` (the criterion
whose scores it returns), `orders_like` (granularity -> the criterion that orders alike there, whatever the
network: the same are pruned, and a plan runs one of the two), `orders_like_in_layer` (the same where weights
compete within a layer alone), `of_linear` (the criterion whose scores it returns in a network that is one
Linear layer), `of_architecture` (whether it can score a network shows with any weights and images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pruning.checks import one_line
from pruning.masking import Group, Masks, Norm, Scores
from pruning.registry import Method, Registry

MODULES = ("gradient_criteria", "activation_criteria", "fpgm_criterion", "accumulation")
criteria = Registry(
    "criterion", modules=tuple(f"pruning.{module}" for module in MODULES), positional=("context",)
)


def representative(criterion: str, granularity: str, *, by_order: bool = True, in_layer: bool = False) -> str:
    """Return the criterion, in text form, that stands for all that prune the same at a granularity.

    Without `by_order` only for those with the very same scores: a schedule may compare these with a value.
    With `in_layer` also for those that order the weights of every layer alike, and those of two layers not.
    """
    traits = criteria.get(criterion).traits
    equal = traits.get("same_scores")
    for trait in ("orders_like", *(["orders_like_in_layer"] if in_layer else [])):
        if equal is None and by_order:
            equal = traits.get(trait, {}).get(granularity)
    if equal is None:
        return criterion
    return representative(str(equal), granularity, by_order=by_order, in_layer=in_layer)


def absolute_weights(weights: Mapping[str, Tensor]) -> Scores:
    """Return the absolute weights in float64."""
    return {name: weight.abs().double() for name, weight in weights.items()}


@dataclass(frozen=True)
class ScoringContext:
    """What a criterion may look at.

    `weights` are the prunable weights by parameter name, masked, detached and on the CPU, where the scores
    belong too; `masks` say which of them are alive; `sample` is (images [n, C, H, W], labels [n]) for
    criteria that look at data; `generator` is seeded for this round; `groups` are what units or channels
    are made of, None for single weights; `accumulated` are sums over the steps of a training (`Accumulator`).
    """

    net: nn.Module
    weights: Mapping[str, Tensor]
    masks: Masks
    generator: torch.Generator
    sample: tuple[Tensor, Tensor] | None = None
    groups: Sequence[Group] | None = None
    accumulated: Mapping[str, Tensor] | None = None

    def require_sample(self, criterion: str) -> tuple[Tensor, Tensor]:
        """Return the sample. ValueError, which names the criterion, without one."""
        if self.sample is None or not len(self.sample[0]):
            raise ValueError(
                f"criterion {criterion!r} needs sample, a pair (images [n, C, H, W], labels [n])"
            )
        return self.sample

    def require_groups(self, criterion: str) -> Sequence[Group]:
        """Return the groups. ValueError, which names the criterion, where single weights are pruned."""
        if self.groups is None:
            raise ValueError(
                f"criterion {criterion!r} needs groups of units or channels, not of single weights"
            )
        return self.groups

    def require_accumulated(self, criterion: str) -> Scores:
        """Return the sums over training steps, of every weight. ValueError, which names the criterion."""
        if self.accumulated is None:
            raise ValueError(
                f"criterion {criterion!r} sums over the steps of a training, and there was none: use it with "
                "when: during, or give accumulated, the sums of a pruning.Accumulator"
            )
        for name, weight in self.weights.items():
            if name not in self.accumulated or self.accumulated[name].shape != weight.shape:
                raise ValueError(
                    f"accumulated has no sums of {name!r} in the shape {tuple(weight.shape)}: it is of "
                    "another network"
                )
        return {name: self.accumulated[name].detach().cpu().double() for name in self.weights}


Scene = ScoringContext  # its former name, which plug-ins import


def score_weights(criterion: Method, context: ScoringContext) -> Scores:
    """Return a criterion's scores. ValueError where the network does not take the sample."""
    try:
        return cast(Scores, criterion(context))
    except (RuntimeError, IndexError) as error:  # torch's own
        if context.sample is None:
            raise
        raise ValueError(
            f"criterion {criterion.label!r} cannot score {type(context.net).__name__} with this sample: "
            f"{one_line(error)}"
        ) from error


def check_finite(criterion: str, scores: Scores) -> Scores:
    """Return the scores. ValueError, which names the criterion, where one is not a finite number."""
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"criterion {criterion!r} gives scores of {name!r} that are not finite numbers")
    return scores


@criteria.register(summary="absolute weight", paper="Han et al., NeurIPS 2015", absolute=True)
def magnitude(context: ScoringContext) -> Scores:
    """|w|."""
    return absolute_weights(context.weights)


@criteria.register(
    summary="1-norm of the unit or channel",
    paper="Li et al., ICLR 2017",
    absolute=True,
    same_scores="magnitude",
)
def l1(context: ScoringContext) -> Scores:
    """|w|, which sums to the 1-norm of a row or group."""
    return absolute_weights(context.weights)


@criteria.register(
    summary="2-norm of the unit or channel",
    paper="He et al., IJCAI 2018",
    orders_like={"weight": "magnitude", "nm": "magnitude"},
)
def l2(context: ScoringContext) -> Scores:
    """w^2, which sums to the squared 2-norm of a row or group: the order is that of the norm."""
    return {name: weight.double().square() for name, weight in context.weights.items()}


@criteria.register(
    summary="squared weight, relative to the larger ones of its layer",
    paper="Lee et al., LAMP, ICLR 2021",
    orders_like_in_layer={"weight": "magnitude", "nm": "magnitude"},
)
def lamp(context: ScoringContext) -> Scores:
    """w^2 over the sum of v^2 of the alive weights v of its layer, w itself and those after it by size.

    Weights of one size are in the order of their index, each with those after it in its sum: sorted, as in
    the authors' code. It is for scope `global`: the largest weight of every layer has the score 1 and leaves
    last, and within a layer the order is that of `magnitude`. A unit or channel has the sum over its weights,
    of which the paper says nothing.
    """
    return {name: _lamp_scores(weight) for name, weight in context.weights.items()}


def _lamp_scores(weight: Tensor) -> Tensor:
    squares, order = weight.double().square().flatten().sort(stable=True)
    # Summed from the largest on: the total less a sum from the smallest would lose the digits of the last.
    remaining = squares.flip(0).cumsum(0).flip(0)
    sorted_scores = torch.where(squares == 0, 0.0, squares / remaining)  # where all are 0, 0 / 0
    return torch.empty_like(squares).index_copy_(0, order, sorted_scores).reshape(weight.shape)


@criteria.register(summary="a seeded draw: the baseline of every comparison", one_draw=True)
def random(context: ScoringContext) -> Scores:
    """Uniform in [0, 1), drawn in the order of the parameters.

    A unit or channel is judged by one draw, that of its first weight: the sum over many would favour
    large units.
    """
    return {
        name: torch.rand(weight.shape, generator=context.generator, dtype=torch.float64)
        for name, weight in context.weights.items()
    }


@criteria.register(
    summary="scale of the batch norms behind a unit or channel", paper="Liu et al., ICCV 2017", norms=True
)
def bn_scale(context: ScoringContext) -> Scores:
    """|gamma| of every batch norm that the unit or channel goes through; its weights count nothing.

    ValueError for single weights, or where no batch norm has a scale.
    """
    parameters = dict(context.net.named_parameters())
    scales = [
        f"{name}.weight"
        for name, module in context.net.named_modules()
        if isinstance(module, Norm) and f"{name}.weight" in context.masks
    ]
    if not scales:
        raise ValueError(
            "criterion 'bn_scale' ranks units and channels by the batch norms behind them; "
            "there are none here, or the granularity is 'weight': choose another criterion"
        )
    zeros = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in context.weights.items()}
    return zeros | {name: parameters[name].detach().cpu().double().abs() for name in scales}

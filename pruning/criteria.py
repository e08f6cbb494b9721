"""Criteria: a score for every weight; those with the lowest are pruned first.

A criterion takes a `ScoringContext` and returns float64 scores in the shape of each weight. The score of a
unit or channel is the sum over its weights, so `l1` ranks rows by their 1-norm and `l2` by their 2-norm.
Criteria that need a gradient are in `gradient_criteria`, the one by QR in `qr_criterion`.

Traits: `data` (it looks at `ScoringContext.sample`), `passes` (the hyper-parameter that says how often it
scores anew within one round), `one_draw` (a unit has the score of its first weight), `groups` (it scores
whole units alone), `norms` (it reads batch norms), `absolute` (its scores are the absolute weights),
`same_scores` (the criterion whose scores it returns), `orders_like` (granularity -> the criterion that orders
alike there, whatever the network: the same are pruned, and a plan runs one of the two), `of_linear` (the
criterion whose scores it returns in a network that is one Linear layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pruning.checks import one_line
from pruning.masking import Masks, Norm, Scores
from pruning.registry import Method, Registry

criteria = Registry(
    "criterion", modules=("pruning.gradient_criteria", "pruning.qr_criterion"), positional=("context",)
)


def representative(criterion: str, granularity: str, *, by_order: bool = True) -> str:
    """Return the criterion, in text form, that stands for all that prune the same at a granularity.

    Without `by_order` only for those with the very same scores: a schedule may compare these with a value.
    """
    traits = criteria.get(criterion).traits
    equal = traits.get("same_scores")
    if equal is None and by_order:
        equal = traits.get("orders_like", {}).get(granularity)
    return criterion if equal is None else representative(str(equal), granularity, by_order=by_order)


def absolute_weights(weights: Mapping[str, Tensor]) -> Scores:
    """Return the absolute weights in float64."""
    return {name: weight.abs().double() for name, weight in weights.items()}


@dataclass(frozen=True)
class ScoringContext:
    """What a criterion may look at.

    `weights` are the prunable weights by parameter name, masked, detached and on the CPU, where the scores
    belong too; `masks` say which of them are alive; `sample` is (images [n, C, H, W], labels [n]) for
    criteria that look at data; `generator` is seeded for this round.
    """

    net: nn.Module
    weights: Mapping[str, Tensor]
    masks: Masks
    generator: torch.Generator
    sample: tuple[Tensor, Tensor] | None = None

    def require_sample(self, criterion: str) -> tuple[Tensor, Tensor]:
        """Return the sample. ValueError, which names the criterion, without one."""
        if self.sample is None or not len(self.sample[0]):
            raise ValueError(
                f"criterion {criterion!r} needs sample, a pair (images [n, C, H, W], labels [n])"
            )
        return self.sample


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

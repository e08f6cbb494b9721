"""What leaves first: a score for every weight.

A criterion takes a `Scene` and gives float64 scores in the shape of each weight; larger stays. The
score of a unit or channel is the sum over its weights, so `l1` ranks rows by their 1-norm and `l2`
by their 2-norm. Criteria that need a gradient are in `gradient_criteria`.

Traits: `data` (it looks at `Scene.sample`), `passes` (the hyper-parameter that says how often it
scores anew within one round), `one_draw` (a unit has the score of its first weight), `norms` (it
reads batch norms), `absolute` (its scores are the absolute weights), `same_scores` (the name of the
criterion whose scores it gives), `orders_like` (granularity -> the name of the criterion that orders
alike there, whatever the network: the same are removed, and a plan runs one of the two).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.masking import Masks, Norm, Scores
from pruning.registry import Registry

criteria = Registry("criterion")


def representative(criterion: str, granularity: str, *, by_order: bool = True) -> str:
    """The criterion, in text form, that stands for all that remove the same at a granularity.

    Without `by_order` only for those with the very same scores: a schedule may compare these with a value.
    """
    method = criteria.get(criterion)
    other = method.traits.get("same_scores")
    if other is None and by_order:
        other = method.traits.get("orders_like", {}).get(granularity)
    return criterion if other is None else representative(str(other), granularity, by_order=by_order)


def magnitudes(weights: Mapping[str, Tensor]) -> Scores:
    """The absolute weights, float64."""
    return {name: weight.abs().double() for name, weight in weights.items()}


@dataclass(frozen=True)
class Scene:
    """What a criterion may look at.

    `weights` are the prunable weights by parameter name, masked, detached and on the CPU, where the
    scores belong too; `masks` tells which of them live;
    `sample` is (images [n, C, H, W], labels [n]) for criteria that look at data; `generator` is
    seeded for this round.
    """

    net: nn.Module
    weights: Mapping[str, Tensor]
    masks: Masks
    generator: torch.Generator
    sample: tuple[Tensor, Tensor] | None = None


@criteria.register(summary="absolute weight", paper="Han et al., NeurIPS 2015", absolute=True)
def magnitude(scene: Scene) -> Scores:
    """|w|."""
    return magnitudes(scene.weights)


@criteria.register(
    summary="1-norm of the unit or channel",
    paper="Li et al., ICLR 2017",
    absolute=True,
    same_scores="magnitude",
)
def l1(scene: Scene) -> Scores:
    """|w|, which sums to the 1-norm of a row or group."""
    return magnitudes(scene.weights)


@criteria.register(
    summary="2-norm of the unit or channel",
    paper="He et al., IJCAI 2018",
    orders_like={"weight": "magnitude", "nm": "magnitude"},
)
def l2(scene: Scene) -> Scores:
    """w^2, which sums to the squared 2-norm of a row or group: the order is that of the norm."""
    return {name: weight.double().square() for name, weight in scene.weights.items()}


@criteria.register(summary="a seeded draw: the baseline of every comparison", one_draw=True)
def random(scene: Scene) -> Scores:
    """Uniform in [0, 1), drawn in the order of the parameters.

    A unit or channel is judged by one draw, that of its first weight: the sum over many would favour
    large units.
    """
    return {
        name: torch.rand(weight.shape, generator=scene.generator, dtype=torch.float64)
        for name, weight in scene.weights.items()
    }


@criteria.register(
    summary="scale of the batch norms behind a unit or channel", paper="Liu et al., ICCV 2017", norms=True
)
def bn_scale(scene: Scene) -> Scores:
    """|gamma| of every batch norm that the unit or channel goes through; its weights count nothing.

    ValueError for single weights, or where no batch norm has a scale.
    """
    parameters = dict(scene.net.named_parameters())
    scales = [
        f"{name}.weight"
        for name, module in scene.net.named_modules()
        if isinstance(module, Norm) and f"{name}.weight" in scene.masks
    ]
    if not scales:
        raise ValueError(
            "criterion 'bn_scale' ranks units and channels by the batch norms behind them; "
            "there are none here, or the granularity is 'weight': choose another criterion"
        )
    weights = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in scene.weights.items()}
    return weights | {name: parameters[name].detach().cpu().double().abs() for name in scales}

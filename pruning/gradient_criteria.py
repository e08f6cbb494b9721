"""Criteria that need a gradient: taylor, snip, grasp, synflow.

All of them score a float64 copy of the network with the masks applied, so that the network itself is
left untouched bit for bit. The copy is in eval mode: batch norm uses its running statistics and
dropout is off, so that the score is that of the function which is evaluated, does not depend on how
the sample is cut into batches, and no statistics move. The reference code of Tanaka et al. does so
too, for all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.criteria import Scene, criteria
from pruning.masking import Norm, Scores, apply_masks
from pruning.registry import Between

CHUNK = 16  # images at a time: float64 with a graph for second derivatives is large
Passes = Annotated[int, Between(1, 10_000)]
Temperature = Annotated[float, Between(0, above=True, under=True)]


@criteria.register(
    summary="squared first-order change of the loss",
    paper="Molchanov et al., CVPR 2019",
    data=True,
    orders_like={"weight": "snip", "nm": "snip"},
)
def taylor(scene: Scene) -> Scores:
    """(g w)^2, with g the gradient of the mean cross-entropy of the sample.

    A unit or channel has the sum over its weights: of the paper's two scores for a set of
    parameters the one that adds up individual contributions.
    """
    return _scores(scene, "taylor", [change.square() for change in _first_order(scene, "taylor")])


@criteria.register(summary="connection sensitivity", paper="Lee et al., SNIP, ICLR 2019", data=True)
def snip(scene: Scene) -> Scores:
    """|g w|, with g the gradient of the mean cross-entropy of the sample.

    The paper divides by the sum over the network, which changes no order.
    """
    return _scores(scene, "snip", [change.abs() for change in _first_order(scene, "snip")])


@criteria.register(summary="gradient flow after removal", paper="Wang et al., GraSP, ICLR 2020", data=True)
def grasp(scene: Scene, *, temperature: Temperature = 200.0) -> Scores:
    """w H g: the paper's S = -w H g is largest where removal harms the gradient flow least, and leaves first.

    g and H are of the mean cross-entropy of the sample, its logits divided by `temperature`.
    """
    images, labels = _sample(scene, "grasp")
    twin = _twin(scene)
    weights = _weights(twin, scene)
    fixed = _gradients(_losses(twin, images, labels, temperature), weights)
    flows = (
        _flow(torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True), fixed)
        for loss in _losses(twin, images, labels, temperature)
    )
    products = _gradients(flows, weights)
    return _scores(scene, "grasp", [weight * hg for weight, hg in zip(weights, products, strict=True)])


@criteria.register(
    summary="synaptic flow: no data, no layer collapse",
    paper="Tanaka et al., SynFlow, NeurIPS 2020",
    data=True,
    passes="rounds",
)
def synflow(scene: Scene, *, rounds: Passes = 100) -> Scores:
    """|w| dR/d|w|, R = 1^T (prod |W_l|) 1: the flow of an image of ones through absolute weights.

    Within one round of pruning the engine prunes and scores anew `rounds` times, with density d^(k / n)
    after pass k: one pass alone may empty a layer. What is added and not multiplied (biases, shifts
    and means of batch norms) is 0 in R, so that the scores of every layer sum to R itself, the
    conservation from which the guarantee follows. Of the sample only the shape of an image is used.
    R of a deep network overflows float32.
    """
    images, _ = _sample(scene, "synflow")
    twin = _twin(scene)
    with torch.no_grad():
        _make_linear(twin)
    weights = _weights(twin, scene)
    ones = torch.ones_like(images[:1], dtype=torch.float64, device=weights[0].device)
    gradients = _gradients([twin(ones).sum()], weights)
    return _scores(scene, "synflow", [weight * g for weight, g in zip(weights, gradients, strict=True)])


def _make_linear(twin: nn.Module) -> None:
    for name, parameter in twin.named_parameters():
        parameter.mul_(0.0 if name.endswith("bias") else parameter.sign())
    for module in twin.modules():
        if isinstance(module, Norm) and module.running_mean is not None:
            module.running_mean.zero_()


def _first_order(scene: Scene, criterion: str) -> list[Tensor]:
    """g w of every weight."""
    images, labels = _sample(scene, criterion)
    twin = _twin(scene)
    weights = _weights(twin, scene)
    gradients = _gradients(_losses(twin, images, labels, 1.0), weights)
    return [weight * g for weight, g in zip(weights, gradients, strict=True)]


def _sample(scene: Scene, criterion: str) -> tuple[Tensor, Tensor]:
    if scene.sample is None or not len(scene.sample[0]):
        raise ValueError(f"criterion {criterion!r} needs sample, a pair (images [n, C, H, W], labels [n])")
    return scene.sample


def _twin(scene: Scene) -> nn.Module:
    twin = deepcopy(scene.net).double().eval().requires_grad_(True)
    apply_masks(twin, scene.masks)
    return twin


def _weights(twin: nn.Module, scene: Scene) -> list[Tensor]:
    parameters = dict(twin.named_parameters())
    return [parameters[name] for name in scene.weights]


def _losses(twin: nn.Module, images: Tensor, labels: Tensor, temperature: float) -> Iterator[Tensor]:
    """Parts that add up to the mean cross-entropy of the sample."""
    device = next(twin.parameters()).device
    for part, target in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        logits = twin(part.to(device, torch.float64)) / temperature
        yield functional.cross_entropy(logits, target.to(device), reduction="sum") / len(labels)


def _flow(gradients: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """The inner product of g with itself, one factor held fixed: its gradient is H g."""
    return torch.stack([(g * other).sum() for g, other in zip(gradients, fixed, strict=True)]).sum()


def _gradients(parts: Iterable[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the sum of the parts, each of which is freed before the next is computed."""
    total = [torch.zeros_like(weight) for weight in weights]
    for part in parts:
        for sum_, gradient in zip(
            total, torch.autograd.grad(part, weights, materialize_grads=True), strict=True
        ):
            sum_ += gradient
    return total


def _scores(scene: Scene, criterion: str, values: list[Tensor]) -> Scores:
    scores = {name: value.detach().cpu() for name, value in zip(scene.weights, values, strict=True)}
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"criterion {criterion!r} gives scores of {name!r} that are not finite numbers")
    return scores

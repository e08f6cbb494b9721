"""Criteria that need a gradient: taylor, snip, fisher, grasp, synflow.

All of them score a float64 copy of the network with the masks applied, so that the network itself is left
untouched bit for bit. The copy is in eval mode: batch norm uses its running statistics and dropout is off, so
that the score is that of the function which is evaluated, does not depend on how the sample is cut into
batches, and no statistics move. The reference code of Tanaka et al. does so too, for all of these.

They score on the network's own device, and return scores on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.criteria import ScoringContext, check_finite, criteria
from pruning.eval_mode import float64_copy
from pruning.hyperparameters import Between
from pruning.masking import Norm, Scores, apply_masks

DARK = 2.0**-64  # a power of two: what is linear keeps its bits
CHUNK_SIZE = 16  # images at a time: float64 with a graph for second derivatives is large
Passes = Annotated[int, Between(1, 10_000)]
Temperature = Annotated[float, Between(0, open_low=True, open_high=True)]


@criteria.register(
    summary="squared first-order change of the loss",
    paper="Molchanov et al., CVPR 2019",
    data=True,
    on_device=True,
    orders_like={"weight": "snip", "nm": "snip"},
)
def taylor(context: ScoringContext) -> Scores:
    """(g w)^2, with g the gradient of the mean cross-entropy of the sample.

    A unit or channel has the sum over its weights: of the paper's two scores for a set of
    parameters the one that adds up individual contributions.
    """
    return _scores(context, "taylor", [change.square() for change in _first_order(context, "taylor")])


@criteria.register(
    summary="connection sensitivity", paper="Lee et al., SNIP, ICLR 2019", data=True, on_device=True
)
def snip(context: ScoringContext) -> Scores:
    """|g w|, with g the gradient of the mean cross-entropy of the sample.

    The paper divides by the sum over the network, which changes no order.
    """
    return _scores(context, "snip", [change.abs() for change in _first_order(context, "snip")])


@criteria.register(
    summary="second-order change of the loss, by the diagonal of the empirical Fisher information",
    paper="LeCun et al., Optimal Brain Damage, NIPS 1989; Theis et al., 2018",
    data=True,
    on_device=True,
)
def fisher(context: ScoringContext) -> Scores:
    """F w^2 / 2, with F the mean over the sample of g_n^2, g_n the gradient of one image's cross-entropy.

    Optimal Brain Damage with the diagonal of the empirical Fisher information in place of that of the
    Hessian, as Theis et al. have it. The gradients are squared image by image, and with the labels
    of the sample: the square of the mean gradient, as in `taylor`, is another number, and near 0 once a
    network is trained. A unit or channel has the sum over its weights. A pass for every image.
    """
    images, labels = context.require_sample("fisher")
    net, weights = _masked_copy(context)
    information = [torch.zeros_like(weight) for weight in weights]
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        gradients = _gradients(_losses(net, image, label, 1.0), weights)
        for total, gradient in zip(information, gradients, strict=True):
            total += gradient.square() / len(labels)
    return _scores(context, "fisher", [f * w.square() / 2 for f, w in zip(information, weights, strict=True)])


@criteria.register(
    summary="gradient flow after removal", paper="Wang et al., GraSP, ICLR 2020", data=True, on_device=True
)
def grasp(context: ScoringContext, *, temperature: Temperature = 200.0) -> Scores:
    """w H g: the paper's S = -w H g is largest where removal harms the gradient flow least, and leaves first.

    g and H are of the mean cross-entropy of the sample, its logits divided by `temperature`.
    """
    images, labels = context.require_sample("grasp")
    net, weights = _masked_copy(context)
    fixed = _gradients(_losses(net, images, labels, temperature), weights)
    flows = (
        _flow(torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True), fixed)
        for loss in _losses(net, images, labels, temperature)
    )
    # torch's fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        products = _gradients(flows, weights)
    return _scores(context, "grasp", [weight * hg for weight, hg in zip(weights, products, strict=True)])


@criteria.register(
    summary="synaptic flow: no data, no layer collapse",
    paper="Tanaka et al., SynFlow, NeurIPS 2020",
    data=True,
    on_device=True,
    passes="rounds",
    of_architecture=True,
    of_linear="magnitude",  # dR/d|w| of one layer is 1
)
def synflow(context: ScoringContext, *, rounds: Passes = 100) -> Scores:
    """|w| dR/d|w|, R = 1^T (prod |W_l|) 1: the flow of an image of ones through absolute weights.

    Within one round of pruning the engine prunes and scores anew `rounds` times, with density d^(k / n)
    after pass k: one pass alone may empty a layer. What is added and not multiplied (biases, shifts
    and means of batch norms) is 0 in R, so that the scores of every layer sum to R itself, the
    conservation from which the guarantee follows. Of the sample only the shape of an image is used.
    R of a deep network overflows float32.

    Where an activation bends (ReLU6, GELU) the image is so dark that it does not: of ones, nearly all scores
    of a MobileNet would be 0. ValueError for a network in which R is no such flow.
    """
    images, _ = context.require_sample("synflow")
    net, weights = _masked_copy(context)
    _make_linear(net)
    ones = torch.ones_like(images[:1], dtype=torch.float64, device=weights[0].device)
    for image in (ones, DARK * ones):
        gradients, is_linear = _flow_gradients(net, image, weights)
        scores = [weight * g for weight, g in zip(weights, gradients, strict=True)]
        if is_linear and not any((score < 0).any() for score in scores):
            return _scores(context, "synflow", scores)
    _scores(context, "synflow", scores)
    raise ValueError(
        f"criterion 'synflow' needs a network that passes a flow on, and {type(context.net).__name__} does "
        "not (a layer or group norm, softmax, a parameter that is added): choose another criterion"
    )


def _flow_gradients(
    net: nn.Module, image: Tensor, weights: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], bool]:
    """Return the gradients of the sum of all outputs R, and whether R is linear where the image is."""
    image = image.clone().requires_grad_()
    flow = net(image).sum()
    in_image, *gradients = torch.autograd.grad(flow, [image, *weights], materialize_grads=True)
    # Euler: a linear R is the image times its derivative.
    difference = float(((image * in_image).sum() - flow).detach())
    return tuple(gradients), abs(difference) <= 1e-6 * abs(float(flow.detach()))


@torch.no_grad()
def _make_linear(net: nn.Module) -> None:
    """Make weights absolute, and set to zero what is added and not multiplied, in place."""
    for name, parameter in net.named_parameters():
        parameter.mul_(0.0 if name.endswith("bias") else parameter.sign())
    for module in net.modules():
        if isinstance(module, Norm) and module.running_mean is not None:
            module.running_mean.zero_()


def _first_order(context: ScoringContext, criterion: str) -> list[Tensor]:
    """Return g w of every weight."""
    images, labels = context.require_sample(criterion)
    net, weights = _masked_copy(context)
    gradients = _gradients(_losses(net, images, labels, 1.0), weights)
    return [weight * g for weight, g in zip(weights, gradients, strict=True)]


def _masked_copy(context: ScoringContext) -> tuple[nn.Module, list[Tensor]]:
    """Return a float64 copy with the masks applied, and its prunable weights in the context's order."""
    copy = float64_copy(context.net)
    apply_masks(copy, context.masks)
    parameters = dict(copy.named_parameters())
    return copy, [parameters[name] for name in context.weights]


def _losses(net: nn.Module, images: Tensor, labels: Tensor, temperature: float) -> Iterator[Tensor]:
    """Yield losses of chunks that add up to the mean cross-entropy of the sample."""
    device = next(net.parameters()).device
    for chunk, target in zip(images.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
        logits = net(chunk.to(device, torch.float64)) / temperature
        yield functional.cross_entropy(logits, target.to(device), reduction="sum") / len(labels)


def _flow(gradients: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """Return the inner product of g with itself, one factor held fixed: its gradient is H g."""
    return torch.stack([(g * factor).sum() for g, factor in zip(gradients, fixed, strict=True)]).sum()


def _gradients(losses: Iterable[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the sum of the losses, each of which is freed before the next is computed."""
    totals = [torch.zeros_like(weight) for weight in weights]
    for loss in losses:
        # No name for the gradients: they would live on while the next loss is computed.
        for total, gradient in zip(
            totals, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True
        ):
            total += gradient
    return totals


def _scores(context: ScoringContext, criterion: str, values: list[Tensor]) -> Scores:
    scores = {name: value.detach().cpu() for name, value in zip(context.weights, values, strict=True)}
    return check_finite(criterion, scores)

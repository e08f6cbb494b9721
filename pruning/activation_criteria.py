"""Criteria from what layers read on a sample of images: `pivoted_qr` and `wanda`.

`pivoted_qr`: the channels that interpolate the others best stay; they are the first pivots of the QR with
column pivoting of the activations. Chee et al., Model preserving compression for neural networks, NeurIPS
2022. `interpolative_decomposition.refit` then corrects the layers that read them.

`wanda`: absolute weights times the norms of what they multiply. Sun et al., A Simple and Effective Pruning
Approach for Large Language Models, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.activations import check_matrix, qr_factors, spread_over_rows, update_qr
from pruning.channels import trace
from pruning.criteria import ScoringContext, check_finite, criteria
from pruning.dataflow import layer_input
from pruning.eval_mode import float64_copy
from pruning.masking import Group, Scores, apply_masks, prunable_layers

CHUNK_SIZE = 16  # images at a time


def pivot_scores(activations: Tensor) -> Tensor:
    """Return float64 [n]: |R_kk| of QR with column pivoting, at the column that was the k-th pivot.

    `activations` is [rows, n]. The k highest are the first k pivots, for every k: |R_kk| never grows with
    k, and (n - k) 2^-50 |R_11| is added, less than the rounding of the QR, so that no two are equal and
    no tie goes by index. ValueError for what is not finite or not a matrix.
    """
    return _score_columns(*_pivots(update_qr(None, check_matrix(activations))))


def group_pivot_scores(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Return group name -> `pivot_scores` of its units [size], from `images` [N, C, H, W].

    The rows of all layers that read a unit are stacked; each position of a map is a row. ValueError for
    groups that nothing reads (those of `unit_groups`), or without images.
    """
    factors = qr_factors(float64_copy(net).requires_grad_(False), groups, images)
    return {name: _score_columns(*_pivots(r)) for name, r in factors.items()}


@criteria.register(
    summary="how far a unit or channel is from the span of those before it",
    paper="Chee et al., NeurIPS 2022",
    data=True,
    one_draw=True,
    groups=True,
)
def pivoted_qr(context: ScoringContext, *, relative: bool = True) -> Scores:
    """|R_kk| of the pivoted QR of the activations, over |R_11| of its group where `relative`.

    |R_k+1,k+1| / |R_11| is the paper's accuracy: with it, scope `global` cuts every layer at the same one.
    Needs images, no labels. Every weight of a row bears its unit's score; a weight of its own has none.
    """
    images, _ = context.require_sample("pivoted_qr")
    net = float64_copy(context.net).requires_grad_(False)
    apply_masks(net, context.masks)
    image = images[:1].to(next(net.parameters()).device)
    layers = prunable_layers(context.net)
    protect = [name for name in layers if f"{name}.weight" not in context.masks] if len(layers) > 1 else ()
    groups = trace(context.net, image, protect=protect)
    factors = qr_factors(net, groups, images)
    scores = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in context.weights.items()}
    for group in groups:
        diagonal, order = _pivots(factors[group.name])
        scale = diagonal[0] if relative and diagonal[0] > 0 else torch.ones(())
        spread_over_rows(group, _score_columns(diagonal / scale, order), scores)
    return scores


def _pivots(r: Tensor) -> tuple[Tensor, Tensor]:
    """Return |R_kk| [n], never growing, and the columns in the order of the pivots, int64 [n]."""
    from scipy.linalg import qr  # here: a worker imports every criterion, and seldom needs this

    factor, order = qr(r.cpu().numpy(), mode="r", pivoting=True)
    diagonal = torch.zeros(len(order), dtype=torch.float64)
    sizes = torch.from_numpy(factor).diagonal().abs()
    diagonal[: len(sizes)] = sizes.cummin(0).values  # rounding must not let one grow
    return diagonal, torch.from_numpy(order).long()


def _score_columns(diagonal: Tensor, order: Tensor) -> Tensor:
    largest = float(diagonal[0]) or 1.0
    offsets = torch.arange(len(order) - 1, -1, -1, dtype=torch.float64) * (2.0**-50 * largest)
    return torch.empty_like(diagonal).index_copy_(0, order, diagonal + offsets)


@criteria.register(
    summary="absolute weight times the 2-norm of the feature that it multiplies",
    paper="Sun et al., Wanda, ICLR 2024",
    data=True,
    on_device=True,
)
def wanda(context: ScoringContext) -> Scores:
    """|w| |x|_2, x being all that the weight multiplies over the sample: images, positions, padding zeros.

    Equation 1 of the paper, for scope `unit`: weights compete within a row, an output of the layer. Norms
    are sums and not means, so that scope `global` favours layers with many positions. A weight of a
    convolution has the norm of its column of the unfolded patches; a transposed one that of its input
    channel. All layers are scored in the network as it stands; the authors score each block behind the
    pruned ones before it. Needs images, no labels.
    """
    images, _ = context.require_sample("wanda")
    net = float64_copy(context.net)
    apply_masks(net, context.masks)
    squares = sum_squared_inputs(net, context.weights, images)
    scores = {name: weight.abs().double() * squares[name].sqrt() for name, weight in context.weights.items()}
    return check_finite("wanda", scores)


def sum_squared_inputs(net: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Return for every entry of the named weights the sum of x^2 over all x that it multiplies, on the CPU.

    `net` is in eval mode. ValueError for a weight that no layer reads its input by.
    """
    parameters = dict(net.named_parameters())
    sums = {name: torch.zeros_like(parameters[name]) for name in weights}
    seen: set[str] = set()
    device, dtype = next(iter(sums.values())).device, next(iter(sums.values())).dtype
    with _record_inputs(net, sums, seen):
        # With gradients on: without them torch's transformer layers take a path past their own layers.
        for chunk in images.split(CHUNK_SIZE):
            net(chunk.to(device, dtype))
    unread = [name.removesuffix(".weight") for name in weights if name not in seen]
    if unread:
        raise ValueError(
            f"criterion 'wanda' needs what a layer reads, and {unread[0]!r} is not called as a layer: "
            "protect it, or choose another criterion"
        )
    return {name: total.cpu() for name, total in sums.items()}


@contextmanager
def _record_inputs(net: nn.Module, sums: Mapping[str, Tensor], seen: set[str]) -> Iterator[None]:
    """Add to `sums` whenever a layer of theirs runs, and its weight's name to `seen`."""
    parameters = dict(net.named_parameters())
    names = {id(parameters[name]): name for name in sums}  # layers may share a weight
    with ExitStack() as stack:
        for layer_name, layer in prunable_layers(net).items():
            name = names.get(id(layer.weight))
            if name is not None:
                hook = partial(_add_squares, layer_name, sums[name], name, seen)
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _add_squares(
    layer_name: str,
    total: Tensor,
    name: str,
    seen: set[str],
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    features = layer_input(args, kwargs)
    if features is None:
        raise ValueError(f"{layer_name}: a {type(layer).__name__} is called without a tensor to read")
    further = {key: value for key, value in kwargs.items() if key != "input"}
    total += squares_by_weight(layer_name, layer, features.detach().square(), args[1:], further)
    seen.add(name)


def squares_by_weight(
    layer_name: str, layer: nn.Module, squares: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """Return for every weight the sum of the squares that the layer multiplies it with.

    The layer's outputs for squared inputs add up to sum_i w_i (sum of x^2 that w_i multiplies) and the
    biases, so that the sum is a gradient: with strides, groups, padding, transposed or not, by the layer's
    own code. ValueError for a layer that is not linear in its weight.
    """
    parameters = [p for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]
    with torch.enable_grad():
        outputs = layer.forward(squares, *args, **kwargs).sum()  # not a call, which runs the hooks
        gradients = torch.autograd.grad(outputs, parameters)
    terms = [g * p.detach() for g, p in zip(gradients, parameters, strict=True)]
    size = sum(float(term.abs().sum()) for term in terms)
    # Euler: what is linear is the sum of its parameters times their derivatives.
    difference = float(outputs.detach()) - sum(float(term.sum()) for term in terms)
    if abs(difference) > 1e-6 * size or bool((gradients[0] < 0).any()):
        raise ValueError(
            f"criterion 'wanda' needs layers that multiply what they read by their weights, and "
            f"{layer_name!r} ({type(layer).__name__}) does not: protect it, or choose another criterion"
        )
    return gradients[0]

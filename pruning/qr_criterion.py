"""The criterion `pivoted_qr`: the channels that interpolate the others best stay.

They are the first pivots of the QR with column pivoting of the activations. Chee et al., Model preserving
compression for neural networks, NeurIPS 2022. `interpolative.refit` then corrects the layers that read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.activations import check_matrix, qr_factors, spread_over_rows, update_qr
from pruning.channels import trace
from pruning.criteria import ScoringContext, criteria
from pruning.eval_mode import float64_copy
from pruning.masking import Group, Scores, apply_masks, prunable_layers


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

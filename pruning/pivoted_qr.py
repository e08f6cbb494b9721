"""Which channels the others can be interpolated from: QR with column pivoting of their activations.

Chee et al., Model preserving compression for neural networks, NeurIPS 2022. What corrects the layers
that read them is `decomposition.refit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.activations import factors_of, float64_copy, fold_in, makers, matrix
from pruning.criteria import Scene, criteria
from pruning.masking import Group, Scores, apply_masks, entries, prunable_layers
from pruning.structure import trace


def pivot_scores(activations: Tensor) -> Tensor:
    """float64 [n]: |R_kk| of QR with column pivoting, at the column that was the k-th pivot.

    `activations` is [rows, n]. The k highest are the first k pivots, for every k: |R_kk| never grows with
    k, and (n - k) 2^-50 |R_11| is added, less than the rounding of the QR, so that no two are equal and
    no tie goes by index. ValueError for what is not finite or not a matrix.
    """
    return _ordered(*_pivots(fold_in(None, matrix(activations))))


def pivot_scores_of(net: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """Group name -> `pivot_scores` of its units [size], from `images` [N, C, H, W].

    A unit's column holds what every layer that reads it is given, all of them stacked: each position of a
    map is a row. ValueError for groups that nothing reads (those of `unit_groups`), or without images.
    """
    return {name: _ordered(*_pivots(r)) for name, r in factors_of(float64_copy(net), groups, images).items()}


@criteria.register(
    summary="how far a unit or channel is from the span of those before it",
    paper="Chee et al., NeurIPS 2022",
    data=True,
    one_draw=True,
    groups=True,
)
def pivoted_qr(scene: Scene, *, relative: bool = True) -> Scores:
    """|R_kk| of the pivoted QR of the activations, over |R_11| of its group where `relative`.

    |R_k+1,k+1| / |R_11| is the paper's accuracy: with it, scope `global` cuts every layer at the same one.
    Needs images, no labels. Every weight of a row bears its unit's score; a weight of its own has none.
    """
    if scene.sample is None or not len(scene.sample[0]):
        raise ValueError("criterion 'pivoted_qr' needs sample, a pair (images [n, C, H, W], labels [n])")
    twin = float64_copy(scene.net)
    apply_masks(twin, scene.masks)
    image = scene.sample[0][:1].to(next(twin.parameters()).device)
    others = [name for name in prunable_layers(scene.net) if f"{name}.weight" not in scene.masks]
    groups = trace(scene.net, image, protect=others if len(prunable_layers(scene.net)) > 1 else ())
    factors = factors_of(twin, groups, scene.sample[0])
    scores = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in scene.weights.items()}
    for group in groups:
        diagonal, order = _pivots(factors[group.name])
        scale = diagonal[0] if relative and diagonal[0] > 0 else torch.ones(())
        unit_scores = _ordered(diagonal / scale, order)
        for member in makers(group):
            name, dim = entries(member)[0]
            if name in scores:
                rows = scores[name].movedim(dim, 0)
                rows[member.index] = unit_scores[member.root].reshape(-1, *[1] * (rows.dim() - 1))
    return scores


def _pivots(r: Tensor) -> tuple[Tensor, Tensor]:
    """|R_kk| [n], never growing, and the columns in the order of their choice, int64 [n]."""
    from scipy.linalg import qr  # here: a worker imports every criterion, and seldom needs this

    factor, order = qr(r.cpu().numpy(), mode="r", pivoting=True)
    diagonal = torch.zeros(len(order), dtype=torch.float64)
    found = torch.from_numpy(factor).diagonal().abs()
    diagonal[: len(found)] = found.cummin(0).values
    return diagonal, torch.from_numpy(order).long()


def _ordered(diagonal: Tensor, order: Tensor) -> Tensor:
    top = float(diagonal[0]) or 1.0
    apart = torch.arange(len(order) - 1, -1, -1, dtype=torch.float64) * (2.0**-50 * top)
    return torch.empty_like(diagonal).index_copy_(0, order, diagonal + apart)

"""The criterion `fpgm`: filters near the geometric median of their layer can be replaced by the others.

He et al., Filter Pruning via Geometric Median for Deep Neural Networks Acceleration, CVPR 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.activations import producers, spread_over_rows
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Group, Member, Scores, alive_units, parameter_dims


@criteria.register(
    summary="distance of a filter from the other filters of its layer",
    paper="He et al., FPGM, CVPR 2019",
    one_draw=True,
    groups=True,
)
def fpgm(context: ScoringContext) -> Scores:
    """Sum over j of |F_i - F_j|_2, with F the weights of the alive filters, or rows, of one layer.

    The filter with the smallest sum is, among the filters themselves, the geometric median: the others can
    stand in for it. Biases and norms have no part. A channel that several layers make has the sum over these
    layers. Sums grow with a layer's width: the paper compares within a layer. Every weight of a row bears its
    unit's score; a weight of its own has none.
    """
    scores = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in context.weights.items()}
    for group in context.require_groups("fpgm"):
        alive, total = alive_units(group, context.masks), torch.zeros(group.size, dtype=torch.float64)
        for member in producers(group):
            name = parameter_dims(member)[0][0]
            if name in context.weights:
                filters = _filters(group, member, context.weights[name])
                total[alive] += sum_distances(filters[alive])
        spread_over_rows(group, total, scores)
    return scores


def sum_distances(filters: Tensor) -> Tensor:
    """Return float64 [n]: the sum of the 2-norms of a filter's differences to all filters, [n, size]."""
    filters = filters.double()
    # Not by a product of matrices, as the default for many rows: it loses the digits of small distances.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _filters(group: Group, member: Member, weight: Tensor) -> Tensor:
    """Return [units, size]: every unit's weights in one layer, the rows of a unit of several side by side."""
    dim = parameter_dims(member)[0][1]
    rows = weight.movedim(dim, 0).flatten(1)[member.index]
    if len(rows) % group.size or len(member.root.bincount(minlength=group.size).unique()) > 1:
        raise ValueError(
            f"criterion 'fpgm' compares units of equal size, and {member.module!r} makes some of "
            f"{group.name!r} with more rows than others: choose another criterion"
        )
    return rows[member.root.argsort(stable=True)].reshape(group.size, -1)

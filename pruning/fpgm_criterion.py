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
        alive = alive_units(group, context.masks)
        total = torch.zeros(group.size, dtype=torch.float64)
        for (name, dim), (index, root) in _rows_by_weight(group).items():
            if name in context.weights:
                rows = context.weights[name].movedim(dim, 0).flatten(1)[index]
                total += _distances_by_unit(f"{group.name}, in {name}", rows, root, alive)
        spread_over_rows(group, total, scores)
    return scores


def sum_distances(filters: Tensor) -> Tensor:
    """Return float64 [n]: the sum of the 2-norms of a filter's differences to all filters, [n, size]."""
    filters = filters.double()
    # Not by a product of matrices, as the default for many rows: it loses the digits of small distances.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _rows_by_weight(group: Group) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """Return (weight, dimension) -> int64 positions along it and their units, where a weight makes units."""
    members: dict[tuple[str, int], list[Member]] = {}
    for member in producers(group):
        members.setdefault(parameter_dims(member)[0], []).append(member)
    return {
        place: (torch.cat([m.index for m in of_place]), torch.cat([m.root for m in of_place]))
        for place, of_place in members.items()
    }


def _distances_by_unit(label: str, rows: Tensor, root: Tensor, alive: Tensor) -> Tensor:
    """Return float64 [units]: the summed distances of the alive units that one weight makes, and 0 elsewhere.

    A unit of several rows has these side by side. ValueError where some have more rows than others.
    """
    counts = root.bincount(minlength=len(alive))
    made = counts > 0
    if len(counts[made].unique()) > 1:
        raise ValueError(
            f"criterion 'fpgm' compares units of equal size, and some of {label!r} have more rows than "
            "others: choose another criterion"
        )
    filters = rows[root.argsort(stable=True)].reshape(int(made.sum()), -1)
    distances = torch.zeros(len(alive), dtype=torch.float64)
    distances[made & alive] = sum_distances(filters[alive[made]])
    return distances

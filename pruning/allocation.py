"""Allocation: which layer gives up how much, by scores per cost or by measured losses.

Both turn the scores of all units into ranks that compete with each other in scope `global`, so that any
amount, target or schedule of several rounds takes the first of one sequence. A unit is a weight, a unit, a
channel or a head, whatever the granularity removes.

`per_mac`: the score of a unit, relative to its layer, over the multiply-adds that its removal saves. Scores
of different layers are made comparable by the layer's own 2-norm (Molchanov et al., Pruning Convolutional
Neural Networks for Resource Efficient Inference, ICLR 2017, section 2.2); score over cost is the greedy
solution of a knapsack (Shen et al., HALP, NeurIPS 2022, there of latency).

`sensitivity`: the loss that the next unit of a layer costs, measured by removing parts of that layer alone,
over what it saves. The sum of the layers' losses is what a choice is predicted to cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.mask_selection import check_scores
from pruning.masking import Scores

Floats = NDArray[np.float64]
PER_MAC, SENSITIVITY = "per_mac", "sensitivity"
# What `allocate` of a space says -> the scope that it is.
SCOPES_BY_ALLOCATION = {
    "uniform": "layer",
    "global": "global",
    PER_MAC: PER_MAC,
    SENSITIVITY: SENSITIVITY,
}


@dataclass(frozen=True)
class LossCurve:
    """What removing units of one layer or group costs: `losses` after the `removed` lowest are gone.

    `removed` rises from 0, whose loss is that of the network as it is. A loss may be infinite.
    """

    removed: tuple[int, ...]
    losses: tuple[float, ...]

    def marginals(self, size: int) -> Floats:
        """Return float64 [size]: the loss that removing the k-th unit adds, never less than one before it.

        That is the rise between two measured counts for each unit; or, where it is more, what a unit cost at
        an earlier count, by the inverse square of how many were left there and are left now. Losses without
        training say too little of how few units a layer can learn with again.
        """
        if len(self.removed) < 2:
            return np.full(size, math.inf)
        marginals = np.full(size, -math.inf)
        for number in range(1, len(self.removed)):
            first, last = self.removed[number - 1], self.removed[number]
            rise = self.losses[number] - self.losses[number - 1]
            # Infinity less infinity is no number; nothing after an infinite loss is cheaper than it.
            slope = math.inf if math.isnan(rise) else rise / (last - first)
            marginals[first:last] = np.maximum(marginals[first:last], slope)
            left = size - np.arange(last, size)
            growing = max(slope, 0.0) * ((size - last) / left) ** 2
            marginals[last:] = np.maximum(marginals[last:], growing)
        return np.maximum.accumulate(marginals)

    def predicted(self, count: int, size: int) -> float:
        """Return the loss that is predicted to be added where `count` of `size` units go."""
        return float(self.marginals(size)[:count].sum())


@dataclass(frozen=True, eq=False)
class Allocation:
    """Costs of units by layer or group, float64: [size], or a number where all of its units cost the same.

    With `curves` units are ranked by what they add to the measured loss, else by their scores.
    """

    costs: Mapping[str, Tensor]
    curves: Mapping[str, LossCurve] | None = None

    def rank(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Scores:
        """Return scores by which all units compete, the lowest first to go; of dead ones they say nothing.

        `scores` are float64, `alive` bool; they and the result have equal shapes by layer or group.
        ValueError for one without a cost or a curve, and a score that is not a number.
        """
        check_scores(scores)
        for name in alive:
            if name not in self.costs or (self.curves is not None and name not in self.curves):
                raise ValueError(f"the allocation says nothing of {name!r}: it is of another network")
        if self.curves is None:
            return {name: _score_per_cost(scores[name], alive[name], self.costs[name]) for name in alive}
        return _rank_by_loss(scores, alive, self.costs, self.curves)


def _score_per_cost(scores: Tensor, alive: Tensor, costs: Tensor) -> Tensor:
    norm = scores[alive].square().sum().sqrt()
    relative = scores / norm if norm > 0 else torch.zeros_like(scores)
    # What saves nothing goes last.
    return torch.where(costs > 0, relative / costs, torch.inf).expand(scores.shape)


def _rank_by_loss(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    curves: Mapping[str, LossCurve],
) -> Scores:
    """Return the position of every unit in the order of loss per cost; within a layer in that of the scores.

    Marginal losses of a layer never fall, so the first units of that order are the choice of the least
    predicted loss among all that save as much (Everett, Operations Research 11(3), 1963).
    """
    orders: dict[str, NDArray[np.int64]] = {}
    ratios: list[Floats] = []
    for name, mask in alive.items():
        positions = mask.flatten().numpy().nonzero()[0]
        values = scores[name].flatten().numpy()[positions]
        orders[name] = positions[np.argsort(values, kind="stable")]
        removed = mask.numel() - len(positions)
        cost = float(costs[name].mean())
        marginals = curves[name].marginals(mask.numel())[removed:]
        ratios.append(marginals / cost if cost > 0 else np.full(len(positions), math.inf))
    # A stable sort: of equal ratios the earlier layer goes first, and each layer in its own order.
    sequence = np.argsort(np.concatenate(ratios), kind="stable")
    ranks = np.empty(len(sequence))
    ranks[sequence] = np.arange(len(sequence))
    result: Scores = {}
    start = 0
    for name, order in orders.items():
        ranked = np.zeros(alive[name].numel())
        ranked[order] = ranks[start : start + len(order)]
        start += len(order)
        result[name] = torch.from_numpy(ranked).reshape(alive[name].shape)
    return result

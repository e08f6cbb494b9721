"""The one step that changes a mask.

Units compete in pools: all together (`global`), within their layer or group (`layer`, `erk`), or within their
row (`unit`, for weights). A schedule says how many units each pool loses; those with the lowest scores go.
The count is exact, ties go by index, and nothing that is pruned comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pruning.masking import count_alive_rows

Scope = Literal["unit", "layer", "global", "erk"]
SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True)
class Pools:
    """Units that compete: a row per pool, [P, n].

    `scores` and `values` are float64 (values: absolute weights or unit norms, whatever the criterion);
    `alive` is bool; `names` are the layers or groups behind the pools.
    """

    scores: Tensor
    values: Tensor
    alive: Tensor
    names: tuple[str, ...]

    @cached_property
    def alive_counts(self) -> Tensor:
        """int64 [P]: how many units of each pool are alive."""
        return count_alive_rows(self.alive)


Count = Callable[[Pools], Tensor]


def target_count(amount: float, total: int) -> int:
    """Return how many of `total` units an amount in [0, 1] asks for: floor(amount * total + 0.5)."""
    return int(amount * total + 0.5)


def check_scores(scores: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a score that is not a number."""
    for name, score in scores.items():
        # The largest score is NaN if any is: one pass, and no tensor to store.
        if score.numel() and score.amax().isnan():
            raise ValueError(f"the scores of {name!r} contain NaN: nothing can be pruned by them")


def prune_step(
    scores: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    *,
    scope: Scope,
    count: Count,
    keep_one: bool,
) -> dict[str, Tensor]:
    """Return which units are alive after one step, by layer or group, in the shape of `alive`.

    `scores`, `values`: float64, the lowest scores go; `count(pools)` returns int64 [P], how many each pool
    loses now. With `keep_one` the best unit of every layer or group stays. ValueError for a score that is
    not a number, or a count below zero.
    """
    check_scores(scores)
    if scope == "global":
        return _prune_globally(scores, values, alive, count, keep_one)
    result = {}
    for name, mask in alive.items():
        shape = (len(mask) if scope == "unit" and mask.dim() > 1 else 1, -1)
        pools = Pools(scores[name].reshape(shape), values[name].reshape(shape), mask.reshape(shape), (name,))
        result[name] = _remove(pools, _check_counts(count(pools)), keep_one).reshape(mask.shape)
    return result


def round_widths(
    scores: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    multiple: int,
) -> dict[str, Tensor]:
    """Return which units stay of each group, bool [n]: a multiple, the nearest to how many a step left.

    `before` and `after` are which were alive before the step and after it. The best of those that were alive
    stay. A group that lost nothing, or all, or has fewer units than the multiple, is as it was before.
    """
    return {name: _rounded(name, scores[name], before[name], after[name], multiple) for name in after}


def _rounded(name: str, score: Tensor, before: Tensor, after: Tensor, multiple: int) -> Tensor:
    total, left = int(before.sum()), int(after.sum())
    if left in (0, total):
        return after
    if total < multiple:
        return before
    target = min(max(1, int(left / multiple + 0.5)), total // multiple) * multiple
    pools = Pools(score[None], score[None], before[None], (name,))
    return _remove(pools, torch.tensor([total - target]), keep_one=False)[0]


def _prune_globally(
    scores: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    count: Count,
    keep_one: bool,
) -> dict[str, Tensor]:
    flat = _concatenate(scores, alive)
    flat_values = flat if values is scores else _concatenate(values, alive)
    pools = Pools(flat, flat_values, _concatenate(alive, alive), tuple(alive))
    counts = _check_counts(count(pools))
    if keep_one:
        best = torch.cat([_best(scores[name], mask) for name, mask in alive.items()])
        pools = replace(pools, scores=pools.scores.masked_fill(best, torch.inf))
        counts = counts.clamp(max=int((pools.alive[0] & ~best).sum()))
    pieces = _remove(pools, counts, keep_one=False)[0].split([mask.numel() for mask in alive.values()])
    return {
        name: piece.reshape(mask.shape) for piece, (name, mask) in zip(pieces, alive.items(), strict=True)
    }


def _concatenate(tensors: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Tensor:
    # numpy's memory comes in huge pages: a third of the time of torch.cat.
    return torch.from_numpy(np.concatenate([tensors[name].flatten().numpy() for name in alive]))[None]


def _best(score: Tensor, mask: Tensor) -> Tensor:
    """Return bool [n]: the best alive unit of a layer, the last among equals; all False without one."""
    best = torch.zeros(mask.numel(), dtype=torch.bool)
    if mask.any():
        alive = mask.flatten()
        top = score.flatten().masked_fill(~alive, -torch.inf)
        best[int(((top == top.max()) & alive).nonzero()[-1])] = True
    return best


def _check_counts(counts: Tensor) -> Tensor:
    if (counts < 0).any():
        raise ValueError("a schedule asked to bring units back to life: counts must be 0 or more")
    return counts


def _remove(pools: Pools, counts: Tensor, keep_one: bool) -> Tensor:
    """Return bool [P, n]: `alive` without the `counts[p]` lowest alive scores of each pool."""
    counts = torch.minimum(counts, (pools.alive_counts - int(keep_one)).clamp(min=0))
    if len(counts) == 1:
        alive_count = int(pools.alive_counts[0])
        return _remove_lowest(pools.scores[0], pools.alive[0], int(counts[0]), alive_count)[None]
    order = pools.scores.masked_fill(~pools.alive, torch.inf).sort(dim=1, stable=True).indices
    # An alive score may be inf as well: among equals the pruned ones must not use up the count.
    order = order.gather(1, (~pools.alive).gather(1, order).to(torch.uint8).sort(dim=1, stable=True).indices)
    removed = torch.arange(order.shape[1]) < counts[:, None]
    return pools.alive & ~torch.zeros_like(pools.alive).scatter(1, order, removed)


def _remove_lowest(scores: Tensor, alive: Tensor, count: int, alive_count: int) -> Tensor:
    """Return one pool of `alive_count` units without its `count` lowest scores, in linear time."""
    if count == 0:
        return alive.clone()
    # numpy's partition returns no indices: five times as fast as kthvalue. Pruned units are below all.
    ordered = np.where(alive.numpy(), scores.numpy(), -np.inf)
    rank = len(ordered) - alive_count + count - 1
    ordered.partition(rank)
    threshold = float(ordered[rank])
    remaining = alive & (scores > threshold)
    # At the threshold itself some stay: the last ones, so that ties go by index.
    if spared := alive_count - count - np.count_nonzero(remaining.numpy()):
        ties = (alive & (scores == threshold)).nonzero().flatten()
        remaining[ties[-spared:]] = True
    return remaining


def share_by_erk(
    count: Count, scores: Mapping[str, Tensor], values: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> Count:
    """Return a count for each layer's pool that shares out what `count` asks of the whole network."""
    flat = [
        torch.cat([tensors[name].flatten() for name in alive])[None] for tensors in (scores, values, alive)
    ]
    limits = {name: int(mask.sum()) for name, mask in alive.items()}
    total = sum(limits.values())
    budget = total - min(int(count(Pools(flat[0], flat[1], flat[2], tuple(alive)))), total)
    allocation = allocate_erk({name: mask.shape for name, mask in alive.items()}, limits, budget)
    return lambda pools: torch.tensor([limits[pools.names[0]] - allocation[pools.names[0]]])


def allocate_erk(
    shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Return the weights that stay in each layer, `budget` in all, none above its limit: Erdos-Renyi-kernel.

    A layer's density is proportional to (n_in + n_out + height + width) / (n_in n_out height width), so its
    number of weights is proportional to the sum of its shape; a layer that would exceed its limit gets just
    that, and the others share what remains. Fractions go by largest remainder, ties by order.
    Evci et al., Rigging the Lottery, ICML 2020. ValueError for more than the limits hold.
    """
    if not 0 <= budget <= sum(limits.values()):
        raise ValueError(f"{budget} weights cannot be kept of {sum(limits.values())}")
    shares = _erk_shares(shapes, limits, budget)
    counts = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])  # stable: ties by order
    for name in by_remainder[: budget - sum(counts.values())]:
        counts[name] += 1
    return counts


def _erk_shares(
    shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int], budget: int
) -> dict[str, Fraction]:
    # Fractions, not floats: what the layers get must add up to the budget exactly.
    full: dict[str, Fraction] = {}
    while len(full) < len(shapes):
        free = [name for name in shapes if name not in full]
        scale = (budget - sum(full.values())) / Fraction(sum(sum(shapes[name]) for name in free))
        over = [name for name in free if scale * sum(shapes[name]) > limits[name]]
        if not over:
            return {name: full.get(name, scale * sum(shapes[name])) for name in shapes}
        full |= {name: Fraction(limits[name]) for name in over}
    return full

"""The one step that changes a mask.

Units compete in pools: all together (`global`), within their layer or group (`layer`, `erk`), or
within their row (`unit`, for weights). A schedule says how many leave each pool; the lowest scores
leave. The count is exact, ties go by index, and nothing that is dead comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pruning.masking import count_alive

Scope = Literal["unit", "layer", "global", "erk"]
SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True)
class Pools:
    """Units that compete: a row per pool, [P, n].

    `scores` and `values` are float64 (values: absolute weights or unit norms, whatever the
    criterion); `alive` is bool; `names` are the layers or groups behind the pools.
    """

    scores: Tensor
    values: Tensor
    alive: Tensor
    names: tuple[str, ...]

    @cached_property
    def living(self) -> Tensor:
        """int64 [P]: how many units of each pool live."""
        return count_alive(self.alive)


Count = Callable[[Pools], Tensor]


def target_count(amount: float, total: int) -> int:
    """How many of `total` units an amount in [0, 1] asks for: floor(amount * total + 0.5)."""
    return int(amount * total + 0.5)


def prune_step(
    scores: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    *,
    scope: Scope,
    count: Count,
    keep_one: bool,
) -> dict[str, Tensor]:
    """The living units after one step, by layer or group, in the shape of `alive`.

    `scores`, `values`: float64, larger stays; `count(pools)` gives int64 [P], how many leave each
    pool now. With `keep_one` the best living unit of every layer or group stays. ValueError for a
    score that is not a number, or a count below zero.
    """
    for name, score in scores.items():
        # The largest of numbers is a number: one pass, and nothing to store.
        if score.numel() and score.amax().isnan():
            raise ValueError(f"the scores of {name!r} contain NaN: nothing can be pruned by them")
    if scope == "global":
        return _globally(scores, values, alive, count, keep_one)
    survivors = {}
    for name, living in alive.items():
        rows = len(living) if scope == "unit" and living.dim() > 1 else 1
        shape = (rows, -1)
        pools = Pools(
            scores[name].reshape(shape), values[name].reshape(shape), living.reshape(shape), (name,)
        )
        survivors[name] = _remove(pools, _checked(count(pools)), keep_one).reshape(living.shape)
    return survivors


def _globally(
    scores: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    count: Count,
    keep_one: bool,
) -> dict[str, Tensor]:
    flat = _flat(scores, alive)
    pools = Pools(flat, flat if values is scores else _flat(values, alive), _flat(alive, alive), tuple(alive))
    wanted = _checked(count(pools))
    if keep_one:
        best = torch.cat([_best(scores[name], living) for name, living in alive.items()])
        pools = Pools(pools.scores.masked_fill(best, torch.inf), pools.values, pools.alive, pools.names)
        wanted = wanted.clamp(max=int((pools.alive[0] & ~best).sum()))
    kept = _remove(pools, wanted, keep_one=False)[0].split([living.numel() for living in alive.values()])
    return {
        name: part.reshape(living.shape) for part, (name, living) in zip(kept, alive.items(), strict=True)
    }


def _flat(tensors: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Tensor:
    # numpy's memory comes in huge pages: a third of the time of torch.cat.
    return torch.from_numpy(np.concatenate([tensors[name].flatten().numpy() for name in alive]))[None]


def _best(score: Tensor, living: Tensor) -> Tensor:
    """bool [n]: the best living unit of a layer, the last among equals; all False where none lives."""
    best = torch.zeros(living.numel(), dtype=torch.bool)
    if living.any():
        alive = living.flatten()
        top = score.flatten().masked_fill(~alive, -torch.inf)
        best[int(((top == top.max()) & alive).nonzero()[-1])] = True
    return best


def _checked(counts: Tensor) -> Tensor:
    if (counts < 0).any():
        raise ValueError("a schedule asked to bring units back to life: counts must be 0 or more")
    return counts


def _remove(pools: Pools, counts: Tensor, keep_one: bool) -> Tensor:
    """bool [P, n]: `alive` without the `counts[p]` lowest living scores of each pool."""
    counts = torch.minimum(counts, (pools.living - int(keep_one)).clamp(min=0))
    if len(counts) == 1:
        return _remove_lowest(pools.scores[0], pools.alive[0], int(counts[0]), int(pools.living[0]))[None]
    order = pools.scores.masked_fill(~pools.alive, torch.inf).sort(dim=1, stable=True).indices
    # A living score may be inf as well: among equals the dead must not use up the count.
    order = order.gather(1, (~pools.alive).gather(1, order).to(torch.uint8).sort(dim=1, stable=True).indices)
    leaving = torch.arange(order.shape[1]) < counts[:, None]
    return pools.alive & ~torch.zeros_like(pools.alive).scatter(1, order, leaving)


def _remove_lowest(scores: Tensor, alive: Tensor, count: int, living: int) -> Tensor:
    """One pool of so many `living` without its `count` lowest scores, in linear time."""
    if count == 0:
        return alive.clone()
    # numpy's partition gives no indices: five times as fast as kthvalue. The dead are below all.
    ordered = np.where(alive.numpy(), scores.numpy(), -np.inf)
    place = len(ordered) - living + count - 1
    ordered.partition(place)
    threshold = float(ordered[place])
    kept = alive & (scores > threshold)
    if spared := living - count - np.count_nonzero(kept.numpy()):
        ties = (alive & (scores == threshold)).nonzero().flatten()
        kept[ties[-spared:]] = True
    return kept

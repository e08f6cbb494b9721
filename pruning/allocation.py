"""How many weights each layer keeps when the total is shared out by the layers' shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from pruning.step import Count, Pools


def erk_kept(shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int], kept: int) -> dict[str, int]:
    """Weights that each layer keeps, `kept` in all, none above its limit: Erdos-Renyi-kernel.

    A layer's density is proportional to (n_in + n_out + height + width) / (n_in n_out height width),
    so what it keeps is proportional to the sum of its shape; a layer that would keep more than its
    limit keeps that, and the others share the rest. Fractions go by largest remainder, ties by order.
    Evci et al., Rigging the Lottery, ICML 2020. ValueError for more than the limits hold.
    """
    if not 0 <= kept <= sum(limits.values()):
        raise ValueError(f"{kept} weights cannot be kept of {sum(limits.values())}")
    shares = _shares(shapes, limits, kept)
    whole = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: whole[name] - shares[name])  # stable: ties by order
    for name in by_remainder[: kept - sum(whole.values())]:
        whole[name] += 1
    return whole


def _shares(shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int], kept: int) -> dict[str, Fraction]:
    full: dict[str, Fraction] = {}
    while len(full) < len(shapes):
        free = [name for name in shapes if name not in full]
        scale = (kept - sum(full.values())) / Fraction(sum(sum(shapes[name]) for name in free))
        over = [name for name in free if scale * sum(shapes[name]) > limits[name]]
        if not over:
            return {name: full.get(name, scale * sum(shapes[name])) for name in shapes}
        full |= {name: Fraction(limits[name]) for name in over}
    return full


def erk(
    count: Count, scores: Mapping[str, Tensor], values: Mapping[str, Tensor], alive: Mapping[str, Tensor]
) -> Count:
    """`count`, asked for the whole network, shared out over its layers: a count for a layer's pool."""
    flat = [
        torch.cat([tensors[name].flatten() for name in alive])[None] for tensors in (scores, values, alive)
    ]
    living = {name: int(mask.sum()) for name, mask in alive.items()}
    total = sum(living.values())
    kept = total - min(int(count(Pools(flat[0], flat[1], flat[2], tuple(alive)))), total)
    by_layer = erk_kept({name: mask.shape for name, mask in alive.items()}, living, kept)
    return lambda pools: torch.tensor([living[pools.names[0]] - by_layer[pools.names[0]]])

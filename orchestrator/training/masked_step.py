"""Masks during a training: dead weights are set to zero again after every step of the optimizer.

With Adam this is done for a part of each large weight at a time. Adam moves seven numbers of a weight through
memory, and the masks three more. Where a part is masked while the processor's cache still has it, masks cost
next to nothing. Both are done number by number: the bits are those of the whole step and all masks after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from orchestrator.training.optimizers import Adam, AdamW
from pruning.masking import view_as_integers

PART = 1 << 18  # numbers; a multiple of every vector's length, so that no number is computed in another way
Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # weight, gradient, both averages, steps


class Masker:
    """Set dead weights to zero at every call, whatever a step has made of them; the masks are copied once.

    What is multiplied are the bits (see `view_as_integers`): in floats, 0 times an infinite weight is NaN.
    """

    def __init__(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """`weights` are a network's parameters by name, or what else has their shapes."""
        self._weights = weights
        self.replace(masks)

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Put other masks in the place of those of before."""
        pruned = {name: mask for name, mask in masks.items() if not mask.all()}
        self.parameters = [view_as_integers(self._weights[name]) for name in pruned]
        # Each in its parameter's order in memory, so that the two are multiplied as they lie.
        self.factors = [
            torch.empty_like(bits).copy_(mask)
            for bits, mask in zip(self.parameters, pruned.values(), strict=True)
        ]

    @torch.no_grad()
    def __call__(self, *, without: Collection[int] = ()) -> None:
        """Mask all weights, save those at these addresses in memory."""
        pairs = zip(self.parameters, self.factors, strict=True)
        rest = [pair for pair in pairs if pair[0].data_ptr() not in without]
        if rest:
            torch._foreach_mul_([bits for bits, _ in rest], [factor for _, factor in rest])


def join_maskers(maskers: Sequence[Masker]) -> Masker:
    """Return one masker that applies the masks of several in one operation."""
    joined = Masker({}, {})
    joined.parameters = [bits for masker in maskers for bits in masker.parameters]
    joined.factors = [factor for masker in maskers for factor in masker.factors]
    return joined


def step_and_mask(optimizer: Optimizer, masker: Masker) -> None:
    """Let the optimizer step, and set what is dead to zero."""
    factors = _large_factors(masker) if isinstance(optimizer, (Adam, AdamW)) else {}
    if not factors or torch.get_num_threads() > 1:
        optimizer.step()
        masker()
        return
    masked: set[int] = set()
    with torch.no_grad():
        for group in optimizer.param_groups:
            masked |= _step_group(optimizer, group, factors)
    masker(without=masked)


def _large_factors(masker: Masker) -> Mapping[int, tuple[Tensor, Tensor]]:
    """Return (bits, factors) of weights of a part and more, by their address in memory."""
    pairs = zip(masker.parameters, masker.factors, strict=True)
    return {
        bits.data_ptr(): (bits, factor)
        for bits, factor in pairs
        if bits.numel() >= PART and bits.is_contiguous() and bits.device.type == "cpu"
    }


def _step_group(
    optimizer: Optimizer, group: dict[str, Any], factors: Mapping[int, tuple[Tensor, Tensor]]
) -> set[int]:
    """Step the parameters of a group as `torch.optim.Adam(fused=True)` does, the large ones in parts.

    Returns the addresses of those that are masked, too.
    """
    lists: tuple[list[Tensor], ...] = tuple([] for _ in range(6))
    optimizer._init_group(group, *lists)  # type: ignore[attr-defined]  # torch's own lists and first state
    weights, gradients, averages, squares, _, steps = lists
    torch._foreach_add_(steps, 1)
    operator = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    update = partial(
        operator,
        amsgrad=False,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    whole: list[Row] = []
    masked: set[int] = set()
    for row in zip(weights, gradients, averages, squares, steps, strict=True):
        address = row[0].data_ptr()
        if address not in factors or not all(tensor.is_contiguous() for tensor in row):
            whole.append(row)
            continue
        for tensors, bits, factor in _parts(row, *factors[address]):
            update(*([tensor] for tensor in tensors), [], [row[-1]])
            bits.mul_(factor)
        masked.add(address)
    if whole:
        columns = [list(column) for column in zip(*whole, strict=True)]
        update(*columns[:4], [], columns[4])
    return masked


def _parts(row: Row, bits: Tensor, factor: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    flat = [tensor.view(-1).split(PART) for tensor in (*row[:4], bits, factor)]
    yield from ((parts[:4], parts[4], parts[5]) for parts in zip(*flat, strict=True))

"""Masks during a training: dead weights are set to zero again after every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning.masking import view_as_integers


class Masker:
    """Set dead weights to zero at every call, whatever a step has made of them; the masks are copied once.

    What is multiplied are the bits (see `bits_of`): in floats, 0 times an infinite weight is NaN.
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
    def __call__(self) -> None:
        if self.parameters:
            torch._foreach_mul_(self.parameters, self.factors)


def join_maskers(maskers: Sequence[Masker]) -> Masker:
    """Return one masker that applies the masks of several in one operation."""
    joined = Masker({}, {})
    joined.parameters = [bits for masker in maskers for bits in masker.parameters]
    joined.factors = [factor for masker in maskers for factor in masker.factors]
    return joined

"""Controls: what a pruning method must beat before its choice of weights means anything.

Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, ICLR 2021.
The inverted score is `prune(..., invert=True)`; the shuffled mask is here.
"""

from __future__ import annotations

import torch

from pruning.masking import Masks


def shuffle_masks(masks: Masks, generator: torch.Generator) -> Masks:
    """The masks with the entries of each layer in random order: equal densities, another choice.

    For masks of single weights; ValueError for masks of units or channels, which also cover biases
    and norms: shuffled, they would no longer be units.
    """
    for name, mask in masks.items():
        if mask.dim() < 2:
            raise ValueError(
                f"mask {name!r} is of one dimension: only masks of single weights can be shuffled"
            )
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }

"""Losses of a training, and what they compare with: classes, or a distribution over classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# (logits, images, targets) -> the sum over the batch. Targets are classes, int64 [N]; with label smoothing or
# mixup they are probabilities, float [N, classes].
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p(class), in nats; where targets are probabilities, of its mean under them."""
    return functional.cross_entropy(logits, targets, reduction="sum")


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of a batch, int64 [N]; with mixup also those of the images mixed in.

    `share` is the part of an image's own class.
    """

    own: Tensor
    mixed_in: Tensor | None = None
    share: float = 1.0

    def split(self, count: int) -> list[Labels]:
        """Return `count` parts, as `Tensor.tensor_split` does."""
        own = self.own.tensor_split(count)
        if self.mixed_in is None:
            return [Labels(part) for part in own]
        pairs = zip(own, self.mixed_in.tensor_split(count), strict=True)
        return [Labels(part, mixed_in, self.share) for part, mixed_in in pairs]

    def targets(self, classes: int, *, smoothing: float) -> Tensor:
        """Return what a loss compares with: the classes, or a distribution over them.

        Smoothing gives every class the same part of `smoothing` (Szegedy et al., CVPR 2016).
        """
        if self.mixed_in is None and not smoothing:
            return self.own
        targets = _one_hot(self.own, classes)
        if self.mixed_in is not None:
            targets = self.share * targets + (1 - self.share) * _one_hot(self.mixed_in, classes)
        return (1 - smoothing) * targets + smoothing / classes

    def count_hits(self, predicted: Tensor) -> Tensor:
        """Return how many predictions are right; one of a mixed image counts by the share of its class."""
        hits = (predicted == self.own).sum()
        if self.mixed_in is None:
            return hits
        return self.share * hits + (1 - self.share) * (predicted == self.mixed_in).sum()


def _one_hot(classes: Tensor, count: int) -> Tensor:
    # Not functional.one_hot: it scatters, which on a GPU may have no deterministic form.
    return (classes[:, None] == torch.arange(count, device=classes.device)).float()

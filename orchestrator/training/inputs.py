"""What the network reads of a batch: augmented images, mixed where the recipe mixes, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from orchestrator.config import Train
from orchestrator.data.augmentation import Augmenter
from orchestrator.data.loading import Split
from orchestrator.training.losses import Labels


class Inputs:
    """The images and labels of a split, as a recipe trains on them; all draws are the generator's."""

    def __init__(self, split: Split, recipe: Train, generator: Generator) -> None:
        self.split, self.mixup, self.generator = split, recipe.mixup, generator
        self.augment = Augmenter(recipe.augment, generator, split.images)

    def micro_batches(self, batch: Tensor, count: int) -> Iterator[tuple[Tensor, Labels]]:
        """Yield the images and labels of a batch in `count` parts of nearly one size.

        The whole batch is augmented and mixed at once, so that its draws, and which images are mixed, are
        those of the batch whatever the parts; but flips and crops alone are drawn part by part.
        """
        # Not index_select: it orders grey images otherwise in memory, and convolutions then have other bits.
        if not self.mixup and self.augment.draws_by_micro_batch:
            for part in batch.tensor_split(count):
                yield self.augment(self.split.images[part]), Labels(self.split.labels[part])
            return
        images, labels = self.augment(self.split.images[batch]), Labels(self.split.labels[batch])
        if self.mixup:
            images, labels = self._mix(images, labels)
        yield from zip(images.tensor_split(count), labels.split(count), strict=True)

    def _mix(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Mix every image with the one before it in the batch, which is in random order.

        One share for the batch, from Beta(mixup, mixup), as Zhang et al. (ICLR 2018) and torchvision draw it.
        """
        share = draw_share(self.mixup, self.generator)
        mixed = images.roll(1, 0).mul_(1 - share).add_(images * share)
        return mixed, Labels(labels.own, labels.own.roll(1, 0), share)


def draw_share(alpha: float, generator: Generator) -> float:
    """Draw from Beta(alpha, alpha) by the inverse of its distribution function: one uniform draw."""
    from scipy.special import betaincinv  # a library that no other training needs

    uniform = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return float(betaincinv(alpha, alpha, uniform.item()))

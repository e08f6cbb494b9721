"""What the network reads of a batch: augmented images, mixed where the recipe mixes, in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor

from orchestrator.config import Train
from orchestrator.data.augmentation import Augmenter, rounds_bytes
from orchestrator.data.batches import iter_batches
from orchestrator.data.loading import Split
from orchestrator.data.scaled_images import Images, as_bytes, index_device
from orchestrator.system.memory import to_device
from orchestrator.training.device_group import ALONE, DeviceGroup
from orchestrator.training.losses import Labels

MicroBatches = Iterator[tuple[Tensor, Labels]]


class Inputs:
    """The images and labels of a split, as a recipe trains on them; all draws are the generator's."""

    def __init__(self, split: Split, recipe: Train, generator: Generator) -> None:
        self.split, self.mixup, self.generator = split, recipe.mixup, generator
        images = _byte_images(split) if rounds_bytes(recipe.augment) else split.images
        self.augment = Augmenter(recipe.augment, generator, images)

    def epoch(
        self, batch_size: int, *, micro_batch: int, group: DeviceGroup = ALONE
    ) -> Iterator[tuple[int, MicroBatches]]:
        """Yield the size of each batch of a shuffled pass, and its micro-batches: read them before the next.

        Of a group's devices each has micro-batches of its own part, and augments and mixes that by itself.
        The whole order is drawn at once: images of large sets are gathered while the batch before is in use.
        """
        images = self.split.images
        batches = list(iter_batches(len(self.split), batch_size, self.generator, device=index_device(images)))
        group.draw_apart(self.generator)
        # Micro-batches of nearly one size: one of a single image would have no batch statistics.
        counts = [group.count_passes(len(batch), micro_batch) for batch in batches]
        parts = [
            self._read_at_once(group.part(batch), count) for batch, count in zip(batches, counts, strict=True)
        ]
        with closing(self.augment.read_batches(chain.from_iterable(parts))) as read:
            for batch, count, its_parts in zip(batches, counts, parts, strict=True):
                yield len(batch), self._micro_batches(its_parts, read, count)

    def micro_batches(self, batch: Tensor, count: int) -> MicroBatches:
        """Yield the images and labels of a batch of indices in `count` parts of nearly one size.

        The whole batch is augmented and mixed at once, so that its draws, and which images are mixed, are
        those of the batch whatever the parts; but flips and crops alone are drawn part by part.
        """
        parts = self._read_at_once(batch, count)
        with closing(self.augment.read_batches(parts)) as read:
            yield from self._micro_batches(parts, read, count)

    def _read_at_once(self, batch: Tensor, count: int) -> tuple[Tensor, ...]:
        """Return the indices of the images that are augmented together; none where there are no parts."""
        if not count:
            return ()
        by_part = not self.mixup and self.augment.draws_by_micro_batch
        return batch.tensor_split(count) if by_part else (batch,)

    def _micro_batches(self, parts: Sequence[Tensor], read: Iterator[Tensor], count: int) -> MicroBatches:
        for part in parts:
            images = self.augment(next(read))
            labels = Labels(self.split.labels[to_device(part, self.split.labels.device)])
            if self.mixup:
                images, labels = self._mix(images, labels)
            pieces = count // len(parts)  # 1, or all of them
            yield from zip(images.tensor_split(pieces), labels.split(pieces), strict=True)

    def _mix(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Mix every image with the one before it in the batch, which is in random order.

        One share for the batch, from Beta(mixup, mixup), as Zhang et al. (ICLR 2018) and torchvision draw it.
        """
        share = draw_share(self.mixup, self.generator)
        mixed = images.roll(1, 0).mul_(1 - share).add_(images * share)
        return mixed, Labels(labels.own, labels.own.roll(1, 0), share)


_bytes_of: WeakKeyDictionary[Split, Images] = WeakKeyDictionary()


def _byte_images(split: Split) -> Images:
    """Return the images of a split as bytes: one copy for all trainings, which a stack may have many of."""
    if split not in _bytes_of:
        _bytes_of[split] = as_bytes(split.images, split.pixel_scale)
    return _bytes_of[split]


def draw_share(alpha: float, generator: Generator) -> float:
    """Draw from Beta(alpha, alpha) by the inverse of its distribution function: one uniform draw."""
    from scipy.special import betaincinv  # a library that no other training needs

    uniform = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return float(betaincinv(alpha, alpha, uniform.item()))
